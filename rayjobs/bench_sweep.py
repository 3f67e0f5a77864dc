"""A sweep for the bench `scaling`: how long it takes, and how busy it keeps the cores."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from actuators.topology import social_network
from envs.scenarios import scenario
from envs.simulation import SimulatedTestbed
from rayjobs.steps import training_scenarios
from tuning.observing import ObserveOptions, watch
from tuning.options import TrainingOptions
from tuning.space import TrialOptions
from tuning.sweep import preflight, run_sweep, trial_table
from tuning.sweep_options import SearchOptions
from tuning.trial import Shared


@dataclass(frozen=True)
class TimedSweep:
    """What a timed sweep gave; `busy_share` is CPU time over wall clock and cores, 0…1."""

    best_score: float
    busy_share: float


def timed_sweep(seed: int, trials: int, steps: int, folder: Path, ray_folder: Path) -> TimedSweep:
    """Runs a sweep on the connected Ray, on as many cores as there are; `ray_folder` tells its processes."""
    options = SearchOptions(trials=trials, base=TrialOptions(training=TrainingOptions(steps=steps)))
    at_once = preflight(options)
    watched = scenario("demo")
    with SimulatedTestbed(social_network()) as testbed:
        windows = watch(testbed, watched, "least_conn", ObserveOptions(duration_s=60.0), seed)
    scenarios = training_scenarios(options.base.training, watched.work_scale)
    shared = Shared(
        windows=windows,
        topology=social_network(),
        base=options.base,
        scenario=scenarios,
        validation=scenarios,
        validation_episodes=options.validation_episodes,
        validation_s=options.validation_s,
        seed=seed,
        provenance={},
    )
    with _CpuWatch(str(ray_folder)) as watch_cpu:
        results = run_sweep(options, shared, str(folder.absolute()), at_once, lambda tally: None)
    table = trial_table(results, options.space)
    return TimedSweep(float(table["score"].iloc[0]), watch_cpu.share(at_once))


class _CpuWatch:
    """CPU time of all processes whose environment or command holds a word, sampled; those that end lose a little."""

    def __init__(self, word: str, every_s: float = 0.5) -> None:
        self._word, self._every_s = word, every_s
        self._seen: dict[int, float] = {}
        self._first: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _CpuWatch:
        self._began_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._elapsed_s = time.monotonic() - self._began_s

    def share(self, cores: int) -> float:
        """CPU seconds per second and core."""
        used_s = sum(self._seen[pid] - self._first[pid] for pid in self._seen)
        return used_s / self._elapsed_s / cores

    def _watch(self) -> None:
        tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        while not self._stop.wait(self._every_s):
            for process in Path("/proc").iterdir():
                if process.name.isdigit():
                    self._note(process, tick_s)

    def _note(self, process: Path, tick_s: float) -> None:
        try:
            if self._word.encode() not in (process / "environ").read_bytes() + (process / "cmdline").read_bytes():
                return
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return  # it ended while we looked, or belongs to someone else
        pid, used_s = int(process.name), (int(fields[11]) + int(fields[12])) * tick_s
        self._first.setdefault(pid, used_s if self._began_s + 2 * self._every_s > time.monotonic() else 0.0)
        self._seen[pid] = used_s
