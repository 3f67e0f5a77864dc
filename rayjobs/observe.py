"""`deepsched observe`: watch a testbed, derive deadlines, fit the Gaussian mixture; nothing is learned yet.

A mixture that has come to know too little: refitted, proven, put in the old one's place, and taken back again.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from actuators.errors import BundleError, ConfigError
from actuators.files import write_atomic
from actuators.options import Options
from actuators.testbed.parts import LiveOptions
from rayjobs.cli.console import console_err, console_out
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.progress import Progress, Stage
from rayjobs.runs.folder import RunFolder
from rayjobs.runs.recordings import read_windows, windows_of
from rayjobs.runs.testbed import TestbedKind, open_testbed
from tuning.observing.phase import ObserveOptions

if TYPE_CHECKING:
    from actuators.contract.arrays import FloatArray
    from envs.mixture.refit import Proof
    from envs.observation.encoder import Encoder
    from tuning.policy.bundle import Bundle
    from tuning.policy.model import EquivariantNet


class ObserveVerbOptions(Options):
    """One observation phase."""

    seed: int = Field(default=1, ge=0)
    """Fixes arrivals, service times, exploring weights and the mixture's start."""
    out: Path | None = None
    """Folder for the run's folder; `runs` when not given."""
    testbed: TestbedKind = "simulated"
    """`live` starts servers, an NGINX and load on this machine."""
    scenario: str = "demo"
    """What happens meanwhile: `deepsched scenarios list`."""
    observe: ObserveOptions = ObserveOptions()
    """Durations and the mixture."""
    live: LiveOptions = LiveOptions()
    """The parts of a live testbed."""
    check: Path | None = None
    """Instead of watching: a bundle or the folder of an earlier `observe`, whose encoder is checked against
    `snapshots`; exit code 3 when it must be recalibrated."""
    recalibrate: Path | None = None
    """Instead of watching: a bundle or the folder of an earlier `observe`, whose encoder is refitted to what it knew
    and to `snapshots`. It takes the old one's place when held-out windows prove it; exit code 4 when they do not."""
    rollback: Path | None = None
    """Instead of watching: a bundle or folder whose encoder (and policy) before the last recalibration comes back."""
    snapshots: Path | None = None
    """check, recalibrate: a file that `deepsched collect` recorded, or the folder of a run that kept
    `snapshots.jsonl`."""
    novel_share: float = Field(default=0.2, gt=0, lt=1)
    """check, recalibrate: share of novel windows with which an encoder still fits."""
    retrain_steps: int = Field(default=0, ge=0)
    """recalibrate: environment steps for which a bundle's policy is trained further, on simulated testbeds."""
    work_scale: float = Field(default=2.0, gt=0)
    """recalibrate: factor on the work of the scenarios that it is trained further on; 2 as on live testbeds."""


def run(options: ObserveVerbOptions) -> int:
    """Prints deadlines, clusters and the folder with `deadlines.json`, `encoder.npz` and, live, `snapshots.jsonl`."""
    if (asked := _about_an_encoder(options)) is not None:
        return asked
    from envs.scenarios.lookup import scenario
    from rayjobs.cli.console import console_out
    from rayjobs.runs.local_ray import ray_session
    from rayjobs.runs.steps import PAGE, Steps, keep_states
    from tuning.options import TrainingOptions

    folder = RunFolder.create(options.out, "observe", options.seed, options)
    live = options.testbed == "live"
    seconds = options.observe.skip_s + options.observe.duration_s + options.observe.explore_s
    stages = [Stage("start", 20 if live else 2), Stage("observe", 2 + (seconds if live else 0))]
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(stages))
        with progress.stage("start"):
            if live:
                stack.enter_context(ray_session())
            work_dir = folder.path / "testbed"
            testbed = stack.enter_context(open_testbed(options.testbed, work_dir, options.seed, options.live))
        steps = Steps(folder, progress, options.seed)
        observed = steps.observe(testbed, scenario(options.scenario), options.observe, TrainingOptions())
        found = keep_states(folder, observed, options.observe.encoder, options.seed)
    for group, seconds in zip(testbed.topology.groups, observed.deadlines.seconds, strict=True):
        console_out().print(f"{group.request_type}: deadline {1e3 * seconds:.1f} ms")
    encoder = observed.problem.encoder
    criterion = options.observe.encoder.criterion.upper()
    tried = ", ".join(f"{candidate.clusters} ({candidate.stability:.2f})" for candidate in found)
    console_out().print(f"{encoder.clusters} clusters, the lowest {criterion}; K (stability): {tried}", markup=False)
    console_out().print(f"what they mean: {folder.path / PAGE}", soft_wrap=True)
    return 0


