"""The verdicts on measured numbers, and what the matrix says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayjobs.contract.checks import (
    CHECKS,
    Judged,
    Verdict,
    judge_back,
    judge_change,
    judge_cold,
    judge_failing,
    judge_fair,
    judge_slow,
    judge_unused,
    not_applicable,
)
from rayjobs.contract.page import headline, markdown, write_page


def counts(*servers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(servers, dtype=np.int64)


@pytest.mark.parametrize(
    ("seconds", "state"),
    [
        ([counts(100, 100, 100)] * 3, "pass"),
        ([counts(105, 105, 90)] * 3, "pass"),
        ([counts(110, 105, 85)] * 3, "fail"),
        # The sums are fair, but in one second one server has none.
        ([counts(100, 100, 100), counts(0, 100, 100), counts(200, 100, 100)], "fail"),
        ([counts(0, 0, 0)], "fail"),
    ],
)
def test_every_server_needs_nine_tenths_of_a_fair_share_and_a_request_in_every_second(
    seconds: list[np.ndarray[tuple[int], np.dtype[np.int64]]], state: str
) -> None:
    assert judge_fair(seconds).state == state


def test_limits_are_those_of_the_contract() -> None:
    assert judge_failing(20, 1000).state == "pass"
    assert judge_failing(21, 1000).state == "fail"
    assert judge_failing(0, 0).state == "fail"
    assert judge_slow(120.0, 100.0, lost=0).state == "pass"
    assert judge_slow(121.0, 100.0, lost=0).state == "fail"
    assert judge_slow(100.0, 100.0, lost=1).state == "fail"
    assert judge_slow(float("nan"), 100.0, lost=0).state == "fail"
    assert judge_back(0.9, 1.0).state == "pass"
    assert judge_back(0.89, 1.0).state == "fail"
    assert judge_back(None, None).state == judge_cold(None, 4).state == "fail"
    assert judge_cold(4, 4).state == "pass"
    assert (judge_unused("cold", 0.02).state, judge_unused("cold", 0.02).figure) == (
        "fail", "had 0.02 of fair before its fault",
    )  # fmt: skip
    assert judge_cold(5, 4).state == "fail"
    assert judge_change("weights", 1000, "", 0, 4).state == "pass"
    assert judge_change("weights", 1000, "status_5xx 1", 0, 4).state == "fail"
    assert judge_change("reload", 1000, "", 1, 4).state == "fail"


def judged(name: str, *failed: str) -> Judged:
    verdicts = [Verdict(check.key, "fail" if check.key in failed else "pass", "1 < 2 & 3") for check in CHECKS]
    verdicts[-1] = not_applicable("reload", "no command <was> given")
    return Judged(name, "a proxy", True, tuple(verdicts), 1.0)


def test_the_matrix_says_who_passes_and_what_was_measured(tmp_path: Path) -> None:
    rows = [judged("ours"), judged("other", "slow", "back")]
    assert headline(rows) == "1 of 2 proxies pass every check that applies to them: ours"
    assert headline(rows[:1]) == "ours passes all 6"
    assert headline(rows[1:]) == "other fails: Return, Slow server"
    text = markdown(rows)
    assert "| `ours` | pass | pass | pass | pass | pass | pass | n/a |" in text
    assert "- `other`, slow server: 1 < 2 & 3" in text
    path = tmp_path / "contract.html"
    write_page(path, rows, "three servers", "deepsched contract", "seed: 1\n", {"commit": "abc"})
    page = path.read_text()
    assert page.count("<td data-label=") == len(rows) * len(CHECKS)
    assert "no command &lt;was&gt; given" in page
    assert page.count('class="bad">FAIL') == 2


def test_a_result_can_be_read_back() -> None:
    result = judged("ours", "fair")
    assert Judged.from_json(result.to_json()) == result
