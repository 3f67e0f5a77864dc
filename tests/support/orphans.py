"""Tells what this test session started from everything else on the machine."""

import os
import time
import uuid
from pathlib import Path

MARKER = "DEEPSCHED_TEST_SESSION"
SESSION = uuid.uuid4().hex
# Children inherit it, so that whatever a test starts can be told from everything else on the machine.
os.environ[MARKER] = SESSION


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
