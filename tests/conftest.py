"""Fixtures for every test: nothing may be left running, short work folders, and what a test needs is marked."""

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import needs
from tests.support.arithmetic import pin
from tests.support.orphans import SESSION, processes_with, wait_gone
from tests.support.ray_head import ray, ray_head

__all__ = ["ray", "ray_head"]

# Speed is for benches: on a machine with other work an example may take its time.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
pin()
# `make test` hands these on; a make that a test starts must behave as one that a user starts.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "ARGS", "BENCH", "BENCH_QUICK"):
    os.environ.pop(name, None)
needs.prepare_environment()
# Collection makes a million objects that stay: looking through them again and again for garbage costs seconds.
gc.disable()


def pytest_itemcollected(item: pytest.Item) -> None:
    if "root_only" in getattr(item, "fixturenames", ()):
        item.add_marker("root")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that the short ones fill up what is left of the time of two processes."""

    def rank(item: pytest.Item) -> int:
        markers = {mark.name for mark in item.iter_markers()}
        return next((rank for rank, name in enumerate(("ray", "nginx", "browser")) if name in markers), 3)

    rank_of_file: dict[str, int] = {}
    for item in items:
        path = str(item.path)
        rank_of_file[path] = min(rank(item), rank_of_file.get(path, 3))
    items.sort(key=lambda item: rank_of_file[str(item.path)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """Without tests that need Ray there is nothing to keep together."""
    from tests.support.scheduling import OneRay

    whole_files = config.getvalue("dist") == "loadfile" and "not ray" not in config.option.markexpr
    return OneRay(config, log) if whole_files else None


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    needs.announce(item)


@pytest.fixture(autouse=True)
def needs_are_marked() -> Iterator[None]:
    """Fails a test that started, or tried to start, a program that it has no marker for."""
    yield
    if refused := needs.take_refusals():
        pytest.fail(refused)


@pytest.fixture(scope="session", autouse=True)
def no_orphans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails the session when a process that a test started outlives it by 10 s, and ends that process."""
    yield
    # NGINX overwrites its environment with its title; its command line still shows the folder it runs in.
    left = wait_gone(SESSION) | processes_with(f"{tmp_path_factory.getbasetemp()}/")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"tests left processes behind: {left}"


def pytest_unconfigure() -> None:
    shutil.rmtree(needs.FOLDER, ignore_errors=True)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """An empty folder with a short path: socket names below it must fit in 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ds-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def root_only() -> None:
    """For tests that make namespaces, mounts or real-time threads; other users skip them."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces or mounts, or sets real-time priorities")
