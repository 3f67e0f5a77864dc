"""The training curve: a row per iteration (`progress.csv`, TensorBoard), and the callback that logs its terms.

The callback logs the means of the reward terms and writes the scenario and seed of every episode to a file.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback

from envs.environment.rewards import Ledger

TERMS = "terms"
"""Key of the means in RLlib's results: `result["env_runners"]["terms"][NAME]`."""
TAKEN = "steps_taken"
"""Key of the steps that each process has taken in a live environment since it began, whether they arrived or not."""
EPISODES = "episodes_file"
"""Key in env_config: JSON-lines file that receives a line per started episode; without it no file is written."""


class LedgerCallback(RLlibCallback):
    """Logs and clears the environments' ledgers after every sampling.

    An env runner on a machine that does not have the run's folder writes no episodes.
    """

    def on_sample_end(self, *, env_runner: Any = None, metrics_logger: Any = None, **kwargs: Any) -> None:
        if env_runner is None or env_runner.env is None:
            return
        path = env_runner.config.env_config.get(EPISODES)
        taken = getattr(env_runner.env.unwrapped, "steps_taken", None)
        if taken is not None:
            metrics_logger.log_value((TAKEN, f"runner {env_runner.worker_index}, process {os.getpid()}"), taken,
                                     reduce="max", window=1)  # fmt: skip
        for ledger in _ledgers(env_runner.env):
            for name, mean in ledger.take_means().items():
                metrics_logger.log_value((TERMS, name), mean, window=1)
            episodes = ledger.take_episodes()
            if path is not None and episodes and Path(path).parent.exists():
                worker = {"worker": env_runner.worker_index}
                lines = "".join(json.dumps(worker | asdict(episode)) + "\n" for episode in episodes)
                with Path(path).open("a", encoding="utf-8") as file:
                    file.write(lines)


_NUMBERS = ("episode_return", "policy_loss", "value_loss", "entropy", "held_out")


@dataclass(frozen=True)
class CurveRow:
    """One training iteration; unknown values are nan.

    Attributes:
        step: environment steps so far; for offline algorithms the number of recorded steps used.
        episode_return: mean over the last finished episodes.
        held_out: mean reward per step on the held-out episodes with the network after this iteration.
        terms: mean of every reward term over the iteration's steps.
    """

    phase: str
    step: int
    episode_return: float
    policy_loss: float
    value_loss: float
    entropy: float
    held_out: float = math.nan
    terms: Mapping[str, float] = field(default_factory=dict)

    def numbers(self) -> Iterator[tuple[str, float]]:
        """Names and values of all numbers of the row, without the step."""
        yield from ((name, getattr(self, name)) for name in _NUMBERS)
        yield from ((f"term_{name}", value) for name, value in sorted(self.terms.items()))


def row_of(phase: str, step: int, result: Mapping[str, Any], held_out: float) -> CurveRow:
    """The row of one `Algorithm.train()` result."""
    learner = result.get("learners", {}).get("default_policy", {})
    sampled = result.get("env_runners", {})
    return CurveRow(
        phase,
        step,
        float(sampled.get("episode_return_mean", math.nan)),
        float(learner.get("policy_loss", math.nan)),
        float(learner.get("vf_loss", learner.get("qf_loss", math.nan))),
        float(learner.get("entropy", math.nan)),
        held_out,
        {name: float(value) for name, value in sampled.get(TERMS, {}).items()},
    )


def as_csv(rows: Sequence[CurveRow]) -> bytes:
    """The contents of `progress.csv`: phase, step and a column per number, empty where it is unknown."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name, _ in row.numbers())
    writer = csv.DictWriter(text, fieldnames=["phase", "step", *columns], restval="")
    writer.writeheader()
    for row in rows:
        known = {name: value for name, value in row.numbers() if not math.isnan(value)}
        writer.writerow({"phase": row.phase, "step": row.step, **known})
    return text.getvalue().encode()


def read_csv(path: Path) -> list[CurveRow]:
    """The rows of a `progress.csv`; empty when the file does not exist."""
    if not path.exists():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            known = {name: float(text) for name, text in line.items() if name not in ("phase", "step") and text}
            terms = {name.removeprefix("term_"): v for name, v in known.items() if name.startswith("term_")}
            figures = {name: known.get(name, math.nan) for name in _NUMBERS}
            rows.append(CurveRow(line["phase"], int(line["step"]), terms=terms, **figures))
    return rows


def _ledgers(env: Any) -> Iterator[Ledger]:
    unwrapped = env.unwrapped
    if hasattr(unwrapped, "ledger"):
        yield unwrapped.ledger
    else:
        for single in getattr(unwrapped, "envs", ()):
            yield single.unwrapped.ledger
