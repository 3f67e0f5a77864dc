"""Disasters of a machine that a test can really cause without touching anybody else: a wall clock that jumps for a
test's own processes, and a disk of its own that is full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actuators.load.build import find_compiler

_SOURCE = Path(__file__).with_name("clock.c")


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
    library, clock = folder / "clock.so", Clock(folder / "clock")
    command = [find_compiler(), "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", library, _SOURCE]
    subprocess.run(command, check=True, timeout=60)
    mine = {"LD_PRELOAD": str(library), "DEEPSCHED_TEST_CLOCK": str(folder / "clock")}
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        yield clock
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
