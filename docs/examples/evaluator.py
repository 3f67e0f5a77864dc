"""Scores a rule like initial_rule.py in seconds: 0 is NGINX's least_conn, 1 an oracle that no NGINX can have.

Program search (OpenEvolve and others) calls `evaluate(path)`. The score is that of `deepsched benchmark social-1`.

python docs/examples/evaluator.py docs/examples/initial_rule.py [held-out]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from envs.study.benchmark import SUITES, play_suite, points, reference
from envs.study.program import program_rule

SUITE = SUITES["social-1"]
"""Another version has another name; scores of different versions cannot be compared."""


def evaluate(program_path: str, seeds: Sequence[int] = SUITE.search_seeds) -> dict[str, float]:
    """The `score`, its parts `goodput` and `index` (J), and the latter for each scenario.

    The file is executed anew for every scenario and seed, which share neither memory nor global variables.
    """
    rule = program_rule(Path(program_path))
    played = play_suite(SUITE, lambda scenario, topology: rule, seeds)
    found = points(SUITE, played, *(reference(SUITE, name, tuple(seeds)) for name in ("least_conn", "oracle")))
    return {"score": found.total, "goodput": found.goodput, "index": found.index, **found.scenarios}


if __name__ == "__main__":
    chosen = SUITE.held_out_seeds if "held-out" in sys.argv[2:] else SUITE.search_seeds
    for name, value in evaluate(sys.argv[1], chosen).items():
        print(f"{name}: {value:.3f}")
