"""How the simulator's functions are compiled: three decorators, and a cache that notices every change.

Nothing in the event loop allocates, so arrays need no reference counts (`_nrt=False`), which would take about twenty
times as long as the simulation.

Compiling takes half a minute. The cache goes by the content of the sources and not by their place, so that a job under
Ray, whose folder is always a new one, and a fresh clone find what was compiled before. NUMBA_CACHE_DIR is obeyed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from numba import njit
from numba.core import config

from actuators.files import is_own_folder, private_folder

_SOURCES = (
    "arrivals", "balancers", "batch", "binding", "clients", "compiling", "counting", "draws", "engine", "gate", "lane",
    "prequal", "queues", "rivals", "stages",
)  # fmt: skip

Function = Callable[..., Any]

inlined = njit(inline="always", _nrt=False)
"""For functions that take the whole lane: they become part of their caller."""


def leaf(function: Function) -> Any:
    """For small functions of few arguments: as fast as inlined, and compiled once instead of once per use."""
    return _cached(function, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def compiled(function: Function) -> Any:
    """For what stays a function and may be called from Python; other threads run meanwhile."""
    return _cached(function, nogil=True)


def _stamp() -> str:
    """Changes with every source, because what a function calls is compiled into it, and with checks of bounds."""
    digest = hashlib.sha256(f"bounds checked: {config.BOUNDSCHECK}".encode())
    for name in _SOURCES:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()


STAMP = _stamp()
"""Of these sources."""


def cache_folder() -> Path | None:
    """This user's own folder for these sources; None where there cannot be one, or where numba was told another."""
    if config.CACHE_DIR:
        return None
    base, name = os.environ.get("XDG_CACHE_HOME"), f"simulator-{STAMP[:16]}"
    with contextlib.suppress(OSError, RuntimeError):
        folder = private_folder((Path(base) if base else Path.home() / ".cache") / "deepsched" / name)
        # A folder that cannot be written, or that others can write, is not used.
        tempfile.TemporaryFile(dir=folder).close()
        return folder if is_own_folder(folder) else None
    return None


FOLDER = cache_folder()
"""Where compiled functions are kept."""


class SourceCache:
    """Tells numba where a function's compiled form is kept and when it is out of date.

    The methods are those of numba's cache locators (NUMBA_CACHE_LOCATOR_CLASSES in numba's reference).
    """

    def __init__(self, function: Function) -> None:
        self._line = function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, function: Function, file: str) -> Self:
        return cls(function)

    def ensure_cache_path(self) -> None:
        """Nothing is to be made: the folder is there."""

    def get_cache_path(self) -> str:
        return str(FOLDER)

    def get_source_stamp(self) -> str:
        return STAMP

    def get_disambiguator(self) -> str:
        return str(self._line)


def _cached(function: Function, **options: Any) -> Any:
    before = config.CACHE_LOCATOR_CLASSES
    if FOLDER is not None:
        config.CACHE_LOCATOR_CLASSES = f"{__name__}.{SourceCache.__name__}"
    try:
        dispatcher = njit(cache=True, error_model="numpy", _nrt=False, **options)(function)
    finally:
        config.CACHE_LOCATOR_CLASSES = before
    # numba looks at the function's own file only.
    dispatcher._cache._cache_file._source_stamp = STAMP
    return dispatcher
