"""`deepsched sweep`: searches K, encoder, actions, rewards and hyperparameters; the best trials are judged live."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from actuators.errors import ConfigError, DataError
from actuators.files import writable_folder
from actuators.options import GIVEN, Moved, Never, Only, Retired
from actuators.testbed.options import LiveOptions
from envs.environment.phase import ObserveOptions
from rayjobs.cli.config import resumed
from rayjobs.cli.interrupts import kept
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.progress import Progress, Stage, StageProgress
from rayjobs.runs.folder import RUNS, RunFolder
from rayjobs.runs.joining import RayOptions
from rayjobs.runs.storage import stored
from rayjobs.runs.testbed import check_live, of_one_system
from tuning.search.space import DRAWN, IN_TURN, CallbackName, ConfirmOptions, ReporterName, SearchOptions, trial_count
from tuning.search.storage import below

if TYPE_CHECKING:
    import pandas as pd

    from actuators.contract.topology import Topology
    from envs.environment.phase import Watched
    from rayjobs.runs.usage import CpuUsage
    from tuning.search.sweep import SweepStatus
    from tuning.search.trial import Shared

OBSERVED = "observed.json"
"""Of a live sweep: its windows of the observation phase, from which all trials have their problem."""
_PHASES = ("equal", "exploring")
TRIAL_STEPS_PER_S = 900
LIVE_START_S = 20
"""What one core trains and validates, and what the testbeds of a trial take to start, roughly; only for the display."""


class SweepOptions(RayOptions):
    """One sweep. Its results: `sweep.parquet`, `finalists.parquet`, `best/` (a bundle), `report.html`, `usage.json`,
    TensorBoard events."""

    only: ClassVar = {
        "observe.encoder": Never("set search.base.encoder"),
        "live.nginx.method": Never("set search.base.training.method"),
    }
    moved: ClassVar = {
        "confirm.judge.seed": Moved("seed", obeyed=False),
        "confirm.judge.seeds": Retired("set confirm.testbeds, each has its own arrivals", default=1),
        "confirm.judge.interval_s": Retired("policies are judged at the interval they were trained with", default=1.0),
        "confirm.judge.learned": Retired("the trained policy is on trial", obeyed=False),
    }

    seed: int = Field(default=1, ge=0)
    """Fixes the observation phase, the draws and every trial's training."""
    out: Annotated[Path | None, Only(resume=None)] = None
    """Folder for the sweep's folder; `runs` when not given."""
    resume: Path | None = None
    """Folder of an interrupted sweep: continues it with its options, without its finished trials. A new sweep when not
    given."""
    storage: str | None = None
    """Folder or pyarrow URL (file://, s3://…) that every node reaches, for trials and results; the sweep's
    folder when not given, which does for one machine."""
    scenario: str = "demo"
    """What is observed first and confirmed on last, and what live trials train on; simulated ones train on
    `search.base.training.scenarios`. The `calibration.json` of a recorded system is also trained on, unless these are
    given; nothing is then confirmed live."""
    callback: tuple[CallbackName, ...] = ()
    """Trackers that get every trial's settings and results as well: `mlflow`, `wandb`, `comet`, `aim`, each with its
    package and its own environment variables (MLFLOW_TRACKING_URI, WANDB_API_KEY, …); none when not given."""
    reporter: ReporterName = "ours"
    """`tune` also prints Tune's own tables of all trials, every 10 s."""
    observe: ObserveOptions = ObserveOptions(duration_s=120.0, explore_s=60.0, window_s=1.0)
    """The observation phase, on a testbed as trials have; its windows are shared by all of them."""
    search: SearchOptions = SearchOptions()
    """The space, and how it is searched."""
    confirm: ConfirmOptions = ConfirmOptions()
    """The judgement of the best on live testbeds."""
    live: Annotated[LiveOptions, Only(search__testbed="live"), Only(confirm__best=GIVEN)] = LiveOptions()
    """The parts of live testbeds."""

    def resolved(self) -> Self:
        if self.resume is not None:
            return resumed(self, self.resume, may_differ=("address",))
        own = self._of_one_system()
        if self.search.scheduler not in IN_TURN or self.search.search in DRAWN:
            return own
        if self.given("search.search"):
            what = f"{self.search.search} does not draw for {self.search.scheduler}"
            remedy = "set search.search=random, or search.scheduler=asha"
            raise ConfigError(what, where="search.search", remedy=remedy)
        return own.changed({"search.search": "random"})

    def _of_one_system(self) -> Self:
        own = of_one_system(self, "search.base.training.scenarios")
        unconfirmed = {"confirm.best": 0} if own and not self.given("confirm.best") else {}
        return self.changed({**own, **unconfirmed})