def _about_an_encoder(options: ObserveVerbOptions) -> int | None:
    """What was asked about an encoder that there is already; None when a testbed is to be watched."""
    if options.check is None and options.recalibrate is None and options.rollback is None:
        return None
    if options.check is not None:
        return check_encoder(options, options.check)
    if options.recalibrate is not None:
        return recalibrate_encoder(options, options.recalibrate)
    assert options.rollback is not None
    return roll_back(options.rollback)


VERB = Verb(
    name="observe",
    example="deepsched observe --testbed live --set observe.duration_s=30",
    options=ObserveVerbOptions,
    run=run,
)

EXIT_RECALIBRATE = 3
EXIT_NOT_PROVEN = 4
ENCODER, BUNDLE, PREVIOUS = "encoder.npz", "bundle.json", "previous"


def check_encoder(options: ObserveVerbOptions, folder: Path) -> int:
    """Prints what is novel, and the share as a Prometheus line; 3 when the encoder must be recalibrated."""
    from envs.mixture.novelty import check, load_known

    snapshots = _snapshots(options, "--check")
    _, topology, _ = windows_of(snapshots)
    topology, encoder, deadlines_s = load_known(folder, topology)
    found = check(read_windows(snapshots, topology), topology, encoder, deadlines_s)
    needed = found.share > options.novel_share
    console_out().print(f"{found.novel} of {found.windows} windows are novel, typical novelty {found.typical:.2f}")
    console_out().print(f"deepsched_novel_window_share {found.share:.4f}")
    limit = f"the limit is {options.novel_share:.0%}"
    if needed:
        said = f"recalibrate: {found.share:.0%} of the windows are unlike any observed; {limit}"
        console_err().print(f"warning: {said}", markup=False)
        console_out().print(
            f"deepsched observe --recalibrate {folder} --snapshots {snapshots}", markup=False, soft_wrap=True
        )
    else:
        console_out().print(f"the encoder still fits; {limit}", markup=False)
    return EXIT_RECALIBRATE if needed else 0


def recalibrate_encoder(options: ObserveVerbOptions, folder: Path) -> int:
    """Refits, proves on held-out windows, and swaps; 4 when the new mixture is not proven and the old one stays."""
    import numpy as np

    from envs.mixture.fit import window_samples
    from envs.mixture.novelty import FIRST_WINDOWS, load_known
    from envs.mixture.refit import recalibrate

    snapshots = _snapshots(options, "--recalibrate")
    _, topology, _ = windows_of(snapshots)
    topology, old, deadlines_s = load_known(folder, topology)
    windows = [w for w in read_windows(snapshots, topology) if w.usable and w.requests.any()]
    flat = window_samples(windows, topology, deadlines_s, old.kind)
    rows = topology.shape[1] if old.kind == "server" else 1
    new = flat.reshape(-1, rows, flat.shape[1])[FIRST_WINDOWS:]
    known = _known(folder, old, options.seed)
    fresh, proof = recalibrate(old, known, new, options.novel_share, options.seed)
    _say(old, fresh, proof)
    if not proof.proven:
        for reason in proof.reasons:
            console_err().print(f"warning: not proven: {reason}", markup=False)
        console_out().print(f"the old encoder stays in {folder}", markup=False, soft_wrap=True)
        return EXIT_NOT_PROVEN
    samples = np.concatenate([known, new.reshape(-1, flat.shape[1])])
    if (folder / BUNDLE).exists():
        _swap_bundle(options, folder, fresh, samples)
    else:
        _swap_encoder(folder, fresh, samples)
    console_out().print(f"the new encoder is in {folder}; back: deepsched observe --rollback {folder}", markup=False,
                    soft_wrap=True)  # fmt: skip
    return 0


def roll_back(folder: Path) -> int:
    """The encoder (and policy) before the last recalibration comes back. Raises BundleError when there is none."""
    from envs.mixture.refit import SAMPLES, load_samples
    from envs.observation.encoder import Encoder

    if (folder / BUNDLE).exists():
        from tuning.policy.bundle import roll_back as roll_bundle_back

        roll_bundle_back(folder)
    else:
        kept = Encoder.load(folder / PREVIOUS / ENCODER)
        earlier = folder / PREVIOUS / SAMPLES
        _swap_encoder(folder, kept, load_samples(earlier, kept.names) if earlier.exists() else None)
    console_out().print(f"the earlier encoder is back in {folder}", markup=False, soft_wrap=True)
    return 0


def _snapshots(options: ObserveVerbOptions, flag: str) -> Path:
    if options.snapshots is None:
        raise ConfigError("nothing to hold the encoder against", where=flag, remedy="give --snapshots FILE")
    return options.snapshots


