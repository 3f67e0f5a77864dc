"""The check that no test leaves a process behind, tested itself."""

import os
import signal
import subprocess
import sys
import uuid

from tests.support.orphans import MARKER, SESSION, processes_with, wait_gone


def test_what_a_test_starts_is_found_and_its_children_too() -> None:
    child = [sys.executable, "-c", "import signal; signal.pause()"]
    parent = [
        sys.executable,
        "-c",
        f"import subprocess, signal; print(subprocess.Popen({child}).pid, flush=True); signal.pause()",
    ]
    with subprocess.Popen(parent, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        assert {process.pid, grandchild} <= set(processes_with(SESSION))
        process.kill()
    assert grandchild in processes_with(SESSION), "an orphan is still found"
    os.kill(grandchild, signal.SIGKILL)


def test_it_waits_for_what_is_about_to_end() -> None:
    marker = uuid.uuid4().hex
    ending = [sys.executable, "-c", "import time; time.sleep(0.3)"]
    with subprocess.Popen(ending, env={MARKER: marker}) as process:
        assert process.pid in processes_with(marker)
        assert wait_gone(marker) == {}


def test_other_processes_are_none_of_its_business() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={MARKER: "another"}) as process:
        assert process.pid not in processes_with(SESSION)
        assert process.stdin is not None
        process.stdin.close()
    assert processes_with(uuid.uuid4().hex) == {}
