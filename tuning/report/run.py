"""Writes `report.html` of a run: what was judged, the states of the mixture, how the policy was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actuators.files import write_atomic
from tuning.report import summary
from tuning.report.learning import EncoderSummary, TrainingPoint
from tuning.report.page import Provenance, render


@dataclass(frozen=True)
class RunData:
    """Everything that the page can show; the page says what is missing.

    Attributes:
        evaluation: content of `evaluation.json`.
        training: rows of the training curve in order.
        encoder: the state encoder and the states of the windows.
        others: contents of further evaluations of the run, of other scenarios or testbeds; each gets a tab.
    """

    evaluation: dict[str, Any]
    training: Sequence[TrainingPoint] = ()
    encoder: EncoderSummary | None = None
    provenance: Provenance = field(default_factory=Provenance)
    others: Sequence[dict[str, Any]] = ()


def write_report(path: Path, run: RunData) -> None:
    """Writes the page atomically. Raises OSError when the folder is missing or full."""
    evaluations = [run.evaluation, *run.others]
    is_single = not run.others
    page = render(
        "run.html.j2",
        run.provenance,
        title=summary.in_words([evaluation["scenario"] for evaluation in evaluations]),
        headline=summary.headline(run.evaluation) if is_single else summary.overall(evaluations),
        lead=summary.subline(run.evaluation) if is_single else "",
        facts=summary.facts(evaluations),
        machine=run.evaluation["machine"],
        evaluations=evaluations,
        training=run.training,
        encoder=run.encoder,
    )
    write_atomic(path, page)
