"""Gathers what a run left and writes its `report.html`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from envs.environment.problem import DecisionProblem
from envs.observation.encoder import Encoder
from envs.observation.observer import Observation
from rayjobs.runs.folder import RunFolder, versions
from tuning.judging.evaluation import Evaluation
from tuning.judging.parquet import write_results
from tuning.learning.trainer import CurveRow
from tuning.report.learning import StateVisit
from tuning.report.write import EncoderSummary, Provenance, RunData, TrainingPoint, write_report


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
        _encoder(problem.encoder, seen, evaluation.interval_s),
        _provenance(folder),
    )
    write_report(path, run)
    return path


def write_evaluation_report(folder: RunFolder, evaluations: Sequence[Evaluation]) -> Path:
    """Writes the page of an evaluation of one or several scenarios; its path."""
    path = folder.path / "report.html"
    first, *others = [evaluation.to_json() for evaluation in evaluations]
    write_report(path, RunData(first, provenance=_provenance(folder), others=others))
    write_results([first, *others], folder.path / "evaluation.parquet")
    return path


def _provenance(folder: RunFolder) -> Provenance:
    command, config = (folder.path / name for name in ("command.txt", "config.yaml"))
    return Provenance(command.read_text().strip(), config.read_text(), versions())


def _encoder(encoder: Encoder, seen: Sequence[Observation], interval_s: float) -> EncoderSummary:
    return EncoderSummary(
        features=encoder.names,
        means=tuple(tuple(row) for row in encoder.means.tolist()),
        shares=tuple(encoder.weights.tolist()),
        bic=tuple(sorted(encoder.bic.items())),
        visits=tuple(
            StateVisit(
                index * interval_s,
                tuple(observation.posterior[server].tolist()),
                bool(observation.novelty[server] > 1),
                name,
            )
            for server, name in enumerate(_rows(encoder, seen))
            for index, observation in enumerate(seen)
        ),
    )


def _rows(encoder: Encoder, seen: Sequence[Observation]) -> list[str]:
    """A row per server that has a state of its own; a joint mixture has one state for all, and no name."""
    if encoder.kind == "joint" or not seen:
        return [""]
    return [f"server {number}" for number in range(1, len(seen[0].posterior) + 1)]
