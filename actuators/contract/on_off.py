"""Rates that jump between two values at random times, for load plans and for scenarios."""

from __future__ import annotations

import numpy as np


def draw_on_off(
    on_s: float, off_s: float, off_factor: float, duration_s: float, generator: np.random.Generator
) -> tuple[tuple[float, float], ...]:
    """(start in s, factor on the rate) of a rate that jumps between two values after exponential times.

    With exponential gaps it is a Markov-modulated Poisson process. The mean factor over a long time is 1.

    Args:
        on_s, off_s: mean length of a period at the higher and at the lower rate.
        off_factor: the lower rate over the mean.
    """
    share = on_s / (on_s + off_s)
    factors = ((1.0 - (1.0 - share) * off_factor) / share, off_factor)
    steps, at_s, off = [], 0.0, bool(generator.random() >= share)
    while at_s < duration_s:
        steps.append((at_s, factors[off]))
        at_s += float(generator.exponential(off_s if off else on_s))
        off = not off
    return tuple(steps)
