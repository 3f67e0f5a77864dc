"""Learns Park's per-server scorer with an evolution strategy: search in 56 parameters, jobs the same for all tries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from actuators.options import Options
from envs.park import SCORER_SIZE, ParkOptions, mean_job_times

FloatArray = NDArray[np.float64]


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
    rules: ParkOptions | None = None,
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
        times = np.array([np.log(mean_job_times("learned", seeds, rules, t)).mean() for t in tries])
        ranks = times.argsort().argsort() / (len(times) - 1) - 0.5
        gradient = (ranks[: options.pairs] - ranks[options.pairs :]) @ noise / options.pairs
        centre = (
            centre - options.step * gradient / max(float(np.linalg.norm(gradient)), 1e-9) * np.sqrt(SCORER_SIZE) * 0.3
        )
        average = 0.9 * average + 0.1 * centre
        report(generation, float(np.exp(times.mean())))
    return average
