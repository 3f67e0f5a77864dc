"""What RLlib must log about our environments: every reward term, and which episodes were played with which seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback

from envs.ledger import Ledger

TERMS = "terms"
"""Key of the means in RLlib's results: `result["env_runners"]["terms"][NAME]`."""
EPISODES = "episodes_file"
"""Key in env_config: JSON-lines file that gets a line per started episode; none is written without it."""


class LedgerCallback(RLlibCallback):
    """Empties the environments' ledgers after every sampling."""

    def on_sample_end(self, *, env_runner: Any = None, metrics_logger: Any = None, **kwargs: Any) -> None:
        if env_runner is None or env_runner.env is None:
            return
        path = env_runner.config.env_config.get(EPISODES)
        for ledger in _ledgers(env_runner.env):
            for name, mean in ledger.take_means().items():
                metrics_logger.log_value((TERMS, name), mean, window=1)
            episodes = ledger.take_episodes()
            if path is not None and episodes:
                worker = {"worker": env_runner.worker_index}
                lines = "".join(json.dumps(worker | asdict(episode)) + "\n" for episode in episodes)
                with Path(path).open("a", encoding="utf-8") as file:
                    file.write(lines)


def _ledgers(env: Any) -> Iterator[Ledger]:
    unwrapped = env.unwrapped
    if hasattr(unwrapped, "ledger"):
        yield unwrapped.ledger
    else:
        for single in getattr(unwrapped, "envs", ()):
            yield single.unwrapped.ledger
