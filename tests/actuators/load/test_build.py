"""The cache of the compiled load engine runs no program that another user may have written."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from actuators.load import build
from actuators.load.build import engine_path

NOBODY = 65534


@pytest.fixture
def _sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is built at once, in place of the load engine."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "main.c").write_text("int main(void) { return 0; }\n")
    monkeypatch.setattr(build, "SOURCES", tmp_path / "sources")


@pytest.mark.usefixtures("_sources")
def test_other_machines_that_share_the_cache_have_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [engine_path(tmp_path / "cache")]
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    paths.append(engine_path(tmp_path / "cache"))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "1.0"))
    paths.append(engine_path(tmp_path / "cache"))
    assert len(set(paths)) == 3
    assert engine_path(tmp_path / "cache") == paths[-1]


def link(path: Path) -> None:
    planted = path.with_name("planted")
    path.rename(planted)
    path.symlink_to(planted)


@pytest.mark.usefixtures("root_only", "_sources")
@pytest.mark.parametrize(
    "spoil",
    [lambda path: os.chown(path, NOBODY, NOBODY), lambda path: path.chmod(0o777), link],
    ids=["owner", "mode", "link"],
)
def test_a_planted_program_is_built_anew(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    cache = tmp_path / "cache"
    binary = engine_path(cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    built = binary.read_bytes()
    assert engine_path(cache).stat().st_ino == binary.stat().st_ino, "a trusted program is used again"
    binary.write_bytes(b"#!/bin/sh\necho planted\n")
    spoil(binary)
    again = engine_path(cache)
    assert again.read_bytes() == built
    assert not again.is_symlink()
    assert (again.stat().st_uid, again.stat().st_mode & 0o022) == (0, 0)
