"""Runs a search with Ray Tune: trials in parallel, early stopping, restarts, resume; a table with a row per trial."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pandas as pd
import ray
from pyarrow import fs
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, ResultGrid, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actuators.errors import CapacityError, ConfigError, DataError
from actuators.testbed.placement import check_capacity
from tuning.search import tune_parts
from tuning.search.live_trial import trial_resources
from tuning.search.space import (
    DRAWN,
    IN_TURN,
    POPULATIONS,
    CallbackName,
    Domain,
    Range,
    ReporterName,
    SearchOptions,
    check,
    mutable,
    trial_count,
)
from tuning.search.storage import below
from tuning.search.trial import BUNDLE, Shared, SweepTrial, import_all

SCORE, TIME = tune_parts.SCORE, tune_parts.TIME
EXPERIMENT = "sweep"
SEEN_TIMEOUT_S = 60.0
"""Longest wait for the nodes to say whether they see a folder; each may have to start a process of Ray for it."""
POPULATION_KEEPS = 8
"""Checkpoints kept per trial of a population: an exchange may copy an earlier one. Otherwise one is kept. Tune saves
the state of the experiment with every checkpoint (ray 2.60), so that a finished trial is never repeated."""


@dataclass(frozen=True)
class SweepStatus:
    """Progress of a sweep: number of trials by state, and the best score so far with its trial."""

    ended: int
    running: int
    failed: int
    best: float
    best_trial: str


class SweepCallback(tune.Callback):
    """Calls `listener` with the progress after every result.

    The listener is an attribute of the class because Tune pickles its callbacks and a listener may hold the terminal.
    """

    listener: ClassVar[Callable[[SweepStatus], None]] = staticmethod(lambda tally: None)

    def __init__(self) -> None:
        self._best, self._best_trial = -math.inf, ""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get(SCORE, -math.inf) > self._best:
            self._best, self._best_trial = result[SCORE], trial.trial_id
        self._tell(trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(trials)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(trials)

    def _tell(self, trials: list[Any]) -> None:
        states = [trial.status for trial in trials]
        ended, running, failed = (states.count(name) for name in ("TERMINATED", "RUNNING", "ERROR"))
        type(self).listener(SweepStatus(ended, running, failed, self._best, self._best_trial))


def check_parts(options: SearchOptions, trackers: Sequence[CallbackName]) -> None:
    """Makes search algorithm, with its space, scheduler and callbacks once. Raises ConfigError or MissingToolError."""
    _searcher(options, 0, 1, _tune_space(options))
    _scheduler(options, 1)
    tune_parts.callbacks(trackers)


def preflight(options: SearchOptions, servers: int) -> int:
    """Number of trials that will run at once, with this many servers in a live testbed.

    Raises:
        ConfigError: the search space is invalid (`tuning.search.space.check`).
        CapacityError: the cluster has too few CPUs or too few places for testbeds.
    """
    check(options)
    cpus = ray.cluster_resources().get("CPU", 0.0)
    room, alone = int(cpus / options.trial_cpus + 1e-9), False
    if options.testbed == "live":
        room = min(room, _room_for_live(options, servers))
        alone = len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) == 1
    # On one machine the load of a trial would disturb the scores of another.
    wanted = options.concurrent or (min(room, 1) if alone else room)
    if wanted > room or room == 0:
        needed = max(wanted, 1) * options.trial_cpus
        raise CapacityError(
            f"{max(wanted, 1)} trials at once need {needed:g} CPUs, the cluster has {cpus:g}",
            where="search.concurrent",
            remedy="lower search.concurrent or search.trial_cpus, or add nodes",
        )
    if options.scheduler in IN_TURN:
        wanted = _at_once_in_turn(options, room, cpus)
    return wanted


def other_nodes(cpus: float) -> dict[str, str]:
    """Nodes that could get a trial with so many CPUs, but for this one: id → name and address."""
    here = ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU", 0.0) >= cpus
    }


def check_seen(folder: Path, nodes: Mapping[str, str]) -> None:
    """Tune keeps the checkpoints of trials in a folder below this one, and loses the trials of a node without it.

    Args:
        folder: absolute; writable here.
        nodes: those that are asked, id → name for messages.

    Raises:
        ConfigError: a node does not see the folder.
        CapacityError: a node does not answer within `SEEN_TIMEOUT_S`.
    """
    if not nodes:
        return
    looks = ray.remote(num_cpus=0)(os.path.exists)
    # Its name is new: no network file system answers from memory that it is not there.
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".seen-") as mark:
        asked = [
            looks.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(mark.name)
            for node in nodes
        ]
        try:
            seen = ray.get(asked, timeout=SEEN_TIMEOUT_S)
        except (ray.exceptions.RayError, TimeoutError) as error:
            raise CapacityError(
                f"not every node could be asked whether it sees {folder}", evidence=str(error).splitlines()[0],
                remedy="look at `ray status`",
            ) from error  # fmt: skip
    without = [name for name, sees in zip(nodes.values(), seen, strict=True) if not sees]
    if without:
        raise ConfigError(
            f"trials on {', '.join(without[:3])}{' and others' * (len(without) > 3)} would lose their checkpoints:"
            f" {folder} is not there",
            where="--out",
            remedy="give a folder that all nodes see, or --storage a URL that all of them reach",
        )


def warm_up(processes: int, cpus: float) -> None:
    """Lets that many of Ray's processes import what a trial needs, and does not wait: trials get them afterwards."""
    for _ in range(processes):
        _import_trial.options(num_cpus=cpus).remote()


