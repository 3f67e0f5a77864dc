"""Tune's HyperBand for trials that all take the same number of environment steps.

Tune (ray 2.60) takes the number of brackets from the size of its unit of time: in environment steps the first bracket,
in which no trial ends early, would have room for ten trials and more.
"""

from __future__ import annotations

import math
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import HyperBandScheduler

from actuators.errors import ConfigError

_ROUNDS = "rounds"


class Halving(HyperBandScheduler):
    """Trials of a bracket wait for each other at each milestone; there the worse ones end.

    A trial's steps are divided into `max_t` rounds. With 9 and a reduction factor of 3 the first 3 trials train to the
    end, the next 5 are reduced after 3 rounds, the next 9 after 1 and 3 rounds, and so on from the beginning.

    Args:
        time: name of the result that counts the steps.
        steps: of a trial that trains to the end.
        max_t: rounds; at least `reduction_factor`, or no trial would end early.
        reduction_factor: at a milestone one trial of this many goes on, at least 2.
        stop_last_trials: whether trials end after `max_t` rounds.
    """

    def __init__(
        self, time: str, steps: int, max_t: int = 9, reduction_factor: float = 3, stop_last_trials: bool = True
    ) -> None:
        if not max_t >= reduction_factor >= 2:
            raise ValueError(f"max_t={max_t} must be at least reduction_factor={reduction_factor}, and that at least 2")
        super().__init__(
            time_attr=_ROUNDS, max_t=max_t, reduction_factor=reduction_factor, stop_last_trials=stop_last_trials
        )
        self._counter, self._steps = time, steps

    def check_room(self, trials: int) -> None:
        """Raises ConfigError when all of so many trials would train to the end."""
        least = self._get_n0(0) + math.ceil(self._get_n0(1) / self._eta) + 1
        if trials < least:
            raise ConfigError(
                f"hyperband ends none of {trials} trials early",
                where="search.trials",
                remedy=f"set {least} or more, or search.scheduler=asha",
            )

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        rounds = result[self._counter] * self._max_t_attr / self._steps
        decision: str = super().on_trial_result(tune_controller, trial, {**result, _ROUNDS: rounds})
        return decision
