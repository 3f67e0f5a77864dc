"""Results on storage that every node reaches: a folder, NFS, or any URL that pyarrow's filesystems know.

A submitted job runs in a folder of the cluster's head that goes with the cluster, and often before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from actuators.errors import ConfigError
from rayjobs.cli.console import console_out
from rayjobs.cli.interrupts import reserved

if TYPE_CHECKING:
    from pyarrow import fs


UPLOAD_S = 300.0
"""How long results may take to the storage after a signal."""


@contextlib.contextmanager
def stored(folder: Path, storage: str | None) -> Iterator[None]:
    """Copies a run's folder to the storage, if there is one, when the block ends, well or not.

    Raises:
        ConfigError: the storage cannot be written, before the block as well as after it.
    """
    if storage is None:
        yield
        return
    target = made(storage, folder.name)
    with reserved(UPLOAD_S):
        try:
            yield
        finally:
            upload(folder, storage)
            console_out().print(f"results: {target}", markup=False, soft_wrap=True)


def made(url: str, name: str) -> str:
    """The folder of this name below the URL, which exists then. Raises ConfigError."""
    filesystem, base = _resolve(url)
    target = f"{base.rstrip('/')}/{name}"
    try:
        filesystem.create_dir(target, recursive=True)
    except OSError as error:
        raise _unwritable(url, error) from error
    return target


def upload(folder: Path, url: str) -> str:
    """Copies a run's folder below `url`, under its own name; where it is now. Raises ConfigError.

    The experiment of a sweep is there already: Tune writes it as it goes.
    """
    from pyarrow import fs

    target = made(url, folder.name)
    try:
        fs.copy_files(str(folder.absolute()), target, destination_filesystem=_resolve(url)[0])
    except OSError as error:
        raise _unwritable(url, error) from error
    return target


def _unwritable(url: str, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write: {error}", where=url, remedy="check the storage and its credentials")


def _resolve(url: str) -> tuple[fs.FileSystem, str]:
    from pyarrow import ArrowInvalid, fs

    try:
        if "://" in url:
            filesystem, path = fs.FileSystem.from_uri(url)
            return filesystem, path
    except (ArrowInvalid, OSError) as error:
        raise ConfigError(
            f"not a storage that pyarrow knows: {error}", where=url, remedy="give a folder, file://… or s3://…"
        ) from error
    return fs.LocalFileSystem(), str(Path(url).absolute())
