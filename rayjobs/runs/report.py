"""Gathers what a run left and writes its `report.html`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from envs.environment.problem import DecisionProblem
from envs.observation.observer import Observation
from rayjobs.runs.folder import RunFolder, versions
from tuning.judging.evaluation import Evaluation
from tuning.judging.parquet import write_results
from tuning.report.learning import EncoderSummary, TrainingPoint
from tuning.report.page import Provenance
from tuning.report.run import RunData, write_report

if TYPE_CHECKING:
    from tuning.learning.curve import CurveRow


def write_run_report(
    folder: RunFolder,
    evaluation: Evaluation,
    curve: Sequence[CurveRow],
    problem: DecisionProblem,
    seen: Sequence[Observation],
) -> Path:
    """Writes the page; its path.

    Args:
        seen: observations of the learned policy while it was judged, in order.
    """
    path = folder.path / "report.html"
    run = RunData(
        evaluation.to_json(),
        [TrainingPoint(row.step, row.episode_return, row.phase) for row in curve if np.isfinite(row.episode_return)],
        _encoder(problem, seen, evaluation.interval_s),
        provenance(folder),
    )
    write_report(path, run)
    return path


def write_evaluation_report(folder: RunFolder, evaluations: Sequence[Evaluation]) -> Path:
    """Writes the page of an evaluation of one or several scenarios; its path."""
    path = folder.path / "report.html"
    first, *others = [evaluation.to_json() for evaluation in evaluations]
    write_report(path, RunData(first, provenance=provenance(folder), others=others))
    write_results([first, *others], folder.path / "evaluation.parquet")
    return path


def provenance(folder: RunFolder) -> Provenance:
    """How to repeat the run, from what its folder holds."""
    command, config = (folder.path / name for name in ("command.txt", "config.yaml"))
    return Provenance(command.read_text().strip(), config.read_text(), versions())


def _encoder(problem: DecisionProblem, seen: Sequence[Observation], interval_s: float) -> EncoderSummary:
    encoder = problem.encoder
    rows = 1 if encoder.kind == "joint" or not seen else len(seen[0].posterior)
    labels = [
        [(index * interval_s, one.posterior[row], float(one.novelty[row])) for index, one in enumerate(seen)]
        for row in range(rows)
    ]
    return EncoderSummary.of(encoder, encoder.weights, labels)
