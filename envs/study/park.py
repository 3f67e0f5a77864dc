"""Park's `load_balance` problem: which of ten unequal servers gets the next job, whose size is known.

Rules: Mao et al., "Park: An Open Platform for Learning-Augmented Computer Systems" (2019), with heavy-tailed jobs in
order at a load of 91 %. An evolution strategy searches the scorer's 56 parameters (docs/studies.md#park).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit

from actuators.contract.arrays import FloatArray
from actuators.options import Options

STUDY_MEAN_JOB_TIME = {
    "random": (15121.0, 296.0), "round_robin": (14622.0, 406.0), "shortest_queue": (1137.0, 36.0),
    "least_work": (862.0, 26.0), "learned": (644.0, 12.0),
}  # fmt: skip
"""Mean job time and its standard error over 400 episodes: docs/studies.md#park."""

_ROUND_ROBIN, _SHORTEST_QUEUE, _LEAST_WORK, _LEARNED = 1, 2, 3, 4
POLICIES = ("random", "round_robin", "shortest_queue", "least_work", "learned")
SCORER_INPUTS, SCORER_HIDDEN = 5, 8
SCORER_SIZE = SCORER_HIDDEN * (SCORER_INPUTS + 2)

JOBS, SERVERS = 1000, 10
"""Jobs per episode, and servers."""
RATES = np.linspace(0.15, 1.05, SERVERS)
"""``[servers]``: size units per time unit."""
PARETO_SHAPE, PARETO_SCALE = 1.5, 100.0
"""Tail of the job sizes, and the smallest size."""
MEAN_GAP = 55.0
"""Mean time between two jobs; exponential, rounded down."""


@dataclass(frozen=True, eq=False)
class Jobs:
    """The jobs of one episode: arrival times and sizes, each ``[jobs]``."""

    arrivals: FloatArray
    sizes: FloatArray

    @classmethod
    def draw(cls, seed: int) -> Jobs:
        """Equal seeds give equal jobs for every policy."""
        generator = np.random.default_rng(seed)
        gaps = np.floor(generator.exponential(MEAN_GAP, JOBS))
        sizes = np.floor((generator.pareto(PARETO_SHAPE, JOBS) + 1) * PARETO_SCALE)
        return cls(gaps.cumsum(), sizes)


def mean_job_times(policy: str, seeds: range, scorer: FloatArray | None = None) -> FloatArray:
    """Mean job time of one episode per seed, ``[seeds]``; all policies get the same jobs.

    Args:
        policy: one of `POLICIES`; ties go to a random server.
        scorer: parameters ``[SCORER_SIZE]`` of the learned policy, see `envs.study.park`.
    """
    parameters = np.zeros(SCORER_SIZE) if scorer is None else scorer
    code = POLICIES.index(policy)
    times = []
    for seed in seeds:
        jobs = Jobs.draw(seed)
        times.append(_play(jobs.arrivals, jobs.sizes, RATES, code, parameters, seed))
    return np.array(times)


class EvolutionOptions(Options):
    """How the scorer is searched; defaults take about a minute on one core."""

    generations: int = 120
    """Steps of the search."""
    pairs: int = 12
    """Directions per step, each tried forwards and backwards."""
    episodes: int = 8
    """Episodes per try."""
    deviation: float = 0.1
    """Standard deviation of the tries."""
    step: float = 0.1
    """Length of a step."""


def evolve(
    options: EvolutionOptions,
    seed: int,
    report: Callable[[int, float], None] = lambda generation, time: None,
) -> FloatArray:
    """Parameters ``[SCORER_SIZE]`` of a scorer; starts as "least drain time with the job" plus small noise.

    Antithetic evolution strategy with ranked fitness (Salimans et al., 2017). Training seeds lie above 10⁶.
    """
    generator = np.random.default_rng(seed)
    centre = generator.normal(0.0, 0.3, SCORER_SIZE)
    centre[6::7] *= 0.1  # the output weights: the correction starts small
    average = centre.copy()
    for generation in range(options.generations):
        first = int(generator.integers(10**6, 2**31 - options.episodes))
        seeds = range(first, first + options.episodes)
        noise = generator.normal(0.0, 1.0, (options.pairs, SCORER_SIZE))
        tries = centre + options.deviation * np.concatenate([noise, -noise])
        times = np.array([np.log(mean_job_times("learned", seeds, t)).mean() for t in tries])
        ranks = times.argsort().argsort() / (len(times) - 1) - 0.5
        gradient = (ranks[: options.pairs] - ranks[options.pairs :]) @ noise / options.pairs
        centre = (
            centre - options.step * gradient / max(float(np.linalg.norm(gradient)), 1e-9) * np.sqrt(SCORER_SIZE) * 0.3
        )
        average = 0.9 * average + 0.1 * centre
        report(generation, float(np.exp(times.mean())))
    return average


@njit(cache=True)
def _play(
    arrivals: FloatArray, sizes: FloatArray, rates: FloatArray, policy: int, scorer: FloatArray, seed: int
) -> float:
    """Mean job time of one episode; `policy` is a place in `POLICIES`."""
    np.random.seed(seed)
    jobs, servers = len(arrivals), len(rates)
    done, size_of = np.zeros((servers, jobs)), np.zeros((servers, jobs))
    first, last = np.zeros(servers, np.int64), np.zeros(servers, np.int64)
    waiting = np.zeros(servers)
    total = 0.0
    for job in range(jobs):
        now, size = arrivals[job], sizes[job]
        best, best_cost, ties = 0, np.inf, 0
        for server in range(servers):
            while first[server] < last[server] and done[server, first[server]] <= now:
                first[server] += 1
                if first[server] < last[server]:
                    waiting[server] -= size_of[server, first[server]]
            count, load = last[server] - first[server], waiting[server]
            if count > 0:
                load += (done[server, first[server]] - now) * rates[server]
            turn = (server - job) % servers
            cost = _cost(policy, scorer, turn, count, load, size, rates[server])
            if cost < best_cost:
                best, best_cost, ties = server, cost, 1
            elif cost == best_cost:
                # The k-th of equal servers takes the place of the earlier ones with probability 1/k.
                ties += 1
                best = server if np.random.random() * ties < 1 else best
        starts = now
        if first[best] < last[best]:
            starts = done[best, last[best] - 1]
            waiting[best] += size
        done[best, last[best]], size_of[best, last[best]] = starts + np.floor(size / rates[best]), size
        total += done[best, last[best]] - now
        last[best] += 1
    return total / jobs


@njit(cache=True)
def _cost(policy: int, scorer: FloatArray, turn: int, count: int, load: float, size: float, rate: float) -> float:
    if policy == _SHORTEST_QUEUE:
        return float(count)
    if policy == _LEAST_WORK:
        return load
    if policy == _LEARNED:
        return float(_score(scorer, load, count, size, rate))
    return float(turn) if policy == _ROUND_ROBIN else 0.0


@njit(cache=True)
def _score(scorer: FloatArray, load: float, count: int, size: float, rate: float) -> float:
    """Cost of a server: a small network's correction of the log of its drain time with the job."""
    drain = np.log1p((load + size) / rate / 100.0)
    inputs = (drain, np.log1p(load / 100.0), np.log1p(float(count)), np.log(size / 100.0), rate)
    cost = drain
    for unit in range(SCORER_HIDDEN):
        base = unit * (SCORER_INPUTS + 2)
        inner = scorer[base + SCORER_INPUTS]
        for index in range(SCORER_INPUTS):
            inner += scorer[base + index] * inputs[index]
        cost += scorer[base + SCORER_INPUTS + 1] * np.tanh(inner)
    return float(cost)
