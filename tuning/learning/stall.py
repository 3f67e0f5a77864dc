"""Ends a training that no step reaches, in one line: RLlib drops late samples and asks its env runners for new ones.

The classes are RLlib's algorithms with this limit; `tuning.learning.algorithm` configures them.
"""

from __future__ import annotations

import time

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.appo import APPO
from ray.rllib.algorithms.dqn import DQN
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.algorithms.sac import SAC
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from actuators.errors import TestbedError

STALLED_TIMEOUTS, STALL_SLACK_S = 3, 60.0
"""The limit is so many times `sample_timeout_s`, and so many seconds more for the restart of an env runner. Training on
live testbeds gives up earlier (`tuning.live.training`)."""


class StallLimit(Algorithm):
    """To be mixed into an algorithm. RLlib's SAC and DQN do not return from `train` until enough steps have come, so
    that the caller cannot set this limit."""

    _sampled: int = 0
    _waits_since_s: float | None = None

    def training_step(self) -> None:
        """As RLlib's. Raises TestbedError when no step has arrived for the limit."""
        if self._waits_since_s is None:
            self._waits_since_s = time.monotonic()
        super().training_step()
        sampled = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0)
        if sampled > self._sampled:
            self._sampled, self._waits_since_s = sampled, None
            return
        waited_s = time.monotonic() - self._waits_since_s
        if waited_s > STALLED_TIMEOUTS * self.config.sample_timeout_s + STALL_SLACK_S:
            raise TestbedError(
                f"no step arrived from the env runners for {waited_s:.0f} s",
                where="training.runners",
                remedy="see Ray's worker logs, or train without env runners",
            )


class WatchedPPO(StallLimit, PPO):
    """PPO with the limit."""


class WatchedAPPO(StallLimit, APPO):
    """APPO with the limit."""


class WatchedSAC(StallLimit, SAC):
    """SAC with the limit."""


class WatchedDQN(StallLimit, DQN):
    """DQN with the limit."""
