"""Tells what this test session started from everything else on the machine."""

import os
import time
import uuid

import psutil

MARKER = "DEEPSCHED_TEST_SESSION"
SESSION = uuid.uuid4().hex
# Children inherit it, so that whatever a test starts can be told from everything else on the machine.
os.environ[MARKER] = SESSION


def processes_with(marker: str) -> dict[int, str]:
    """Pid → command line of every other process whose environment or command line holds `marker`."""
    found = {}
    for process in psutil.process_iter(["cmdline", "environ", "status"]):
        command, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        known = any(marker in text for text in (*command, *environment.values()))
        if known and process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE:
            found[process.pid] = " ".join(command)
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_gone(marker: str, timeout_s: float = 10.0) -> dict[int, str]:
    """What is left of `processes_with(marker)` after at most `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    left = processes_with(marker)
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = processes_with(marker)
    return left
