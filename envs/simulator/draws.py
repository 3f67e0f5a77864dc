"""Counter-based random draws: a draw is a function of the stream key and the request number only.

Every policy therefore gets the same arrivals and the same work (common random numbers). The generator is SplitMix64
(Steele, Lea, Flood 2014), used as a hash of the counter.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.simulator.compiling import leaf

EXPONENTIAL, NORMAL, FIXED, ZIPF, GAMMA, WEIBULL = range(6)
ARRIVAL_CODES = {
    "exponential": EXPONENTIAL, "normal": NORMAL, "fixed": FIXED, "zipf": ZIPF, "gamma": GAMMA, "weibull": WEIBULL,
}  # fmt: skip

CONSTANT_WORK, EXPONENTIAL_WORK, LOGNORMAL_WORK = range(3)
SERVICE_CODES = {"constant": CONSTANT_WORK, "exponential": EXPONENTIAL_WORK, "lognormal": LOGNORMAL_WORK}

CELLS = 2048
TAIL_CELLS = 8
"""Outermost cells on each side in which the lognormal is computed, not interpolated."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31, _S32 = (np.uint64(bits) for bits in (11, 27, 30, 31, 32))

# The gap distributions have mean 1 after these: E[max(0, 1 + Z/2)], and E[X] of Zipf(2) on 1…1000.
_NORMAL_MEAN = 1.0 + 0.5 * (math.exp(-2.0) / math.sqrt(2 * math.pi) - 2.0 * (1.0 - NormalDist().cdf(2.0)))
_ZIPF_MAX = 1000
_ZIPF_NORM = sum(1.0 / k**2 for k in range(1, _ZIPF_MAX + 1))
_ZIPF_MEAN = sum(1.0 / k for k in range(1, _ZIPF_MAX + 1)) / _ZIPF_NORM


def stream_keys(seed: int, streams: int) -> NDArray[np.uint64]:
    """Independent keys of a seed's random streams, ``[streams]``."""
    return np.random.SeedSequence(seed).generate_state(streams, np.uint64).astype(np.uint64)


@lru_cache(maxsize=64)
def gap_shape(distribution: str, cv: float) -> tuple[float, float]:
    """Shape and scale of gaps with mean 1 and this coefficient of variation; 1, 1 where the distribution has none."""
    if distribution == "gamma":
        return 1.0 / cv**2, cv**2
    if distribution != "weibull":
        return 1.0, 1.0
    low, high = 0.05, 50.0  # the coefficient of variation falls with the shape: 1e6 and 0.03 at these
    for _ in range(100):
        shape = math.sqrt(low * high)
        spread = math.exp(math.lgamma(1.0 + 2.0 / shape) - 2.0 * math.lgamma(1.0 + 1.0 / shape)) - 1.0
        low, high = (shape, high) if spread > cv**2 else (low, shape)
    return shape, math.exp(-math.lgamma(1.0 + 1.0 / shape))


@lru_cache(maxsize=64)
def lognormal_table(cv: float) -> NDArray[np.float64]:
    """Quantiles of the lognormal with mean 1 at i / CELLS, ``[CELLS + 1]``; the two ends are not used."""
    sigma = lognormal_sigma(cv)
    table = np.ones(CELLS + 1)
    table[1:-1] = np.exp(sigma * _normal_quantiles() - sigma**2 / 2)
    return table


def lognormal_sigma(cv: float) -> float:
    """Standard deviation of the logarithm of a lognormal with this coefficient of variation."""
    return math.sqrt(math.log1p(cv**2))


@lru_cache(maxsize=1)
def _normal_quantiles() -> NDArray[np.float64]:
    normal = NormalDist()
    return np.array([normal.inv_cdf(i / CELLS) for i in range(1, CELLS)])


@leaf
def hashed(key: Any, counter: Any) -> Any:
    """Uint64 of (key, counter)."""
    z = key + np.uint64(counter + 1) * _GOLDEN
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@leaf
def uniform(key: Any, counter: Any) -> Any:
    """Uniform in (0, 1)."""
    return (float(hashed(key, counter) >> _S11) + 0.5) * (1.0 / 9007199254740992.0)


@leaf
def below(key: Any, counter: Any, limit: Any) -> Any:
    """Integer in 0…limit-1."""
    return np.int64(((hashed(key, counter) >> _S32) * np.uint64(limit)) >> _S32)


@leaf
def normal_quantile(u: float) -> Any:
    """Normal quantile, error below 4.5e-4 (Abramowitz and Stegun 26.2.23)."""
    t = math.sqrt(-2.0 * math.log(min(u, 1.0 - u)))
    z = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)))
    return z if u > 0.5 else -z


@leaf
def _zipf(u: float) -> Any:
    rest = u * _ZIPF_NORM
    for k in range(1, _ZIPF_MAX):
        rest -= 1.0 / (k * k)
        if rest <= 0.0:
            return k / _ZIPF_MEAN
    return _ZIPF_MAX / _ZIPF_MEAN


@leaf
def unit_gamma(shape: float, key: Any) -> Any:
    """Gamma of this shape and mean 1, a function of the key (Marsaglia and Tsang 2000, doi:10.1145/358407.358414)."""
    boosted = shape if shape >= 1.0 else shape + 1.0
    d = boosted - 1.0 / 3.0
    c, counter = 1.0 / math.sqrt(9.0 * d), 1
    while True:
        x = normal_quantile(uniform(key, counter))
        v = (1.0 + c * x) ** 3
        if v > 0.0 and math.log(uniform(key, counter + 1)) < 0.5 * x * x + d - d * v + d * math.log(v):
            break
        counter += 2
    factor = 1.0 if shape >= 1.0 else uniform(key, 0) ** (1.0 / shape)
    return factor * d * v / shape


@leaf
def unit_gap(step: Any, key: Any, number: Any) -> Any:
    """Gap before arrival `number` in units of the mean gap."""
    distribution = step.distribution
    if distribution == GAMMA:
        return unit_gamma(step.shape, hashed(key, number))
    if distribution == FIXED:
        return 1.0
    u = uniform(key, number)
    if distribution == EXPONENTIAL:
        return -math.log(u)
    if distribution == WEIBULL:
        return step.scale * (-math.log(u)) ** (1.0 / step.shape)
    if distribution == NORMAL:
        return max(0.0, 1.0 + 0.5 * normal_quantile(u)) / _NORMAL_MEAN
    return _zipf(u)


@leaf
def unit_work(distribution: Any, table: Any, sigma: Any, key: Any, number: Any) -> Any:
    """Work of request `number` in units of the mean work; lognormal: table inside, exact in both tails."""
    if distribution == CONSTANT_WORK:
        return 1.0
    u = uniform(key, number)
    if distribution == EXPONENTIAL_WORK:
        return -math.log(u)
    cell = int(u * CELLS)
    if TAIL_CELLS <= cell < CELLS - TAIL_CELLS:
        return table[cell] + (u * CELLS - cell) * (table[cell + 1] - table[cell])
    return math.exp(sigma * normal_quantile(u) - 0.5 * sigma * sigma)
