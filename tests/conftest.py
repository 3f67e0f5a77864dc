"""Fixtures for every test: nothing may be left running, short work folders, and who may skip."""

import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

MARKER = "DEEPSCHED_TEST_SESSION"
SESSION = uuid.uuid4().hex
# Children inherit it, so that whatever a test starts can be told from everything else on the machine.
os.environ[MARKER] = SESSION
os.environ.setdefault("OMP_NUM_THREADS", "1")


def processes_with(marker: str) -> dict[int, str]:
    """Pid → command line of every other process whose environment or command line holds `marker`."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
            is_zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue  # it ended while we looked, or belongs to someone else
        if not is_zombie and marker.encode() in command + environment:
            found[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def wait_gone(marker: str, timeout_s: float = 10.0) -> dict[int, str]:
    """What is left of `processes_with(marker)` after at most `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    left = processes_with(marker)
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = processes_with(marker)
    return left


@pytest.fixture(scope="session", autouse=True)
def no_orphans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails the session when a process that a test started outlives it by 10 s; ends it, too."""
    yield
    # NGINX overwrites its environment with its title; its command line still shows the folder it runs in.
    left = wait_gone(SESSION) | processes_with(str(tmp_path_factory.getbasetemp()))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"tests left processes behind: {left}"


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """An empty folder with a short path: socket names below it must fit in 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ds-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def root_only() -> None:
    """For tests that make namespaces; the only reason to skip a test here."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes network or process namespaces")
