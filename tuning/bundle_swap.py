"""A new bundle in an old one's place in one step; the old one is kept in `previous/`, from where it can come back."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from actuators.errors import BundleError
from tuning.trust import PREVIOUS, check_bundle

_EXCHANGE, _HERE = 2, -100
"""RENAME_EXCHANGE and AT_FDCWD, see renameat2(2)."""
_libc = ctypes.CDLL(None, use_errno=True)


def swap_in(folder: Path, fill: Callable[[Path], None]) -> None:
    """Replaces a bundle by what `fill` writes into an empty folder; a reader sees the old one or the new one.

    Raises:
        BundleError: `folder` or what was written is no bundle; the old one is untouched.
        OSError: the disk is full, or the folder cannot be written.
    """
    real = check_bundle(folder)
    with tempfile.TemporaryDirectory(prefix=f".{real.name}-", dir=real.parent) as place:
        fresh = Path(place) / "bundle"
        fresh.mkdir()
        fill(fresh)
        check_bundle(fresh)
        # What is kept is one step back: the old bundle without what that one kept.
        shutil.copytree(real, fresh / PREVIOUS, ignore=lambda path, names: {PREVIOUS} & set(names))
        fresh.chmod(real.stat().st_mode)
        _exchange(fresh, real)


def roll_back(folder: Path) -> None:
    """The bundle that `swap_in` replaced comes back, and what replaced it becomes the one before.

    Raises BundleError when there is none to go back to.
    """
    kept = check_bundle(folder) / PREVIOUS
    if not kept.is_dir():
        raise BundleError("no earlier bundle is kept", where=str(kept), remedy="there is nothing to roll back to")
    check_bundle(kept)
    swap_in(folder, lambda fresh: _copy(kept, fresh))


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def _exchange(one: Path, other: Path) -> None:
    if _libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(other))
