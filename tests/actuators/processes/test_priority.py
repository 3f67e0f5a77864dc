"""Control before load: threads go first for a while or for good, what we run under a guardian never."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from actuators.processes.system import realtime_priority
from tests.support.paths import ROOT

POLICY = "import os; print(os.sched_getscheduler(0))"


@pytest.mark.usefixtures("root_only")
def test_all_threads_become_realtime_and_ordinary_again_and_children_are_ordinary() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with realtime_priority():
            inside = {os.sched_getscheduler(tid or 0) & ~os.SCHED_RESET_ON_FORK for tid in (0, thread.native_id)}
            with realtime_priority():
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


FOR_GOOD = """
import os, sys, threading
from pathlib import Path
from actuators.processes.process import ManagedProcess
from actuators.processes.system import set_realtime_priority
set_realtime_priority()
def tell():
    print(os.sched_getscheduler(0))
late = threading.Thread(target=tell)
late.start()
late.join()
log = Path(sys.argv[1])
command = [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"]
with ManagedProcess(command, name="child", log_path=log) as child:
    child.wait(120)
print(log.read_text())
"""


@pytest.mark.usefixtures("root_only")
def test_later_threads_are_realtime_and_a_guarded_process_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FOR_GOOD, str(tmp_path / "child.log")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == [str(os.SCHED_RR), str(os.SCHED_OTHER)]
