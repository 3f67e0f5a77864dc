"""The steps that verbs are composed of: observe, train, export, judge; each keeps its results at once.

Keeps what an observation phase says of the mixture's states: `clusters.html`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.script import Scenario
from actuators.contract.testbed import Testbed
from actuators.contract.window import Window
from actuators.errors import DataError
from actuators.files import write_json
from actuators.statistics.recording import SnapshotWriter
from actuators.testbed.live import LiveTestbed
from envs.environment.phase import Observed, ObserveOptions, fit_problem, watch
from envs.heuristics.controllers import Controller
from envs.mixture.fit import Candidate, candidates, window_samples
from envs.mixture.refit import SAMPLES, save_samples
from envs.observation.encoder import EncoderOptions
from envs.scenarios.calibrated import CalibratedScenario, Today
from envs.scenarios.catalogue import Mixture
from envs.scenarios.lookup import training_mixture
from rayjobs.cli.console import console_err
from rayjobs.cli.progress import Progress, StageProgress
from rayjobs.runs.folder import RunFolder
from rayjobs.runs.report import provenance
from rayjobs.runs.testbed import TestbedKind
from tuning.judging.blocks import REMEDY, Journal
from tuning.judging.evaluation import Evaluation, describe_machine
from tuning.judging.judge import Judge, JudgeProgress, Remake
from tuning.judging.parquet import write_results, write_windows
from tuning.judging.plan import JudgeOptions
from tuning.observing.clusters import meaning
from tuning.options import AlgorithmOptions, TrainingOptions
from tuning.policy.worth import note_worth
from tuning.report.clusters import write_cluster_page

if TYPE_CHECKING:
    from tuning.learning.trainer import CurveRow, Trainer
    from tuning.policy.bundle import Bundle


@dataclass(frozen=True)
class Steps:
    """The steps of one run; every result is in the run folder as soon as it exists."""

    folder: RunFolder
    progress: Progress
    seed: int

    def observe(
        self,
        testbed: Testbed,
        watched: Scenario,
        options: ObserveOptions,
        training: TrainingOptions,
        *,
        name: str = "observe",
    ) -> Observed:
        """Watches the testbed under equal weights; writes `snapshots.jsonl` (live), `deadlines.json`, and the
        mixture with what it was fitted to. The deadlines of a recorded system are those of its recording."""
        with self.progress.stage(name) as stage, contextlib.ExitStack() as stack:
            record = self._recorder(testbed, stack)

            def on_window(window: Window, fraction: float) -> None:
                record()
                stage.update(_traffic(window), fraction)

            windows = watch(testbed, watched, training.method, options, self.seed, on_window)
            known_s = watched.twin_of.deadlines_s if isinstance(watched, CalibratedScenario) else None
            observed = fit_problem(windows, testbed.topology, training.decision, options.encoder, self.seed, known_s)
            # Policies that set service times get the number of workers, as an operator would configure it.
            profiles = watched.script(testbed.topology, self.seed).servers
            workers = np.array([float(profile.workers) for profile in profiles])
            observed = replace(observed, problem=replace(observed.problem, workers=workers))
            self._keep(observed)
            stage.update(_found(observed), 1.0)
        for warning in observed.deadlines.warnings:
            console_err().print(f"warning: {warning}", markup=False)
        return observed

    def train(self, observed: Observed, options: TrainingOptions, work_scale: float) -> Trainer:
        """PPO on simulated testbeds of the observed topology, every episode a randomised script."""
        from tuning.learning.trainer import Trainer

        with self.progress.stage("train") as stage:
            trainer = Trainer(observed.problem, options, self.folder.path, self.seed, reporter(stage))
            held_out = training_scenarios(options, work_scale, options.held_out.scenarios)
            trainer.train_simulated(training_scenarios(options, work_scale), held_out)
        return trainer

    def train_live(
        self, trainer: Trainer, testbed: Testbed, watched: Scenario, steps: int, algorithm: AlgorithmOptions
    ) -> None:
        """Goes on with the trained network on the testbed itself for a short stretch."""
        from envs.environment.env import BalancingEnv

        def make_env() -> BalancingEnv:
            return BalancingEnv(
                trainer.problem,
                lambda: testbed,
                lambda seed: watched,
                method=trainer.options.method,
                interval_s=trainer.options.interval_s,
                episode_steps=algorithm.batch_steps,
                closes_testbed=False,
            )

        with self.progress.stage("train live") as stage:
            trainer.report = reporter(stage)
            trainer.train_live(make_env, steps, algorithm)

    def export(self, trainer: Trainer) -> Bundle:
        """Writes `bundle/`."""
        from rayjobs.runs.folder import provenance
        from tuning.policy.bundle import Bundle

        model = trainer.options.model
        bundle = Bundle(trainer.net(), trainer.problem, model, provenance(self.folder, self.seed, trainer.curve))
        bundle.save(self.folder.path / "bundle")
        return bundle

    def judge(
        self,
        testbed: Testbed,
        controllers: Sequence[Controller],
        watched: Scenario,
        deadlines_s: FloatArray,
        options: JudgeOptions,
        *,
        kind: TestbedKind,
        name: str = "judge",
        remake: Remake | None = None,
        peers: Mapping[str, Testbed] | None = None,
    ) -> Evaluation:
        """Runs the blocks that the folder's `blocks.jsonl` does not hold yet, and keeps each there as it ends.

        `evaluation.json` and `windows.parquet` are written even when it is interrupted. Raises DataError when
        something cannot be written.
        """
        journal = Journal(self.folder.path / "blocks.jsonl")
        with self.progress.stage(name) as stage:
            judge = Judge(
                testbed,
                controllers,
                watched,
                deadlines_s,
                options,
                progress=lambda now: stage.update(_block(now), now.index / now.total),
                machine=describe_machine(),
                finished=journal.read(),
                keep=journal.append,
                remake=remake,
                peers=peers,
                kind=kind,
            )
            try:
                return judge.run()
            finally:
                if judge.blocks:
                    self._keep_evaluation(judge.evaluation())

    def _keep_evaluation(self, evaluation: Evaluation) -> None:
        path = self.folder.path / "evaluation.json"
        try:
            content = evaluation.write(path)
            if (self.folder.path / "bundle" / "bundle.json").exists():
                note_worth(self.folder.path / "bundle", content)
            write_windows(evaluation, self.folder.path / "windows.parquet")
            write_results([content], self.folder.path / "evaluation.parquet")
        except OSError as error:
            what = f"the evaluation cannot be kept: {error.strerror}"
            raise DataError(what, where=str(path), remedy=REMEDY) from error

    def _recorder(self, testbed: Testbed, stack: contextlib.ExitStack) -> Callable[[], None]:
        if not isinstance(testbed, LiveTestbed):
            return lambda: None
        writer = stack.enter_context(SnapshotWriter(self.folder.path / "snapshots.jsonl"))

        def record() -> None:
            snapshot = testbed.latest_snapshot()
            if snapshot is not None:
                writer.write(snapshot)

        return record

    def _keep(self, observed: Observed) -> None:
        problem = observed.problem
        problem.encoder.save(self.folder.path / "encoder.npz")
        watched = [*observed.windows.equal, *observed.windows.exploring]
        encoder = problem.encoder
        samples = window_samples(watched, problem.topology, problem.deadlines_s, encoder.kind, encoder.features_version)
        save_samples(self.folder.path / SAMPLES, samples, problem.encoder.names)
        types = problem.topology.request_types
        deadlines = observed.deadlines
        write_json(
            self.folder.path / "deadlines.json",
            {
                "deadlines_ms": dict(zip(types, (deadlines.seconds * 1e3).tolist(), strict=True)),
                "mean_ms": dict(zip(types, (deadlines.mean_s * 1e3).tolist(), strict=True)),
                "deviation_ms": dict(zip(types, (deadlines.deviation_s * 1e3).tolist(), strict=True)),
                "requests": dict(zip(types, deadlines.requests.tolist(), strict=True)),
                "warnings": list(deadlines.warnings),
                "bic": observed.problem.encoder.bic,
                "clusters": observed.problem.encoder.clusters,
            },
        )


def training_scenarios(options: TrainingOptions, work_scale: float, names: Sequence[str] = ()) -> Mixture:
    """Randomised variants of the named scenarios, or of those to train on; raises ConfigError for an unknown name."""
    return training_mixture(names or options.scenarios, options.script_s, work_scale)


def today_of(scenario: Scenario) -> Today | None:
    """What balances a recorded system today; None for a scenario of the catalogue."""
    return scenario.today if isinstance(scenario, CalibratedScenario) else None


def _traffic(window: Window) -> str:
    rate_rps = window.requests.sum() / max(window.duration_s, 1e-3)
    mean_ms = window.response_ms_sum.sum() / max(int(window.requests.sum()), 1)
    faults = f", {len(window.faults)} faults" if window.faults else ""
    return f"{rate_rps:.0f} requests/s, mean {mean_ms:.1f} ms{faults}"


def _found(observed: Observed) -> str:
    deadlines = ", ".join(
        f"{group.request_type} {1e3 * seconds:.0f} ms"
        for group, seconds in zip(observed.problem.topology.groups, observed.deadlines.seconds, strict=True)
    )
    return f"deadlines: {deadlines}; {observed.problem.encoder.clusters} clusters by BIC"


def reporter(stage: StageProgress) -> Callable[[CurveRow, int], None]:
    """What a Trainer calls, for a stage."""

    def report(row: CurveRow, steps: int) -> None:
        stage.update(f"{row.step} of {steps} steps, return {row.episode_return:.2f}", row.step / steps)

    return report


def _block(now: JudgeProgress) -> str:
    return f"round {now.planned.round + 1}, {now.planned.policy}: {now.phase} for {now.phase_s:g} s"


PAGE = "clusters.html"


def keep_states(folder: RunFolder, observed: Observed, options: EncoderOptions, seed: int) -> tuple[Candidate, ...]:
    """Writes the page; the numbers of clusters that there were to choose from.

    Args:
        options, seed: as the mixture was fitted with.
    """
    problem, windows = observed.problem, [*observed.windows.equal, *observed.windows.exploring]
    topology, deadlines_s, encoder = problem.topology, problem.deadlines_s, problem.encoder
    samples = window_samples(windows, topology, deadlines_s, encoder.kind, encoder.features_version)
    tried = candidates(samples, options, seed, encoder.names)
    meanings = meaning(windows, topology, deadlines_s, encoder)
    write_cluster_page(folder.path / PAGE, meanings, tried, provenance(folder), observed.deadlines.warnings)
    return tried
