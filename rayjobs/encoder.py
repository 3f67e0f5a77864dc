"""`deepsched encoder check|recalibrate|rollback`: whether a state encoder still fits, and a new one when it does not.

A recalibrated encoder is refitted to old and new samples, proven on held-out windows and swapped in; the previous one
is kept. `steer recalibrate` refits a bundle to an audit log instead, without a proof.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from actuators.errors import BundleError, ConfigError, ConflictError
from actuators.files import exclusive, write_atomic
from actuators.options import GIVEN, Only, Options
from rayjobs.cli.console import console_err, console_out
from rayjobs.cli.main import Verb, main
from rayjobs.cli.progress import Progress, Stage, StageProgress
from rayjobs.runs.folder import RunFolder
from rayjobs.runs.joining import RayOptions
from rayjobs.runs.recordings import read_windows, windows_of

if TYPE_CHECKING:
    from actuators.contract.arrays import FloatArray
    from envs.mixture.refit import RefitProof
    from envs.observation.encoder import Encoder
    from tuning.options import TrainingOptions
    from tuning.policy.bundle import Bundle
    from tuning.policy.model import EquivariantNet

EXIT_RECALIBRATE = 3
EXIT_NOT_PROVEN = 4
ENCODER, BUNDLE, PREVIOUS = "encoder.npz", "bundle.json", "previous"
_FURTHER, _STEPS_PER_S = "train further", 1500
"""A stage, and how many environment steps train in a second, roughly; only for the display."""


class RollbackOptions(Options):
    """Which encoder."""

    bundle: Path
    """A bundle, or the folder of an earlier `observe`."""


class CheckOptions(RollbackOptions):
    """Which encoder is compared with which windows."""

    snapshots: Path
    """A file that `deepsched collect` recorded, or the folder of a run that kept `snapshots.jsonl`."""
    novel_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of novel windows up to which an encoder fits."""


class RecalibrateOptions(CheckOptions, RayOptions):
    """Which encoder is refitted to which windows."""

    only: ClassVar = {"address": Only(retrain_steps=GIVEN)}

    seed: int = Field(default=1, ge=0)
    """Fixes the mixture's start and everything random in further training."""
    retrain_steps: int = Field(default=0, ge=0)
    """Environment steps for which a bundle's policy is trained further on simulated testbeds; 0 leaves it as it is."""
    work_scale: Annotated[float, Field(gt=0), Only(retrain_steps=GIVEN)] = 2.0
    """Factor on the work of the scenarios of further training; 2 as on live testbeds."""
    out: Annotated[Path | None, Only(retrain_steps=GIVEN)] = None
    """Folder for the run folder of further training; `runs` when not given."""


def check_encoder(options: CheckOptions) -> int:
    """Prints how many windows are novel, and their share as a Prometheus line; 3 when recalibration is needed."""
    from envs.mixture.novelty import check, load_known

    folder, snapshots = options.bundle, options.snapshots
    with Progress([Stage("read", None), Stage("compare", None)]) as progress:
        with progress.stage("read"):
            _, topology, _ = windows_of(snapshots)
            topology, encoder, deadlines_s = load_known(folder, topology)
            windows = read_windows(snapshots, topology)
        with progress.stage("compare") as stage:
            stage.update(f"{len(windows)} windows")
            novelty = check(windows, topology, encoder, deadlines_s)
    needed = novelty.share > options.novel_share
    out = console_out()
    out.print(f"{novelty.novel} of {novelty.windows} windows are novel, typical novelty {novelty.typical:.2f}")
    out.print(f"deepsched_novel_window_share {novelty.share:.4f}")
    limit = f"the limit is {options.novel_share:.0%}"
    if needed:
        warning = f"recalibrate: {novelty.share:.0%} of the windows are novel; {limit}"
        console_err().print(f"warning: {warning}", markup=False)
        out.print(f"deepsched encoder recalibrate {folder} --snapshots {snapshots}", markup=False, soft_wrap=True)
    else:
        out.print(f"the encoder fits; {limit}", markup=False)
    return EXIT_RECALIBRATE if needed else 0


def recalibrate_encoder(options: RecalibrateOptions) -> int:
    """Refits, proves on held-out windows, and swaps; 4 when the new mixture is not proven and the old one stays."""
    further = [Stage(_FURTHER, options.retrain_steps / _STEPS_PER_S)] if options.retrain_steps else []
    stages = [Stage("read", None), Stage("refit", None), *further]
    with _alone(options.bundle), Progress(stages) as progress:
        return _recalibrate(options, progress)


