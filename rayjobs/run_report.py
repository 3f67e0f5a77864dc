"""Gathers what a run left and writes its `report.html`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from envs.decision import DecisionProblem
from envs.encoding import Encoder
from envs.observation import Observation
from rayjobs.runs import RunFolder, versions
from tuning.evaluation import Evaluation
from tuning.report import EncoderSummary, Provenance, RunData, TrainingPoint, write_report
from tuning.report_learning import StateVisit
from tuning.training import CurveRow


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
        Provenance(
            (folder.path / "command.txt").read_text().strip(), (folder.path / "config.yaml").read_text(), versions()
        ),
    )
    write_report(path, run)
    return path


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
            )
            for server in range(1)
            for index, observation in enumerate(seen)
        ),
    )
