"""Scores a rule like initial_rule.py in seconds: 0 is NGINX's least_conn, 1 an oracle that no NGINX can have.

Program search (OpenEvolve and others) calls `evaluate(path)`. Every rule meets the same arrivals and the same work.

python docs/examples/evaluator.py docs/examples/initial_rule.py [held-out]
"""

import sys
from collections.abc import Sequence
from functools import cache
from runpy import run_path
from typing import Any

import numpy as np

from actuators.contract.script import Script
from actuators.contract.topology import social_network
from envs.scenarios.lookup import scenario
from envs.simulator.batch import SimulatedBatch
from envs.simulator.window_batch import WindowBatch
from envs.study.judge import Score, judge
from envs.study.rules import BatchController, Rule

VERSION = 1
"""Scores of different versions cannot be compared."""
SCENARIOS = ("S2b", "S3", "S4", "S7", "S10")
"""Unequal servers, specialised ones, a noisy neighbour, crashes, servers that slow down in turn."""
SECONDS = 120.0
SEEDS, HELD_OUT_SEEDS = range(1, 5), range(1001, 1011)
"""What a search may look at, and what its winner is judged on once."""
TOPOLOGY = social_network()


def evaluate(program_path: str, seeds: Sequence[int] = SEEDS) -> dict[str, float]:
    """The `score`, and it for each scenario; `goodput` is the share of requests inside their deadlines."""
    function = run_path(program_path)["weights"]
    rule = Rule("searched", "least_conn", lambda: _steered(function))
    found, goodput = {}, []
    for name in SCENARIOS:
        score = _score(rule, name, seeds)
        base, best = _reference("least_conn", name, tuple(seeds)), _reference("shortest_delay", name, tuple(seeds))
        found[name] = float(np.log(base.index / score.index) / np.log(base.index / best.index))
        goodput.append(score.goodput)
    return {"score": float(np.mean(list(found.values()))), "goodput": float(np.mean(goodput)), **found}


def _steered(function: Any) -> BatchController:
    memory: dict[str, Any] = {}

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        if window is None:
            return
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_s = window.response_ms_sum / 1e3 / np.where(window.requests > 0, window.requests, np.nan)
        seen = {
            "requests": window.requests, "errors": window.responses[..., 4], "response_s": mean_s,
            "in_flight": window.active,
        }  # fmt: skip
        shares = np.asarray(function(seen, memory), dtype=float)
        if shares.shape != window.requests.shape or not (np.isfinite(shares) & (shares > 0)).all():
            raise ValueError(f"weights must be positive numbers of shape {window.requests.shape}")
        batch.set_weights(np.rint(np.clip(100 * shares / shares.max(axis=-1, keepdims=True), 1, 100)).astype(np.int64))

    return steer


def _score(rule: Rule, name: str, seeds: Sequence[int]) -> Score:
    return judge(rule, scenario(name, duration_s=SECONDS), TOPOLOGY, seeds)


@cache
def _reference(method: Any, name: str, seeds: tuple[int, ...]) -> Score:
    return _score(Rule(method, method), name, seeds)


if __name__ == "__main__":
    for name, value in evaluate(sys.argv[1], HELD_OUT_SEEDS if "held-out" in sys.argv[2:] else SEEDS).items():
        print(f"{name}: {value:.3f}")
