"""The check that no test leaves a process behind, tested itself."""

import os
import subprocess
import sys
import uuid

from conftest import MARKER, SESSION, processes_with, wait_gone


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
        os.kill(grandchild, 9)
        process.kill()
    assert not {process.pid, grandchild} & set(wait_gone(SESSION, 5.0))


def test_other_processes_are_none_of_its_business() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={MARKER: "another"}) as process:
        assert process.pid not in processes_with(SESSION)
        assert process.stdin is not None
        process.stdin.close()
    assert processes_with(uuid.uuid4().hex) == {}
