"""95 % intervals from resampled rounds, hierarchical over seeds: how far a ratio may be from what was measured.

Rounds of one seed share what the policies learned in it, so seeds are resampled as wholes, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from actuators.window import FloatArray

RESAMPLES = 1000
"""Only their spread is used: 1000 tell it to 2 %."""
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class SpreadPart:
    """One level of the hierarchy.

    Attributes:
        draws: ``[resamples, rounds]``, how often each round is in each resample.
        units: things that were resampled, per thing that they are in.
        freedom: degrees of freedom of its variance.
    """

    draws: FloatArray
    units: float
    freedom: int


@lru_cache(maxsize=256)
def spread_parts(run_seeds: tuple[int, ...], seed: int) -> list[SpreadPart]:
    """The rounds within their seeds and, when there are several seeds, the seeds themselves; empty for one round."""
    rounds, seeds = len(run_seeds), sorted(set(run_seeds))
    rng = np.random.default_rng([seed, rounds])
    member = np.array([[run_seed == one for run_seed in run_seeds] for one in seeds], dtype=float)
    if len(seeds) == rounds:
        # One round per seed: nothing can be said of rounds within a seed, and nothing needs to be.
        member = np.ones((1, rounds))
        seeds = seeds[:1]
    parts = []
    if rounds > len(seeds):
        inside = sum(rng.multinomial(int(row.sum()), row / row.sum(), size=RESAMPLES).astype(float) for row in member)
        parts.append(SpreadPart(np.asarray(inside), rounds / len(seeds), rounds - len(seeds)))
    if len(seeds) > 1:
        whole = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=RESAMPLES) @ member
        parts.append(SpreadPart(whole, len(seeds), len(seeds) - 1))
    return parts


def interval(
    value: float, draws: Sequence[FloatArray], parts: Sequence[SpreadPart]
) -> tuple[float | None, float | None]:
    """Student's interval with the bootstrap's standard error, on the log scale unless a draw is 0.

    Plain bootstrap percentiles are too narrow for few rounds: they lack the factor sqrt(n/(n-1)) and take
    the spread as known (Hesterberg 2015, doi 10.1080/00031305.2015.1089789, section 4.3), and with two or
    three rounds they can end at the estimate itself.

    The variance over whole seeds holds that of their rounds already; where it is the larger one, its excess
    is what seeds add. Both shares give the degrees of freedom (Satterthwaite 1946, doi 10.2307/3002019).

    Args:
        draws: per part, the value of each resample.
    """
    if not all(np.isfinite(values).all() for values in draws):
        return None, None
    logarithmic = value > 0 and all((values > 0).all() for values in draws)
    variances = [
        _variance(value, values, part, logarithmic=logarithmic) for values, part in zip(draws, parts, strict=True)
    ]
    shares = [variances[0], *(max(later - variances[0], 0.0) for later in variances[1:])]
    total = sum(shares)
    if total == 0:
        return value, value
    freedom = total**2 / sum(share**2 / part.freedom for share, part in zip(shares, parts, strict=True))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(total))
    if logarithmic:
        factor = float(np.exp(min(reach, 700.0)))
        return value / factor, value * factor
    return max(value - reach, 0.0), value + reach


def _variance(value: float, draws: FloatArray, part: SpreadPart, *, logarithmic: bool) -> float:
    deviations = np.log(draws / value) if logarithmic else draws - value
    return float(np.mean(deviations**2) * part.units / (part.units - 1))