@ray.remote(max_retries=0)
def _import_trial() -> None:
    import_all()


def _room_for_live(options: SearchOptions, servers: int) -> int:
    """Trials whose testbeds fit at once, at least one. Raises CapacityError when too few fit."""
    check_capacity(max(options.concurrent, 1) * options.testbeds, servers)
    total = ray.cluster_resources()
    places = (total.get("proxy", 0), total.get("client", 0), total.get("server", 0) / servers)
    return max(int(min(places) / options.testbeds + 1e-9), 1)


def _at_once_in_turn(options: SearchOptions, room: int, cpus: float) -> int:
    """Trials that fit at once of those that wait for each other; the others take turns."""
    trials = trial_count(options)
    at_once = min(room, trials)
    if 0 < options.concurrent < at_once:
        # Tune counts a paused trial as running, so with a limit they would never be complete.
        raise CapacityError(
            f"with {options.scheduler}, trial_cpus says how many trials run at once: {trials} trials on {cpus:g} CPUs",
            where="search.concurrent",
            remedy=f"set search.trial_cpus={cpus / options.concurrent:g} and leave search.concurrent at 0",
        )
    return at_once


def run_sweep(
    options: SearchOptions,
    shared: Shared,
    storage: str,
    at_once: int,
    report: Callable[[SweepStatus], None],
    trackers: Sequence[CallbackName] = (),
    reporter: ReporterName = "ours",
) -> ResultGrid:
    """Runs all trials, or resumes the sweep that `storage` already holds.

    Args:
        storage: folder or pyarrow URL; the experiment is in `sweep` below it.
        at_once: number of trials at once, from `preflight`.
        report: called with the progress after every result.
        trackers: where trials are logged as well.
        reporter: `tune` also prints Tune's own tables.

    Raises:
        DataError: no trial returned a result.
    """
    trainable = tune.with_parameters(SweepTrial, shared=shared)
    space = _tune_space(options)
    return run_trials(
        options, shared, trainable, space, EXPERIMENT, storage, at_once, report, trackers, reporter, list(space)
    )


