"""Control before load: threads go first for a while, children never."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from actuators.priority import going_first

POLICY = "import os; print(os.sched_getscheduler(0))"


@pytest.mark.usefixtures("root_only")
def test_all_threads_go_first_and_are_ordinary_again_and_children_are_ordinary() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with going_first():
            inside = {os.sched_getscheduler(tid or 0) & ~os.SCHED_RESET_ON_FORK for tid in (0, thread.native_id)}
            with going_first():
                pass
            still = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
            child = subprocess.run([sys.executable, "-c", POLICY], capture_output=True, text=True, check=True)
        after = {os.sched_getscheduler(tid or 0) for tid in (0, thread.native_id)}
    finally:
        done.set()
        thread.join()
    assert inside == {still} == {os.SCHED_RR}
    assert child.stdout.strip() == str(os.SCHED_OTHER)
    assert after == {os.SCHED_OTHER}