def run(options: SweepOptions) -> int:
    """Prints the best trials, their live judgement, and where everything is."""
    from tuning.search.space import check

    options = options.resolved()
    check(options.search)
    topology = _system(options)
    if options.confirm.best or options.search.testbed == "live":
        check_live(topology)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(_stages(options)))
        at_once = _start(options, len(topology.servers), progress, stack)
        folder = (
            RunFolder(options.resume)
            if options.resume
            else RunFolder.create(options.out, "sweep", options.seed, options)
        )
        stack.enter_context(stored(folder.path, options.storage))
        stack.enter_context(kept(lambda: f"go on with: deepsched sweep --resume {folder.path}"))
        tell = _work(options, folder, at_once, progress)
    tell()
    return 0


def _start(options: SweepOptions, servers: int, progress: Progress, stack: contextlib.ExitStack) -> int:
    """Starts or joins Ray, and processes for the first trials; the number of trials at once.

    While a Ray of our own starts, the driver imports what it needs and makes the parts of the search once.
    """
    from rayjobs.runs.local_ray import ray_session

    def make_parts() -> None:
        from tuning.search.sweep import check_parts

        check_parts(options.search, options.callback)

    with progress.stage("start") as stage:
        stack.enter_context(
            ray_session(testbeds=_testbeds(options), servers=servers, address=options.address, meanwhile=make_parts)
        )
        from tuning.search.sweep import check_seen, other_nodes, preflight, warm_up

        at_once = preflight(options.search, servers)
        if options.storage is None:
            kept_in = options.resume or writable_folder(options.out or RUNS)
            check_seen(kept_in.absolute(), other_nodes(options.search.trial_cpus))
        if options.confirm.best:
            _room_to_confirm(options.confirm, servers)
        warm_up(at_once, options.search.trial_cpus)
        stage.update(f"{at_once} trials at once")
    return at_once


def _system(options: SweepOptions) -> Topology:
    """The system of all trials. Raises ConfigError for an unknown scenario or two different systems."""
    from envs.scenarios.lookup import scenario, topology_of

    return topology_of(scenario(name) for name in (options.scenario, *options.search.base.training.scenarios))


def _work(options: SweepOptions, folder: RunFolder, at_once: int, progress: Progress) -> Callable[[], None]:
    """Does all of it; what is to be printed at the end."""
    from actuators.files import write_json
    from envs.scenarios.lookup import scenario
    from rayjobs.cli.console import console_out
    from rayjobs.runs.usage import CpuUsage, session_name
    from tuning.search.sweep import fetch_bundle, histories, run_sweep, trial_table

    confirm = options.confirm
    with progress.stage("observe"):
        shared = _shared(options, folder)
    with progress.stage("sweep") as stage:
        # A storage holds the experiments of many sweeps.
        storage = below(options.storage, folder.path.name) if options.storage else str(folder.path.absolute())
        total = trial_count(options.search)
        ended_before: int | None = None
        with CpuUsage(session_name()) as usage:
            usage.phase("start")

            def tell(tally: SweepStatus) -> None:
                nonlocal ended_before
                ended_before = tally.ended if ended_before is None else ended_before
                usage.phase("tail" if total - tally.ended - tally.failed < at_once else "full")
                _say(stage, tally, total)

            grid = run_sweep(options.search, shared, storage, at_once, tell, options.callback, options.reporter)
        ended = 0 if ended_before is None else len(grid) - ended_before
        session = {"trials": len(grid), "ended": ended, "at_once": at_once, **usage.summary()}
        write_usage(folder.path / "usage.json", session)
        table = trial_table(grid, options.search.space)
        table.to_parquet(folder.path / "sweep.parquet")
        bundles = [fetch_bundle(grid, trial, folder.file("bundles", trial)) for trial in _best(table, confirm.best)]
    finalists, winners = _train_again(options, folder, shared, table, storage, at_once, progress)
    bundles = [*winners, *(path for path in bundles if path.name not in {one.name for one in winners})]
    bundles = bundles[: max(confirm.best, 1)]
    best = bundles[0].name if bundles else ""
    evaluations: list[dict[str, Any]] = []
    if confirm.best:
        from tuning.search.confirm import confirm as judge_live

        with progress.stage("confirm live") as stage:
            stage.update(f"the best {len(bundles)} on {confirm.testbeds} testbeds at once")
            work_dir = folder.path.absolute() / "testbeds"
            watched = scenario(options.scenario)
            evaluations = judge_live(
                bundles, confirm.testbeds, watched, confirm.judge, options.live, work_dir, options.seed
            )
            write_json(folder.path / "confirmed.json", evaluations)
    with progress.stage("report"):
        # With sklearn, which takes seconds: the first trials do not wait for it.
        from rayjobs.runs.report import provenance
        from tuning.report.sweep import print_best, write_sweep_report

        report = write_sweep_report(
            folder.path, table, histories(grid), options.search, evaluations, finalists, provenance(folder), best
        )

    def tell_all() -> None:
        print_best(table, options.search, evaluations, finalists, console_out())
        console_out().print(pace(ended, len(grid), usage), soft_wrap=True)
        if best:
            console_out().print(f"best bundle: {folder.path / 'best'}", soft_wrap=True)
        console_out().print(f"report: {report}", soft_wrap=True)

    return tell_all


