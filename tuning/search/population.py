"""Tune's scheduler for population-based training, changed to stay within the ranges and to let all trials run on.

Tune (ray 2.60) pauses a trial while any other one waits or copies. Where all trials fit at once nobody waits for its
place, so it goes on; its process is kept, which a new one would take 10 to 20 s to replace.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from tuning.search.space import Domain, Range, mutable

EXCHANGES = "pbt_global.txt"
"""File in the experiment's folder with a line of JSON per exchange: [trial, copied trial, their iterations, old config,
new config]."""


class Population(PopulationBasedTraining):
    """Every `interval` the worst quarter copies networks and settings of the best quarter and perturbs the settings.

    Settings outside `tuning.search.space.mutable` are copied unchanged: they shape the network and its problem.

    Args:
        space: the search space of the sweep.
        distributions: its mutable part as Tune domains.
        time: name of the result that measures progress.
        interval: progress between two exchanges, in the unit of `time`.
        room: number of trials that can run at once.
    """

    def __init__(
        self, space: Mapping[str, Domain], distributions: dict[str, Any], time: str, interval: int, room: int
    ) -> None:
        ranges = {path: domain for path, domain in mutable(space).items() if isinstance(domain, Range)}
        super().__init__(
            time_attr=time,
            perturbation_interval=interval,
            hyperparam_mutations=distributions,
            custom_explore_fn=lambda config: within(config, ranges),
        )
        self._room = room

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        unfinished = sum(not one.is_finished() for one in tune_controller.get_trials())
        if decision == TrialScheduler.PAUSE and unfinished <= self._room:
            # The trials that are not running are starting or copying another one: no trial waits for this place.
            decision = TrialScheduler.CONTINUE
        return decision


def within(config: dict[str, Any], ranges: Mapping[str, Range]) -> dict[str, Any]:
    """The settings clipped to their ranges; Tune multiplies by 0.8 or 1.2 without regard to them."""
    clipped = {path: min(max(config[path], domain.low), domain.high) for path, domain in ranges.items()}
    return config | {path: int(value) if ranges[path].integer else value for path, value in clipped.items()}
