"""How the simulator's functions are compiled: three decorators, and a cache that notices every change.

Nothing in the event loop allocates, so arrays need no reference counts (`_nrt=False`), which would take about twenty
times as long as the simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

_SOURCES = ("arrivals", "balancers", "batch", "compiling", "draws", "engine", "lane", "queues", "counting")

Function = Callable[..., Any]

inlined = njit(inline="always", _nrt=False)
"""For functions that take the whole lane: they become part of their caller."""


def leaf(function: Function) -> Any:
    """For small functions of few arguments: as fast as inlined, and compiled once instead of once per use."""
    options = {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return _cached(njit(cache=True, error_model="numpy", _nrt=False, **options)(function))


def compiled(function: Function) -> Any:
    """For what stays a function and may be called from Python; other threads run meanwhile."""
    return _cached(njit(cache=True, nogil=True, error_model="numpy", _nrt=False)(function))


def _stamp() -> tuple[float, int]:
    files = [Path(__file__).with_name(f"{name}.py").stat() for name in _SOURCES]
    return max(file.st_mtime for file in files), sum(file.st_size for file in files)


_STAMP = _stamp()


def _cached(dispatcher: Any) -> Any:
    # numba looks at the function's own file only, but what it calls is compiled into it.
    dispatcher._cache._cache_file._source_stamp = _STAMP
    return dispatcher
