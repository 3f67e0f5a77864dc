"""Population-based training by Tune's scheduler, made fit for our trials: within the ranges, in the same processes.

Tune (ray 2.60) ends a trial's process for an exchange, whenever another trial happens to be in one, and when two
trials end their turns at once, and gives up those that it has begun to start instead: four trials end up in one
process. A new one costs ten to twenty seconds, far more than the training between two exchanges of a small sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from tuning.search.space import Domain, Range, mutable

EXCHANGES = "pbt_global.txt"
"""In the experiment's folder: one line of JSON per exchange [who, copied whom, iteration of both, old config, new]."""


class Population(PopulationBasedTraining):
    """Every `interval` the worst quarter copies networks and settings of the best quarter and varies the settings.

    What `tuning.search.space.mutable` does not name is copied as it is: it shapes the network and its problem.

    Args:
        space: of the sweep.
        distributions: the mutable part of it in Tune's terms.
        time: the result that counts; interval: between two exchanges, in its unit.
        room: how many trials can run at once.
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
            # Tune keeps one process for the next turn; two trials may well end theirs at the same time.
            tune_controller._tune_controller._actor_cache.increase_max(trial.placement_group_factory, self._room)
            self._kept = True

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        unfinished = sum(not one.is_finished() for one in tune_controller.get_trials())
        if decision == TrialScheduler.PAUSE and unfinished <= self._room:
            # Some trial is not running, but only because it starts or copies another: it needs no one's place.
            decision = TrialScheduler.CONTINUE
        return decision

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        # Tune keeps a process only for a trial that waits, and in a population that runs all at once none does: so
        # this trial waits for its own.
        controller, kind = tune_controller._tune_controller, trial.placement_group_factory
        controller._staged_trials.add(trial)
        controller._actor_cache.increase_max(kind)
        super()._exploit(tune_controller, trial, trial_to_clone)
        if not controller._actor_cache.has_cached_object(kind):
            # It was not kept (it had just failed): then the trial gets a new one as any other does.
            controller._staged_trials.remove(trial)
            controller._actor_cache.decrease_max(kind)


def within(config: dict[str, Any], ranges: Mapping[str, Range]) -> dict[str, Any]:
    """The settings with those that have left their range set to its end: Tune multiplies by 0.8 and 1.2, regardless."""
    clipped = {path: min(max(config[path], domain.low), domain.high) for path, domain in ranges.items()}
    return config | {path: int(value) if ranges[path].integer else value for path, value in clipped.items()}
