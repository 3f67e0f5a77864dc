"""Results on storage that every node reaches: a folder, NFS, or any URL that pyarrow's filesystems know."""

from __future__ import annotations

from pathlib import Path

from pyarrow import ArrowInvalid, fs

from actuators.errors import ConfigError


def upload(folder: Path, url: str) -> str:
    """Copies a run's folder below `url`, under its own name; where it is now. Raises ConfigError.

    The experiment of a sweep is there already: Tune writes it as it goes.
    """
    filesystem, base = _resolve(url)
    target = f"{base.rstrip('/')}/{folder.name}"
    try:
        filesystem.create_dir(target, recursive=True)
        fs.copy_files(str(folder.absolute()), target, destination_filesystem=filesystem)
    except OSError as error:
        raise ConfigError(
            f"cannot write: {error}", where=url, remedy="check the storage and its credentials"
        ) from error
    return target


def _resolve(url: str) -> tuple[fs.FileSystem, str]:
    try:
        if "://" in url:
            filesystem, path = fs.FileSystem.from_uri(url)
            return filesystem, path
    except (ArrowInvalid, OSError) as error:
        raise ConfigError(
            f"not a storage that pyarrow knows: {error}", where=url, remedy="give a folder, file://… or s3://…"
        ) from error
    return fs.LocalFileSystem(), str(Path(url).absolute())