def _recalibrate(options: RecalibrateOptions, progress: Progress) -> int:
    import numpy as np

    from envs.mixture.fit import window_samples
    from envs.mixture.novelty import FIRST_WINDOWS, load_known
    from envs.mixture.refit import recalibrate

    folder, snapshots = options.bundle, options.snapshots
    with progress.stage("read"):
        _, topology, _ = windows_of(snapshots)
        topology, old, deadlines_s = load_known(folder, topology)
        windows = [w for w in read_windows(snapshots, topology) if w.usable and w.requests.any()]
        flat = window_samples(windows, topology, deadlines_s, old.kind, old.features_version)
    rows = topology.shape[1] if old.kind == "server" else 1
    new = flat.reshape(-1, rows, flat.shape[1])[FIRST_WINDOWS:]
    with progress.stage("refit") as stage:
        stage.update(f"{len(new)} new windows")
        known = _known(folder, old, options.seed)
        fresh, proof = recalibrate(old, known, new, options.novel_share, options.seed)
    _print_proof(old, fresh, proof)
    if not proof.proven:
        for reason in proof.reasons:
            console_err().print(f"warning: not proven: {reason}", markup=False)
        console_out().print(f"the old encoder stays in {folder}", markup=False, soft_wrap=True)
        return EXIT_NOT_PROVEN
    samples = np.concatenate([known, new.reshape(-1, flat.shape[1])])
    if (folder / BUNDLE).exists():
        _swap_bundle(options, folder, fresh, samples, progress)
    else:
        _swap_encoder(folder, fresh, samples)
    console_out().print(f"the new encoder is in {folder}; undo: deepsched encoder rollback {folder}", markup=False,
                    soft_wrap=True)  # fmt: skip
    return 0


def roll_back(options: RollbackOptions) -> int:
    """Restores the encoder (and policy) from before the last recalibration. Raises BundleError when none is kept."""
    with _alone(options.bundle):
        return _roll_back(options)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One change of the folder at a time: the second one would silently undo the first. Raises ConfigError."""
    real = folder.resolve()
    with contextlib.ExitStack() as stack:
        try:
            if real.is_dir():
                # Beside the folder, which is exchanged for another.
                stack.enter_context(exclusive(real.with_name(f".{real.name}.lock"), 0.0))
        except ConflictError:
            what, remedy = "another process recalibrates this or rolls it back", "wait for it, then look"
            raise ConfigError(what, where=str(folder), remedy=remedy) from None
        yield


def _roll_back(options: RollbackOptions) -> int:
    from envs.mixture.refit import SAMPLES, load_samples
    from envs.observation.encoder import Encoder

    folder = options.bundle
    if (folder / BUNDLE).exists():
        from tuning.policy.bundle import roll_back as roll_bundle_back

        roll_bundle_back(folder)
    else:
        kept = Encoder.load(folder / PREVIOUS / ENCODER)
        earlier = folder / PREVIOUS / SAMPLES
        _swap_encoder(folder, kept, load_samples(earlier, kept.names) if earlier.exists() else None)
    console_out().print(f"the previous encoder is restored in {folder}", markup=False, soft_wrap=True)
    return 0


def _known(folder: Path, encoder: Encoder, seed: int) -> FloatArray:
    """The samples that the old mixture was fitted to; draws from the mixture itself when they are not kept."""
    from envs.mixture.refit import SAMPLES, drawn_samples, load_samples

    if (folder / SAMPLES).exists():
        return load_samples(folder / SAMPLES, encoder.names)
    beside = folder.absolute().parent / SAMPLES
    if (folder / BUNDLE).exists() and beside.exists():
        # A bundle is exported beside the samples of its run; after a move, those of another run may be there.
        with contextlib.suppress(BundleError):
            return load_samples(beside, encoder.names)
    console_err().print(
        "warning: the encoder's samples are not kept; draws from the encoder replace them", markup=False
    )
    return drawn_samples(encoder, seed)


def _print_proof(old: Encoder, fresh: Encoder, proof: RefitProof) -> None:
    for line in (
        f"clusters: {old.clusters} before, {fresh.clusters} now",
        f"held-out new windows: {proof.novel_before:.0%} novel before, {proof.novel:.0%} now; "
        f"log likelihood per sample {proof.gained:+.2f}",
        f"held-out old samples: log likelihood per sample {-proof.forgotten:+.2f}",
        f"stability over seeds and resamples: {proof.stability:.2f} (adjusted Rand index)",
    ):
        console_out().print(line, markup=False)


def _swap_encoder(folder: Path, fresh: Encoder, samples: FloatArray | None) -> None:
    """In the folder of an observation: keeps the old files in `previous/`, then writes the new ones atomically."""
    from envs.mixture.refit import SAMPLES, save_samples

    old = {name: (folder / name).read_bytes() for name in (ENCODER, SAMPLES) if (folder / name).exists()}
    (folder / PREVIOUS).mkdir(exist_ok=True)
    for name, content in old.items():
        write_atomic(folder / PREVIOUS / name, content)
    if samples is not None:
        save_samples(folder / SAMPLES, samples, fresh.names)
    fresh.save(folder / ENCODER)


def _swap_bundle(
    options: RecalibrateOptions, folder: Path, fresh: Encoder, samples: FloatArray, progress: Progress
) -> None:
    """Widens the policy to the new mixture, and trains it further for `retrain_steps`."""
    from envs.mixture.refit import SAMPLES, save_samples
    from tuning.policy.bundle import check_bundle, load_bundle, swap_in
    from tuning.policy.warm_start import widened

    bundle = load_bundle(check_bundle(folder))
    problem = replace(bundle.problem, encoder=fresh)
    warm = replace(bundle, net=widened(bundle.net, bundle.model, bundle.problem, problem), problem=problem)
    note = {"snapshots": str(options.snapshots), "clusters": fresh.clusters, "retrain_steps": options.retrain_steps}
    if options.retrain_steps:
        with progress.stage(_FURTHER) as stage:
            net, run = _retrained(options, warm, stage)
        warm = replace(warm, net=net)
        note["run"] = str(run)
    history = [*warm.provenance.get("recalibrations", []), note]
    warm = replace(warm, provenance={**warm.provenance, "recalibrations": history})

    def fill(place: Path) -> None:
        warm.save(place)
        save_samples(place / SAMPLES, samples, fresh.names)

    swap_in(folder, fill)


def _retrained(options: RecalibrateOptions, warm: Bundle, stage: StageProgress) -> tuple[EquivariantNet, Path]:
    """The network after further training with the bundle's own options, and the folder of that run."""
    from rayjobs.runs.local_ray import ray_session
    from rayjobs.runs.steps import reporter, training_scenarios
    from tuning.learning.trainer import Trainer
    from tuning.policy.model import learning_net

    training = training_of(warm, options.retrain_steps)
    folder = RunFolder.create(options.out, "recalibrate", options.seed, options)
    with ray_session(address=options.address):
        start = learning_net(warm.net, warm.problem, warm.model)
        trainer = Trainer(warm.problem, training, folder.path, options.seed, reporter(stage), start=start)
        held_out = training_scenarios(training, options.work_scale, training.held_out.scenarios)
        trainer.train_simulated(training_scenarios(training, options.work_scale), held_out)
    if trainer.proof is not None:
        console_err().print(trainer.proof.summary(), markup=False, soft_wrap=True)
    return trainer.net(), folder.path


