"""A rule as one plain function: each system is a call with its own memory, and no system learns of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from actuators.contract.topology import social_network
from envs.scenarios.lookup import scenario
from envs.study.judge import judge_each
from envs.study.program import program_rule

TOPOLOGY = social_network()
PLAYED = scenario("S3", 20.0)

COUNTS_IN_MEMORY = """
import numpy as np
def weights(seen, memory):
    memory["calls"] = memory.get("calls", 0) + 1
    return np.linspace(1.0, 1.0 + memory["calls"], seen["requests"].size).reshape(seen["requests"].shape)
"""
COUNTS_IN_A_GLOBAL_VARIABLE = """
import numpy as np
CALLS = []
def weights(seen, memory):
    CALLS.append(1)
    return np.linspace(1.0, 1.0 + len(CALLS), seen["requests"].size).reshape(seen["requests"].shape)
"""
AVERAGES_OVER_ALL_THAT_IT_SEES = """
import numpy as np
def weights(seen, memory):
    count = seen["requests"]
    count = count if count.base is None else count.base
    return 1.0 + count.reshape(-1, 3, 3).mean(axis=0)
"""
CHANGES_WHAT_IT_SEES = """
import numpy as np
def weights(seen, memory):
    shares = 1.0 + seen["in_flight"]
    for values in seen.values():
        values[...] = 7
    return shares
"""
CHECKS_SHAPES = """
import numpy as np
def weights(seen, memory):
    assert sorted(seen) == ["errors", "in_flight", "requests", "response_s"]
    assert {values.shape for values in seen.values()} == {(3, 3)}
    return np.ones((3, 3))
"""


PROGRAMS = {
    "memory": COUNTS_IN_MEMORY,
    "global": COUNTS_IN_A_GLOBAL_VARIABLE,
    "average": AVERAGES_OVER_ALL_THAT_IT_SEES,
    "change": CHANGES_WHAT_IT_SEES,
    "shapes": CHECKS_SHAPES,
}


@pytest.mark.parametrize("text", PROGRAMS.values(), ids=PROGRAMS)
def test_a_system_has_the_same_result_alone_and_beside_others(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rule.py"
    path.write_text(text)
    rule = program_rule(path)
    alone = [judge_each(rule, PLAYED, TOPOLOGY, (seed,))[0] for seed in (1, 2, 3)]
    assert list(judge_each(rule, PLAYED, TOPOLOGY, (1, 2, 3))) == alone
    assert list(judge_each(rule, PLAYED, TOPOLOGY, (3, 1)))[::-1] == [alone[0], alone[2]]


def test_memory_and_global_variables_matter_within_a_system(tmp_path: Path) -> None:
    """Without memory between the calls, weights would stay those of the first one."""
    results = []
    for name, text in (
        ("memory", COUNTS_IN_MEMORY),
        ("global", COUNTS_IN_A_GLOBAL_VARIABLE),
        ("forgets", COUNTS_IN_MEMORY.replace("memory.get", "{}.get")),
    ):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        results.append(judge_each(program_rule(path), PLAYED, TOPOLOGY, (1,)))
    assert results[0] == results[1] != results[2]