def _train_again(
    options: SweepOptions,
    folder: RunFolder,
    shared: Shared,
    table: pd.DataFrame,
    storage: str,
    at_once: int,
    progress: Progress,
) -> tuple[pd.DataFrame, list[Path]]:
    """The best settings with fresh seeds (`finalists.parquet`), and the winner's bundle, named by its trial."""
    import pandas as pd

    from actuators.errors import DataError
    from rayjobs.cli.console import console_err
    from tuning.search.finalists import EXPERIMENT, best_training, finalist_table, finalists_of, run_finalists
    from tuning.search.sweep import fetch_bundle

    if not options.search.finalists:
        return pd.DataFrame(), []
    plan = finalists_of(table, options.search, options.seed)
    with progress.stage("finalists") as stage:
        grid = run_finalists(
            options.search,
            shared,
            plan,
            storage,
            at_once,
            lambda tally: _say(stage, tally, len(plan)),
            options.reporter,
        )
    from tuning.report.sweep_figures import summary_of

    found = finalist_table(grid)
    found.to_parquet(folder.path / "finalists.parquet")
    ended = found[found["error"] == ""]
    if failed := len(grid) - len(ended):
        where, remedy = str(folder.path), f"see error.txt in the folders below {EXPERIMENT}, then --resume"
        if ended.empty:
            raise DataError("no training of a finalist has ended", where=where, remedy=remedy)
        console_err().print(f"warning: {failed} of {len(grid)} trainings of finalists failed; {remedy}", markup=False)
    winner = str(summary_of(ended)["trial"].iloc[0])
    return ended, [fetch_bundle(grid, best_training(ended, winner), folder.file("bundles", winner))]


def _shared(options: SweepOptions, folder: RunFolder) -> Shared:
    """The windows of the observation phase, equal for equal seeds, and what else trials have in common."""
    from envs.environment.phase import watch
    from envs.scenarios.calibrated import CalibratedScenario
    from envs.scenarios.lookup import scenario, training_mixture
    from rayjobs.runs.folder import provenance
    from rayjobs.runs.testbed import open_testbed
    from tuning.search.live_trial import LiveShare
    from tuning.search.trial import Shared

    search, base, watched = options.search, options.search.base, scenario(options.scenario)
    work_dir = folder.path.absolute() / "testbeds"
    live = None
    if search.testbed == "live":
        live = LiveShare(options.live, work_dir, watched, search.testbeds, search.validation_s)
    topology = _system(options)
    observed = folder.path / OBSERVED
    if not (live and observed.exists()):
        with open_testbed(search.testbed, topology, work_dir / "observe", options.seed, options.live) as testbed:
            windows = watch(testbed, watched, base.training.method, options.observe, options.seed)
    if live:
        # A sweep that goes on keeps its problem: another look at a live testbed would give another one.
        if not observed.exists():
            write_windows(windows, observed)
        windows = read_windows(observed, topology)
    return Shared(
        windows=windows,
        topology=topology,
        deadlines_s=watched.twin_of.deadlines_s if isinstance(watched, CalibratedScenario) else None,
        base=base,
        work_scale=watched.work_scale,
        validation=training_mixture(base.training.scenarios, base.training.script_s, watched.work_scale),
        validation_episodes=search.validation_episodes,
        validation_s=search.validation_s,
        seed=options.seed,
        provenance=provenance(folder, options.seed, ()),
        live=live,
    )


