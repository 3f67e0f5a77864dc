"""Builds the load engine from its C sources with the machine's compiler; one cached binary per state of the sources,
architecture and C library, because machines may share a home folder."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from actuators.errors import ConfigError, LoadError, MissingToolError
from actuators.files import private_folder

SOURCES = Path(__file__).parent / "gen_load"
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra")
_COMPILERS = ("cc", "gcc", "clang")
_BUILD_TIMEOUT_S = 120.0


def cache_dir() -> Path:
    """Folder for built binaries: `$XDG_CACHE_HOME/deepsched`, by default `~/.cache/deepsched`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "deepsched"


def engine_path(cache: Path | None = None) -> Path:
    """Path of an up-to-date `gen_load`, built on first use (about 2 s).

    Args:
        cache: folder for binaries; `cache_dir()` when None.

    Raises:
        MissingToolError: no C compiler.
        ConfigError: the cache folder cannot be written.
        LoadError: the sources do not compile.
    """
    folder = cache if cache is not None else cache_dir()
    binary = folder / f"gen_load-{_digest()}"
    if not _is_trusted(binary):
        _build(find_compiler(), binary)
    return binary


def find_compiler() -> str:
    """The C compiler: `$CC` or the first of cc, gcc, clang. Raises MissingToolError when there is none."""
    for name in (os.environ.get("CC", ""), *_COMPILERS):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise MissingToolError("no C compiler", where="building the load engine", remedy="apt-get install gcc")


def _digest() -> str:
    """Of the sources and of what decides whether their binary runs."""
    digest = hashlib.sha256(" ".join((*FLAGS, platform.machine(), *platform.libc_ver())).encode())
    for path in sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _is_trusted(binary: Path) -> bool:
    """Whether only this user and root can have written the program."""
    try:
        status = binary.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def _build(compiler: str, binary: Path) -> None:
    try:
        private_folder(binary.parent)
        handle, name = tempfile.mkstemp(dir=binary.parent, prefix="building-")
    except OSError as error:
        raise ConfigError(
            f"cannot write the binary cache: {error}", where=str(binary.parent), remedy="set XDG_CACHE_HOME"
        ) from error
    os.close(handle)
    try:
        command = [compiler, *FLAGS, "-o", name, *map(str, sorted(SOURCES.glob("*.c"))), "-lm"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False)
        if result.returncode != 0:
            evidence = " | ".join(result.stderr.strip().splitlines()[-4:])
            raise LoadError("the load engine does not compile", where=" ".join(command), evidence=evidence)
        os.replace(name, binary)  # of two builders at once, both make the same file
    finally:
        Path(name).unlink(missing_ok=True)
