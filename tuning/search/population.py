"""Tune's scheduler for population-based training, changed to stay within the ranges and to reuse processes.

Tune (ray 2.60) ends the process of a trial that copies another one while a third trial does the same, or when two
trials pause at once, and cancels the replacements that it has begun to start: four trials end up in one process.
A new process takes 10 to 20 s, far more than the training between two exchanges of a small sweep.
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
        self._room, self._kept = room, False

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        if not self._kept:
            # Tune keeps one process for the next trial, but several trials may pause at the same time.
            tune_controller._tune_controller._actor_cache.increase_max(trial.placement_group_factory, self._room)
            self._kept = True

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        unfinished = sum(not one.is_finished() for one in tune_controller.get_trials())
        if decision == TrialScheduler.PAUSE and unfinished <= self._room:
            # The trials that are not running are starting or copying another one: no trial waits for this place.
            decision = TrialScheduler.CONTINUE
        return decision

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        # Tune keeps a process only if a trial is waiting for one, and here all trials may be running. Therefore this
        # trial is registered as waiting for its own process.
        controller, kind = tune_controller._tune_controller, trial.placement_group_factory
        controller._staged_trials.add(trial)
        controller._actor_cache.increase_max(kind)
        super()._exploit(tune_controller, trial, trial_to_clone)
        if not controller._actor_cache.has_cached_object(kind):
            # The process was not kept (it had just failed): the trial gets a new one in the usual way.
            controller._staged_trials.remove(trial)
            controller._actor_cache.decrease_max(kind)


def within(config: dict[str, Any], ranges: Mapping[str, Range]) -> dict[str, Any]:
    """The settings clipped to their ranges; Tune multiplies by 0.8 or 1.2 without regard to them."""
    clipped = {path: min(max(config[path], domain.low), domain.high) for path, domain in ranges.items()}
    return config | {path: int(value) if ranges[path].integer else value for path, value in clipped.items()}
