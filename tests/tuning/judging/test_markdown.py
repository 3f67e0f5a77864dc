"""Several evaluations in one table: rows of several testbeds are told apart, and each testbed has its own mean."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import pytest
from rich.console import Console

from tests.support.paths import DATA
from tuning.judging.markdown import results_markdown
from tuning.judging.tables import print_means


def judged(scenario: str, testbed: str, ratio: float) -> dict[str, Any]:
    """An evaluation in which `expected_delay` has this ratio to `least_conn`."""
    content: dict[str, Any] = copy.deepcopy(json.loads((DATA / "runs" / "evaluation.json").read_bytes()))
    policy = content["policies"]["expected_delay"]
    policy["ratios"] = dict.fromkeys(policy["ratios"], ratio)
    policy["intervals"] = {metric: [ratio * 0.9, ratio / 0.9] for metric in policy["intervals"]}
    return {**content, "scenario": scenario, "testbed": testbed}


SEVERAL = [judged("S2", "live", 0.5), judged("S2", "simulated", 0.9), judged("S3", "simulated", 0.4)]


def rows(evaluations: list[dict[str, Any]]) -> list[list[str]]:
    text = results_markdown(evaluations, ["mean_ms"])
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]


def test_every_testbed_has_its_own_rows_and_mean() -> None:
    found = rows(SEVERAL)
    assert [row[0] for row in found] == ["S2, live", "S2, simulated", "S3, simulated", "geometric mean, simulated"]
    assert found[-1][2].startswith("**0.60×**")  # sqrt(0.9 · 0.4)


def test_one_testbed_needs_no_label() -> None:
    assert [row[0] for row in rows(SEVERAL[1:])] == ["S2", "S3", "geometric mean"]
    assert [row[0] for row in rows(SEVERAL[:1])] == ["S2"]


@pytest.mark.parametrize(("evaluations", "printed"), [(SEVERAL, 1), (SEVERAL[1:], 1), (SEVERAL[:2], 0)])
def test_evaluate_prints_the_mean_over_several_scenarios(evaluations: list[dict[str, Any]], printed: int) -> None:
    out = io.StringIO()
    print_means(evaluations, Console(file=out, width=120))
    told = out.getvalue()
    assert told.count("geometric mean over 2 scenarios, simulated: × least_conn") == printed
    assert told.count("expected_delay") == printed
    assert told.count("0.60× 0.") == 4 * printed
    assert "live" not in told