def write_usage(path: Path, session: Mapping[str, Any]) -> None:
    """Writes how this session used the cores; what the sessions before it used stays in the list `earlier`.

    Raises:
        DataError: the file that is there was not written by a sweep.
    """
    from actuators.files import write_json

    earlier: list[Any] = []
    if path.exists():
        try:
            last = json.loads(path.read_bytes())
            earlier = [*last.pop("earlier", []), last]
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError("not the usage of a sweep", where=str(path), remedy="remove the file") from error
    write_json(path, {**session, "earlier": earlier})


def write_windows(watched: Watched, path: Path) -> None:
    """Keeps the windows of the observation phase. Raises OSError."""
    from actuators.files import write_json
    from tuning.steering.window_json import to_json

    write_json(path, {name: [to_json(window) for window in getattr(watched, name)] for name in _PHASES})


def read_windows(path: Path, topology: Topology) -> Watched:
    """The windows that `write_windows` kept. Raises DataError."""
    from envs.environment.phase import Watched
    from tuning.steering.window_json import WindowModel, from_json, topology_of

    try:
        rows = json.loads(path.read_bytes())
        kept = {name: [WindowModel.model_validate(row) for row in rows[name]] for name in _PHASES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        what, remedy = "not the windows of an observation phase", "begin a new sweep"
        raise DataError(what, where=str(path), remedy=remedy) from error
    windows = {}
    for name, models in kept.items():
        # The servers of a live testbed have other addresses at each start.
        placed = [topology_of(topology, dict.fromkeys(model.groups, model.servers)) for model in models]
        windows[name] = tuple(from_json(model, there) for model, there in zip(models, placed, strict=True))
    return Watched(**windows)


def _testbeds(options: SweepOptions) -> int:
    """How many live testbeds a Ray of our own must have room for."""
    search, confirm = options.search, options.confirm
    at_once = max(search.concurrent, 1) * search.testbeds if search.testbed == "live" else 1
    return max(at_once, confirm.testbeds if confirm.best else 1)


def _room_to_confirm(confirm: ConfirmOptions, servers: int) -> None:
    from actuators.testbed.placement import check_capacity

    check_capacity(confirm.testbeds, servers)


def _best(table: pd.DataFrame, count: int) -> list[str]:
    """The best trials that left a bundle, at least one; the first one's also goes to `best/`."""
    return list(table[table["bundle"] != ""]["trial"].head(max(count, 1)))


def _say(stage: StageProgress, tally: SweepStatus, count: int) -> None:
    failed = f", {tally.failed} failed" if tally.failed else ""
    best = f"; best {tally.best:+.3f} (trial-{tally.best_trial})" if tally.best_trial else ""
    stage.update(
        f"{tally.ended} of {count} trials ended, {tally.running} running{failed}{best}",
        tally.ended / count,
    )


def pace(ended: int, trials: int, usage: CpuUsage) -> str:
    """How long this session took for the trials that ended in it, of all of them, and how busy the cores were."""
    busy = f"{usage.share:.0%} of this machine's {os.cpu_count()} cores, {usage.share_of_free:.0%} of what others left"
    of_all = f"{trials} trials" if ended == trials else f"{ended} of {trials} trials"
    return f"{of_all} in {usage.elapsed_s / 60:.1f} minutes, which used {busy}"


def _stages(options: SweepOptions) -> list[Stage]:
    search, confirm = options.search, options.confirm
    share = 0.5 if search.scheduler == "asha" else 1.0
    training = search.base.training
    if search.testbed == "live":
        each_s = LIVE_START_S + search.validation_s + training.steps * share * training.interval_s / search.testbeds
        train_s = trial_count(options.search) * each_s / max(search.concurrent, 1)
    else:
        train_s = trial_count(options.search) * training.steps * share / TRIAL_STEPS_PER_S / max(search.concurrent, 2)
    block_s = confirm.judge.warm_up_s + confirm.judge.measure_s + 1.2
    stages = [Stage("start", 15), Stage("observe", 3), Stage("sweep", 30 + train_s)]
    if search.finalists:
        again = search.finalists * search.seeds / trial_count(options.search) / share
        stages.append(Stage("finalists", 15 + again * train_s))
    if confirm.best:
        stages.append(Stage("confirm live", 25 + confirm.best * confirm.judge.rounds * 3 * block_s))
    return [*stages, Stage("report", 2)]


VERB = Verb(
    name="sweep",
    example="deepsched sweep --config sweep-quick",
    options=SweepOptions,
    run=run,
    common=(
        "scenario", "seed", "out", "resume", "storage", "address", "search.trials", "search.concurrent",
        "search.search", "search.scheduler", "search.space", "search.finalists", "confirm.best",
    ),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
