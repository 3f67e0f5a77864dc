"""Results on storage that every node reaches: a folder, NFS, or any URL that pyarrow's filesystems know.

A submitted job runs in a folder of the cluster's head that goes with the cluster, and often before it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from actuators.errors import ConfigError
from rayjobs.cli.console import console_err, console_out
from rayjobs.runs.joining import in_job

if TYPE_CHECKING:
    from pyarrow import fs


@contextlib.contextmanager
def stored(folder: Path, storage: str | None, *, chosen: bool) -> Iterator[None]:
    """Copies a run's folder to the storage when the block ends, well or not; without one says where a job's stays.

    Args:
        chosen: the user chose the place of the folder.

    Raises:
        ConfigError: the storage cannot be written, before the block as well as after it.
    """
    if storage is None:
        if in_job() and not chosen:
            console_err().print(left_on_the_cluster(folder), markup=False, soft_wrap=True)
        yield
        return
    target = made(storage, folder.name)
    try:
        yield
    finally:
        upload(folder, storage)
        console_out().print(f"results: {target}", markup=False, soft_wrap=True)


def left_on_the_cluster(folder: Path) -> str:
    """What a user of `ray job submit` must know who gave no storage."""
    path = folder.absolute()
    return (
        f"the results of this job stay in {path} on {socket.gethostname()}, until Ray clears it: give --storage URL, "
        f"or fetch them: ray rsync-down cluster.yaml {path} ."
    )


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
