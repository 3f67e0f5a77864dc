"""The table of a sweep's trials: which one is the best."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from tuning.search.sweep import trial_table


def result(name: str, score: float | None, error: Exception | None = None) -> SimpleNamespace:
    """Stands for Tune's Result."""
    metrics = {} if score is None else {"score": score}
    return SimpleNamespace(
        path=f"/there/{name}", metrics=metrics, config={}, metrics_dataframe=None, checkpoint=None, error=error
    )


def test_a_failed_trial_is_behind_all_that_ended() -> None:
    broke = ValueError("it broke")
    results = [
        result("trial-failed", 0.9, broke), result("trial-worse", 0.1), result("trial-best", 0.2),
        result("trial-none", None, broke),
    ]  # fmt: skip
    table = trial_table(cast("Any", results), {})
    assert list(table["trial"]) == ["trial-best", "trial-worse", "trial-failed", "trial-none"]
    assert "failed" not in table
