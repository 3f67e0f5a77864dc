"""Writes `report.html`: one self-contained page about a run, made to be looked at without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actuators.files import write_atomic
from tuning.report.document import Provenance
from tuning.report.learning import EncoderSummary, TrainingPoint
from tuning.report.page import render_page

__all__ = ["EncoderSummary", "Provenance", "RunData", "TrainingPoint", "write_report"]


@dataclass(frozen=True)
class RunData:
    """Everything that the page can show; what is missing is said on the page.

    Attributes:
        evaluation: content of `evaluation.json`.
        training: rows of the training curve in order.
        encoder: the state encoder and the states it saw.
        others: contents of further evaluations of the run, of other scenarios or testbeds.
    """

    evaluation: dict[str, Any]
    training: Sequence[TrainingPoint] = ()
    encoder: EncoderSummary | None = None
    provenance: Provenance = field(default_factory=Provenance)
    others: Sequence[dict[str, Any]] = ()


def write_report(path: Path, run: RunData) -> None:
    """Writes the page atomically. Raises OSError when the folder is missing or full."""
    page = render_page([run.evaluation, *run.others], run.training, run.encoder, run.provenance)
    write_atomic(path, page)