def _known(folder: Path, encoder: Encoder, seed: int) -> FloatArray:
    """What the old mixture was fitted to; draws from the mixture itself when that is lost."""
    from envs.mixture.refit import SAMPLES, drawn_samples, load_samples

    if (folder / SAMPLES).exists():
        return load_samples(folder / SAMPLES, encoder.names)
    beside = folder.absolute().parent / SAMPLES
    if (folder / BUNDLE).exists() and beside.exists():
        # A bundle was exported beside what its run observed, unless somebody has moved it.
        with contextlib.suppress(BundleError):
            return load_samples(beside, encoder.names)
    console_err().print(
        "warning: what the encoder was fitted to is not kept; draws from it take its place", markup=False
    )
    return drawn_samples(encoder, seed)


def _say(old: Encoder, fresh: Encoder, proof: Proof) -> None:
    for line in (
        f"clusters: {old.clusters} before, {fresh.clusters} now",
        f"held-out new windows: {proof.novel_before:.0%} novel before, {proof.novel:.0%} now; "
        f"log likelihood per sample {proof.gained:+.2f}",
        f"held-out old samples: log likelihood per sample {-proof.forgotten:+.2f}",
        f"stability over seeds and resamples: {proof.stability:.2f} (adjusted Rand index)",
    ):
        console_out().print(line, markup=False)


def _swap_encoder(folder: Path, fresh: Encoder, samples: FloatArray | None) -> None:
    """In the folder of an observation: the old files into `previous/`, then the new ones, each in one step."""
    from envs.mixture.refit import SAMPLES, save_samples

    old = {name: (folder / name).read_bytes() for name in (ENCODER, SAMPLES) if (folder / name).exists()}
    (folder / PREVIOUS).mkdir(exist_ok=True)
    for name, content in old.items():
        write_atomic(folder / PREVIOUS / name, content)
    if samples is not None:
        save_samples(folder / SAMPLES, samples, fresh.names)
    fresh.save(folder / ENCODER)


def _swap_bundle(options: ObserveVerbOptions, folder: Path, fresh: Encoder, samples: FloatArray) -> None:
    """The policy goes on with the new mixture, trained further when `retrain_steps` says so."""
    from envs.mixture.refit import SAMPLES, save_samples
    from tuning.policy.bundle import check_bundle, load_bundle, swap_in
    from tuning.policy.warm_start import widened

    bundle = load_bundle(check_bundle(folder))
    problem = replace(bundle.problem, encoder=fresh)
    warm = replace(bundle, net=widened(bundle.net, bundle.model, bundle.problem, problem), problem=problem)
    note = {"snapshots": str(options.snapshots), "clusters": fresh.clusters, "retrain_steps": options.retrain_steps}
    if options.retrain_steps:
        net, run = _retrained(options, warm)
        warm = replace(warm, net=net)
        note["run"] = str(run)
    history = [*warm.provenance.get("recalibrations", []), note]
    warm = replace(warm, provenance={**warm.provenance, "recalibrations": history})

    def fill(place: Path) -> None:
        warm.save(place)
        save_samples(place / SAMPLES, samples, fresh.names)

    swap_in(folder, fill)


def _retrained(options: ObserveVerbOptions, warm: Bundle) -> tuple[EquivariantNet, Path]:
    """The network after more training as the bundle was trained, begun where it is; and the folder of that run.

    Raises ConfigError for a policy that was learned from records, whose observations the new mixture changes.
    """
    from rayjobs.runs.local_ray import ray_session
    from rayjobs.runs.steps import training_scenarios
    from tuning.learning.trainer import Trainer
    from tuning.options import AlgorithmOptions, TrainingOptions

    saved: dict[str, Any] = dict((warm.provenance.get("config") or {}).get("training") or {})
    if (algorithm := AlgorithmOptions.model_validate(saved.get("algorithm", {}))).offline:
        what = f"{algorithm.name} learned this policy from records, not on simulated testbeds"
        remedy = "leave it out, or train anew from newer records: deepsched train --records"
        raise ConfigError(what, where="--retrain-steps", remedy=remedy)
    training = TrainingOptions.model_validate({
        **{name: saved[name] for name in _AS_BEFORE if name in saved},
        "decision": warm.problem.options.model_dump(), "model": warm.model.model_dump(), "steps": options.retrain_steps,
    })  # fmt: skip
    folder = RunFolder.create(options.out, "recalibrate", options.seed, options)
    with ray_session():
        trainer = Trainer(warm.problem, training, folder.path, options.seed, start=warm.net)
        held_out = training_scenarios(training, options.work_scale, training.held_out.scenarios)
        trainer.train_simulated(training_scenarios(training, options.work_scale), held_out)
    if trainer.proof is not None:
        console_err().print(trainer.proof.told(), markup=False, soft_wrap=True)
    return trainer.net(), folder.path


_AS_BEFORE = (
    "method", "scenarios", "interval_s", "environments", "episode_steps", "algorithm", "held_out", "paired",
    "proof_episodes",
)  # fmt: skip
"""Of the options that a bundle was trained with; the residual's proof is among them."""


if __name__ == "__main__":
    sys.exit(run_verb(VERB))