def run_trials(
    options: SearchOptions,
    shared: Shared,
    trainable: Any,
    space: dict[str, Any],
    experiment: str,
    storage: str,
    at_once: int,
    report: Callable[[SweepStatus], None],
    trackers: Sequence[CallbackName] = (),
    reporter: ReporterName = "ours",
    shown: Sequence[str] = (),
) -> ResultGrid:
    """`run_sweep` for any trainable and Tune's own `space`; the experiment is in `experiment` below `storage`.

    Args:
        shown: parameters in Tune's own tables; ``/`` leads into nested ones.
    """
    resources: Any = {"CPU": options.trial_cpus}
    if shared.live is not None:
        resources = trial_resources(options.trial_cpus, shared.live.testbeds, len(shared.topology.servers))
    trainable = tune.with_resources(trainable, resources)
    SweepCallback.listener = staticmethod(report)
    # Without this, Tune prints its tables even with verbose=0 (ray 2.60).
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Tune would take Ctrl-C for itself and return what it has, as if the search had ended (ray 2.60).
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    path, population = below(storage, experiment), options.scheduler in POPULATIONS
    # A search that draws has a limit of its own; beside it Tune ignores this one.
    limit = None if _is_drawn(options) else at_once
    if Tuner.can_restore(path):
        tuner = Tuner.restore(path, trainable, resume_unfinished=True, resume_errored=True)
        # Tune keeps the limit of the first session, and this cluster may have another room.
        tuner._local_tuner._tune_config.max_concurrent_trials = limit
    else:
        tuner = Tuner(
            trainable,
            param_space=space,
            tune_config=TuneConfig(
                metric=SCORE,
                mode="max",
                num_samples=options.trials,
                max_concurrent_trials=limit,
                search_alg=_searcher(options, shared.seed, at_once),
                scheduler=_scheduler(options, at_once),
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=RunConfig(
                name=experiment,
                storage_path=storage,
                failure_config=FailureConfig(max_failures=options.retries),
                checkpoint_config=CheckpointConfig(
                    num_to_keep=POPULATION_KEEPS if population else 1,
                    checkpoint_frequency=options.checkpoint_every,
                    checkpoint_at_end=True,
                ),
                callbacks=[SweepCallback(), *tune_parts.callbacks(trackers)],
                **tune_parts.reporting(reporter, shown),
            ),
        )
    results = tuner.fit()
    if not any(SCORE in (result.metrics or {}) for result in results):
        raise DataError(
            f"none of {len(results)} trials returned a result",
            where=path,
            remedy="see error.txt in the trials' folders",
            evidence=str(results.errors[0]).strip().splitlines()[-1] if results.errors else "",
        )
    return results


def trial_table(results: ResultGrid, space: dict[str, Domain]) -> pd.DataFrame:
    """A row per trial: its values (columns named by the paths of `space`), its results, its bundle.

    The best of those that ended is first, then the best of those that failed; trials without a score are last of each.
    """
    rows = []
    for result in results:
        config = (result.metrics or {}).get("config", result.config or {})
        rows.append(
            {"trial": Path(result.path).name, **{path: config.get(path) for path in space}, **columns_of(result)}
        )
    table = pd.DataFrame(rows)
    table = table.assign(failed=table["error"] != "").sort_values(
        ["failed", SCORE], ascending=[True, False], na_position="last"
    )
    return table.drop(columns="failed").reset_index(drop=True)


def columns_of(result: Any) -> dict[str, Any]:
    """What a table has of a trial besides its settings.

    `began_s` and `ended_s` are unix times of the begin of its first step and the end of its last one, nan without any.
    """
    metrics, frame = result.metrics or {}, result.metrics_dataframe
    began_s = ended_s = math.nan
    if frame is not None and {"timestamp", "time_this_iter_s"} <= set(frame):
        began_s = float(frame["timestamp"].iloc[0] - frame["time_this_iter_s"].iloc[0])
        ended_s = float(frame["timestamp"].iloc[-1])
    bundle = Path(result.checkpoint.path) / BUNDLE if result.checkpoint else None
    return {
        **{name: metrics.get(name) for name in (SCORE, "art_per_request", "error_ratio", "bic", "clusters")},
        "iterations": metrics.get("training_iteration", 0),
        TIME: metrics.get(TIME, 0),
        "seconds": metrics.get("time_total_s", 0.0),
        "began_s": began_s,
        "ended_s": ended_s,
        "error": "" if result.error is None else str(result.error).strip().splitlines()[-1],
        "bundle": "" if bundle is None else str(bundle),
    }


def fetch_bundle(results: ResultGrid, trial: str, folder: Path) -> Path:
    """Copies the bundle of a trial from the storage of its checkpoint to a local folder, which it replaces."""
    checkpoint = next(result.checkpoint for result in results if Path(result.path).name == trial)
    assert checkpoint is not None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fs.copy_files(f"{checkpoint.path}/{BUNDLE}", str(folder), source_filesystem=checkpoint.filesystem)
    return folder


def histories(results: ResultGrid) -> dict[str, list[tuple[int, float]]]:
    """Trial → (steps trained, score) after each iteration."""
    found = {}
    for result in results:
        frame = result.metrics_dataframe
        if frame is not None and SCORE in frame:
            found[Path(result.path).name] = list(zip(frame[TIME].astype(int), frame[SCORE].astype(float), strict=True))
    return found


def _name(trial: Any) -> str:
    return f"trial-{trial.trial_id}"


def _tune_domain(domain: Domain, search: str) -> Any:
    if not isinstance(domain, Range):
        return tune.grid_search(list(domain)) if search == "grid" else tune.choice(list(domain))
    if domain.integer:
        kind = tune.lograndint if domain.log else tune.randint
        return kind(int(domain.low), int(domain.high) + 1)
    return (tune.loguniform if domain.log else tune.uniform)(domain.low, domain.high)


def _tune_space(options: SearchOptions) -> dict[str, Any]:
    return {path: _tune_domain(domain, options.search) for path, domain in options.space.items()}


def _is_drawn(options: SearchOptions) -> bool:
    """Whether all settings are drawn: a population decides on all changes after the first draw."""
    return options.search in DRAWN or options.scheduler in IN_TURN


def _searcher(
    options: SearchOptions, seed: int, at_once: int, space: dict[str, Any] | None = None
) -> SearchAlgorithm | Any:
    if _is_drawn(options):
        # Simulated trials wait for their CPUs; a sweep that goes on keeps this limit, even where it has more of them.
        wanted = at_once if options.testbed == "live" else options.concurrent
        limit = 0 if options.scheduler in IN_TURN else wanted
        return BasicVariantGenerator(random_state=seed, max_concurrent=limit)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return tune_parts.searcher(options, seed, space)


def _scheduler(options: SearchOptions, at_once: int) -> TrialScheduler:
    distributions = {
        path: _tune_domain(domain, "random") if isinstance(domain, Range) else list(domain)
        for path, domain in mutable(options.space).items()
    }
    return tune_parts.scheduler(options, at_once, distributions)
