"""Fits the simulator to observed windows by the simulated likelihood of NGINX's histograms; bootstrap over windows.

Given workers, the distribution of service times, its cv and the overhead, the service times follow from the mean
response times (a fixed point of the simulator). Those four are searched for the most likely histograms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.script import ServiceDistribution
from envs.calibration.options import FitOptions
from envs.calibration.replay import Evidence, Replay, ReplayCounts
from envs.calibration.result import Parameters
from envs.observation.features import quantile_s

MAX_WORKERS = 2048
LEAST_SERVICE_MS, LEAST_OVERHEAD_MS = 0.05, 1e-6
LEAST_REQUESTS = 20
_GAIN = 0.5
_CLOSE = 0.005
"""Mean relative error of the mean response times below which the service times have converged."""
_CV_STEP = 1.35
_FINE = 2


@dataclass(frozen=True, eq=False)
class Trial:
    """Parameters, the answers simulated with them, and the log likelihood of the evidence given these answers."""

    log_likelihood: float
    parameters: Parameters
    answers: ReplayCounts


class SearchPoint(NamedTuple):
    """A point of the search space: the parameters that mean response times do not determine."""

    workers: int
    service_cv: float
    overhead_ms: float
    service_distribution: ServiceDistribution = "lognormal"


@dataclass(frozen=True)
class Fit:
    """The most likely trial, and all trials of the search."""

    best: Trial
    trials: tuple[Trial, ...]


def fit(evidence: Evidence, options: FitOptions, weights: FloatArray, seed: int) -> Fit:
    """The most likely parameters. `weights` ``[windows]``: how often each window counts; 0 for held-out ones.

    A pattern search over workers, cv and overhead: a step in each direction, finer steps when none helps.
    """
    target = _Target(evidence, weights)
    workers = [options.workers] if options.workers else target.first_workers()
    start_ms = np.maximum(0.6 * target.mean_ms, LEAST_SERVICE_MS)
    starts = [SearchPoint(count, 1.0, 0.5 * target.fastest_ms) for count in workers]
    # Exponential times begin at 0, so that the fastest answers are no sign of an overhead.
    starts += [SearchPoint(count, 1.0, 0.0, "exponential") for count in workers]
    coarse = _Search(evidence, options, target, options.replicas, seed)
    best = coarse.best_of(starts, start_ms)
    for step in (1.0, 0.5):
        best = coarse.climb(best, step)
    # With few simulated answers, noise hides small differences, above all between numbers of workers.
    fine = _Search(evidence, options, target, _FINE * options.replicas, seed)
    best = fine.best_of([_place(best.parameters)], best.parameters.service_array_ms)
    for step in (0.5, 0.25):
        best = fine.climb(best, step)
    return Fit(best, tuple(fine.tried.values()))


def bootstrap(
    evidence: Evidence,
    options: FitOptions,
    weights: FloatArray,
    fitted: Fit,
    seed: int,
    on_member: Callable[[int], None] = lambda number: None,
) -> tuple[Parameters, ...]:
    """Fits to `options.bootstraps` resamples of the weighted windows.

    Workers, cv and overhead are the most likely of those that `fit` tried; the service times are fitted again, with
    other random draws each time, so that the intervals include the noise of the simulation.
    """
    generator = np.random.default_rng(seed)
    counted = np.flatnonzero(weights)
    members = []
    for number in range(options.bootstraps):
        drawn = np.bincount(generator.choice(counted, len(counted)), minlength=len(weights)).astype(float)
        target = _Target(evidence, drawn)
        near = max(fitted.trials, key=lambda trial: target.log_likelihood(trial.answers)).parameters
        replay = Replay(evidence, options.method, options.load_balancers, options.replicas, seed + 1 + number)
        members.append(_settle(replay, target, _place(near), near.service_array_ms, options.rounds).parameters)
        on_member(number + 1)
    return tuple(members)


class _Search:
    """Trials by place; each is simulated once."""

    def __init__(self, evidence: Evidence, options: FitOptions, target: _Target, replicas: int, seed: int) -> None:
        self.tried: dict[SearchPoint, Trial] = {}
        self._options, self._target = options, target
        self._replay = Replay(evidence, options.method, options.load_balancers, replicas, seed)

    def best_of(self, places: Sequence[SearchPoint], service_ms: FloatArray) -> Trial:
        """The most likely of the places; new ones start from these service times."""
        for place in places:
            if place not in self.tried:
                self.tried[place] = _settle(self._replay, self._target, place, service_ms, self._options.rounds)
        return max((self.tried[place] for place in places), key=lambda trial: trial.log_likelihood)

    def climb(self, best: Trial, step: float) -> Trial:
        """Moves to a more likely neighbour at this distance until there is none."""
        while True:
            around = neighbours(best.parameters, step, self._target.fastest_ms, self._options.workers is None)
            better = self.best_of(around, best.parameters.service_array_ms)
            if better.log_likelihood <= best.log_likelihood:
                return best
            best = better


class _Target:
    """The evidence with weighted windows, which a simulation has to reproduce."""

    def __init__(self, evidence: Evidence, weights: FloatArray) -> None:
        self.weights, self.mask = weights, evidence.topology.mask
        self.histogram = np.tensordot(weights, evidence.histogram, 1)
        requests = np.tensordot(weights, evidence.requests, 1)
        total_ms = np.tensordot(weights, evidence.response_ms, 1)
        group_ms = (total_ms.sum(axis=1) / np.maximum(requests.sum(axis=1), 1))[:, None]
        # A server with few requests is assumed to be like its group.
        self.seen = self.mask & (requests >= LEAST_REQUESTS)
        self.mean_ms = np.where(self.seen, total_ms / np.maximum(requests, 1), group_ms)
        self.share = requests / max(requests.sum(), 1)
        seconds = max(float(weights @ evidence.durations_s), 1e-9)
        self._in_flight = float(total_ms.sum(axis=0).max()) / 1e3 / seconds
        fast_s = quantile_s(self.histogram.astype(np.int64), evidence.bounds_ms, 0.05)[self.seen]
        self.fastest_ms = 1e3 * float(fast_s.min()) if fast_s.size else 1.0

    def first_workers(self) -> list[int]:
        """Starting points of the search, from the mean number of requests in flight at the busiest server."""
        least = max(math.ceil(0.7 * self._in_flight), 1)
        return sorted({min(least * factor, MAX_WORKERS) for factor in (1, 2, 4)})

    def missed_ms(self, answers: ReplayCounts) -> FloatArray:
        """Observed minus simulated mean response time, ``[groups, servers]``; 0 where one is unknown."""
        simulated = np.tensordot(self.weights, answers.requests, 1)
        mean_ms = np.tensordot(self.weights, answers.response_ms, 1) / np.maximum(simulated, 1)
        return np.where(self.mask & (simulated > 0), self.mean_ms - mean_ms, 0.0)

    def known_ms(self, trial: Trial) -> FloatArray:
        """Service times of the trial, ``[groups, servers]``; a server without simulated requests is like its group.

        Nothing has moved its service time from that of the start, and no answer depends on it.
        """
        service_ms, simulated = trial.parameters.service_array_ms, np.tensordot(self.weights, trial.answers.requests, 1)
        met = self.mask & (simulated > 0)
        group_ms = np.where(met, service_ms, 0.0).sum(axis=1, keepdims=True) / np.maximum(
            met.sum(axis=1, keepdims=True), 1
        )
        return np.where(met | ~met.any(axis=1, keepdims=True), service_ms, group_ms)

    def log_likelihood(self, answers: ReplayCounts) -> float:
        """Of the observed histograms under the simulated ones, with half an answer added to every bucket."""
        simulated = np.tensordot(self.weights, answers.histogram, 1) + 0.5
        share = simulated / simulated.sum(axis=-1, keepdims=True)
        return float((self.histogram * np.log(share))[self.seen].sum())


def _settle(replay: Replay, target: _Target, place: SearchPoint, service_ms: FloatArray, rounds: int) -> Trial:
    """The service times that give the observed mean response times at this place."""
    best: Trial | None = None
    for _ in range(rounds):
        parameters = _parameters(place, service_ms, target.mask)
        answers = replay.play(parameters)
        trial = Trial(target.log_likelihood(answers), parameters, answers)
        if best is None or trial.log_likelihood > best.log_likelihood:
            best = trial
        missed = target.missed_ms(answers)
        if float((target.share * abs(missed) / target.mean_ms).sum()) < _CLOSE:
            break
        # A longer service time also lengthens the waits of others, so a full step would overshoot.
        service_ms = np.clip(service_ms + _GAIN * missed, 0.6 * service_ms, 1.6 * service_ms)
        service_ms = np.maximum(service_ms, LEAST_SERVICE_MS)
    assert best is not None
    return replace(best, parameters=_parameters(place, target.known_ms(best), target.mask))


def neighbours(at: Parameters, step: float, fastest_ms: float, any_workers: bool) -> list[SearchPoint]:
    """The points of the search around these parameters; every one makes valid parameters."""
    move_ms, factor = step * max(0.25 * fastest_ms, 0.2), _CV_STEP**step
    here = _place(at)
    places = [here._replace(overhead_ms=max(at.overhead_ms + move, 0.0)) for move in (-move_ms, move_ms)]
    if at.service_distribution == "lognormal":
        places += [here._replace(service_cv=cv) for cv in (at.service_cv / factor, at.service_cv * factor)]
    if any_workers:
        jump = max(round(step * at.workers / 3), 1)
        places += [here._replace(workers=at.workers + move) for move in (-jump, jump)]
        # Fewer workers with more overhead look much alike: a ridge that straight steps do not follow.
        places += [
            here._replace(workers=at.workers + jump * sign, overhead_ms=max(at.overhead_ms - move_ms / 2 * sign, 0.0))
            for sign in (-1, 1)
        ]
    inside = [place for place in places if 1 <= place.workers <= MAX_WORKERS]
    return [
        place._replace(
            service_cv=min(max(place.service_cv, 0.05), 10.0),
            # Moves there and back leave a remainder of rounding.
            overhead_ms=place.overhead_ms if place.overhead_ms >= LEAST_OVERHEAD_MS else 0.0,
        )
        for place in inside
    ]


def _place(parameters: Parameters) -> SearchPoint:
    return SearchPoint(
        parameters.workers, parameters.service_cv, parameters.overhead_ms, parameters.service_distribution
    )


def _parameters(place: SearchPoint, service_ms: FloatArray, mask: NDArray[np.bool_]) -> Parameters:
    mean = np.where(mask, service_ms, 0.0).sum(axis=1, keepdims=True) / mask.sum(axis=1, keepdims=True)
    table = np.where(mask, service_ms, mean)
    rows = tuple(tuple(map(float, row)) for row in table)
    return Parameters(service_ms=rows, **place._asdict())