def training_of(bundle: Bundle, steps: int) -> TrainingOptions:
    """The options that a bundle was trained with, for other steps.

    Raises ConfigError for a policy that was learned from records, whose observations a new mixture changes.
    """
    from tuning.options import AlgorithmOptions, TrainingOptions

    config: dict[str, Any] = bundle.provenance.get("config") or {}
    # The method and the interval stand beside the training; bundles of 0.1 have them in it.
    saved: dict[str, Any] = {**config, **(config.get("training") or {})}
    if (algorithm := AlgorithmOptions.model_validate(saved.get("algorithm", {}))).offline:
        what = f"{algorithm.name} learned this policy from records, not on simulated testbeds"
        remedy = "leave it out, or train from newer records: deepsched train --records"
        raise ConfigError(what, where="--retrain-steps", remedy=remedy)
    return TrainingOptions.model_validate({
        **{name: saved[name] for name in _KEPT_OPTIONS if name in saved},
        "decision": bundle.problem.options.model_dump(), "model": bundle.model.model_dump(), "steps": steps,
    })  # fmt: skip


_KEPT_OPTIONS = (
    "method", "scenarios", "interval_s", "environments", "episode_steps", "algorithm", "held_out", "paired",
    "proof_episodes",
)  # fmt: skip
"""Training options of the bundle that further training keeps; they include those of the proof of a residual."""


CHECK = Verb(
    name="encoder check",
    example="deepsched encoder check runs/demo/bundle --snapshots recording.json",
    options=CheckOptions,
    run=check_encoder,
    positional=("bundle",),
)
RECALIBRATE = Verb(
    name="encoder recalibrate",
    example="deepsched encoder recalibrate runs/demo/bundle --snapshots recording.json",
    options=RecalibrateOptions,
    run=recalibrate_encoder,
    positional=("bundle",),
)
ROLLBACK = Verb(
    name="encoder rollback",
    example="deepsched encoder rollback runs/demo/bundle",
    options=RollbackOptions,
    run=roll_back,
    positional=("bundle",),
)


if __name__ == "__main__":
    sys.exit(main(["encoder", *sys.argv[1:]]))
