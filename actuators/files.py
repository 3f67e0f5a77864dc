"""Atomic writes: a file is written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actuators.errors import ConfigError


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replaces `path` by `data` in one step: a reader sees the old file or the new one, also after a crash.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; `path` is untouched.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_private(path: Path, text: str) -> None:
    """`write_atomic` of a secret: from its first byte only this user can read it, whatever was at `path` before.

    A symbolic link at `path` is replaced, not followed. Raises OSError.
    """
    with replacing(path, private=True) as temporary:
        temporary.write_bytes(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Atomically writes indented JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A temporary path in the same folder that becomes `path` when the block succeeds and is removed when it fails.

    For writers that need a file name (parquet, npz). The name keeps the suffix of `path`.

    Args:
        private: only this user may read the file; otherwise it has the user's usual permissions.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=f".tmp{path.suffix}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files (mode 0600).
        if not private:
            temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def writable_folder(path: Path) -> Path:
    """Makes the folder and its parents, checks that files can be written in it, and returns the absolute path.

    Raises:
        ConfigError: it is a file, or cannot be made or written.
    """
    folder = path.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write in this folder: {error.strerror}", where=str(folder), remedy="choose another with --out"
        ) from error
    return folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
