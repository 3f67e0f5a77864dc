"""Disasters of a machine that a test can really cause without touching anybody else: a wall clock that jumps for a
test's own processes, host names of their own, and a disk of its own that is full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actuators.load.build import find_compiler


class Clock:
    """The wall clock of processes that are started inside `jumping_clock`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(bytes(8))

    def put(self, offset_s: int) -> None:
        """Off by so much from now on; the monotonic clock goes on as ever."""
        with open(self._path, "r+b") as file:
            file.write(offset_s.to_bytes(8, "little", signed=True))


@contextmanager
def jumping_clock(folder: Path) -> Iterator[Clock]:
    """Whatever this process starts in the block reads the clock that the block is given."""
    clock = Clock(folder / "clock")
    with _preloaded(folder, "clock.c", DEEPSCHED_TEST_CLOCK=str(folder / "clock")):
        yield clock


@contextmanager
def host_name(folder: Path, name: str, *addresses: str) -> Iterator[None]:
    """Whatever this process starts in the block finds these addresses for a host name."""
    with _preloaded(folder, "names.c", DEEPSCHED_TEST_NAMES=f"{name}={','.join(addresses)}"):
        yield


@contextmanager
def _preloaded(folder: Path, source: str, **variables: str) -> Iterator[None]:
    library = folder / f"{source}.so"
    command = [find_compiler(), "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", library]
    subprocess.run([*command, Path(__file__).with_name(source)], check=True, timeout=60)
    mine = {"LD_PRELOAD": str(library), **variables}
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A disk of 1 MB mounted there; needs root."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "deepsched-test", path], check=True, timeout=20)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True, timeout=20)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Not one byte more fits on the disk in the block."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass  # as wanted: it is full
    try:
        yield
    finally:
        filler.unlink()
