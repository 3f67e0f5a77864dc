"""The bench of learned late binding: a repeated run goes on from its trainings, and only what was proven is judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayjobs.bench.holding_rl import Experiment
from rayjobs.bench.parts.bars import BenchContext

pytestmark = pytest.mark.thorough


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_repeated_run_goes_on_from_what_it_has(tmp_path: Path) -> None:
    said: list[str] = []
    context = BenchContext(1, True, tmp_path / "work", said.append, tmp_path)
    first = list(Experiment(context).bars())
    trained = sum("training" in line for line in said)
    again = list(Experiment(context).bars())
    assert trained == sum("training" in line for line in said) == 1
    assert [bar.value for bar in first] == [bar.value for bar in again]
    (judged,) = (bar for bar in first if bar.limit is not None)
    assert judged.bar == "as proven: J better by"
    assert "22 fresh episodes" in judged.how
