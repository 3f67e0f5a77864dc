"""The work that a request brings, drawn by a counter-based hash of (seed, request name).

The same request has the same work whichever server answers it, and in every paired run.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

from actuators.script import ServiceDistribution

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_NORMAL = NormalDist()


class WorkDraws:
    """Draws of mean 1 for one seed.

    Args:
        cv: coefficient of variation of the lognormal; the others have their own.
    """

    def __init__(self, seed: int, distribution: ServiceDistribution, cv: float) -> None:
        self._seed, self._distribution = mix(seed & _MASK), distribution
        self._sigma = math.sqrt(math.log1p(cv * cv))

    def draw(self, sequence: str) -> tuple[float, float]:
        """(work of mean 1, a uniform of (0, 1) that decides on errors) of the request `sequence` (TYPE-N)."""
        work, fate = uniforms(self._seed, sequence)
        if self._distribution == "constant":
            return 1.0, fate
        if self._distribution == "exponential":
            return -math.log(work), fate
        return math.exp(self._sigma * (_NORMAL.inv_cdf(work) - self._sigma / 2)), fate


def uniforms(state: int, sequence: str) -> tuple[float, float]:
    """Two independent uniforms of the open interval (0, 1): outputs 2N and 2N + 1 of TYPE's own splitmix64.

    A sequence that is not TYPE-N counts as a type of its own.
    """
    name, _, number = sequence.rpartition("-")
    if number.isdecimal() and len(number) < 20:
        counter = int(number)
    else:
        name, counter = sequence, 0
    key = mix(state ^ _name_hash(name))
    first = mix((key + (2 * counter + 1) * _GOLDEN) & _MASK)
    second = mix((key + (2 * counter + 2) * _GOLDEN) & _MASK)
    return ((first >> 12) + 0.5) * 2.0**-52, ((second >> 12) + 0.5) * 2.0**-52


def mix(value: int) -> int:
    """splitmix64's output function (Steele, Lea, Flood 2014): a bijection of 64-bit integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@lru_cache(maxsize=1024)
def _name_hash(name: str) -> int:
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value
