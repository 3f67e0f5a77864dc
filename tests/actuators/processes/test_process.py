"""Nothing that we start outlives us: every way for an owner, a guardian or a command to die."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from actuators.errors import ProcessError
from actuators.processes.process import ManagedProcess
from tests.support.orphans import alive
from tests.support.waiting import PATIENCE_S, wait_until

# A command that leaves a grandchild in a session of its own and ignores SIGTERM.
STUBBORN = (
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)\n"
)


def wait_gone(*pids: int) -> None:
    wait_until(lambda: not any(map(alive, pids)), lambda: f"still alive: {[pid for pid in pids if alive(pid)]}")


def test_close_ends_a_stubborn_command_and_its_grandchild(tmp_path: Path) -> None:
    process = ManagedProcess(
        [sys.executable, "-c", STUBBORN], name="stubborn", log_path=tmp_path / "log", pipe_stdout=True, grace_s=0.2
    )
    grandchild = int(process.stdout.readline())
    assert alive(process.pid)
    assert alive(grandchild)
    process.close()
    process.close()
    wait_gone(process.pid, grandchild)


@pytest.mark.parametrize("victim", ["owner", "command"])
def test_sigkill_leaves_nothing(tmp_path: Path, victim: str) -> None:
    owner_code = (
        "import psutil, sys, time\nfrom pathlib import Path\nfrom actuators.processes.process import ManagedProcess\n"
        f"p = ManagedProcess([sys.executable, '-c', {STUBBORN!r}], name='x', log_path=Path({str(tmp_path / 'log')!r}),"
        " pipe_stdout=True, grace_s=0.2)\n"
        "print(p.pid, p.stdout.readline().decode().strip(), psutil.Process(p.pid).ppid(), flush=True)\n"
        "time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", owner_code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    try:
        command, grandchild, guardian = map(int, owner.stdout.readline().split())
        os.kill({"owner": owner.pid, "command": command}[victim], signal.SIGKILL)
        wait_gone(command, grandchild, guardian)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()


def test_a_killed_owners_folder_is_removed_and_that_of_a_command_which_ended_is_kept(tmp_path: Path) -> None:
    """The log of a command that ended by itself is evidence for its owner."""
    folder = tmp_path / "private"
    folder.mkdir()
    owner_code = (
        "import time\nfrom pathlib import Path\nfrom actuators.processes.process import ManagedProcess\n"
        f"folder = Path({str(folder)!r})\n"
        "early = ManagedProcess(['true'], name='early', log_path=folder / 'early', remove=folder)\n"
        "early.wait(60)\nassert folder.exists()\n"
        "late = ManagedProcess(['sleep', '600'], name='late', log_path=folder / 'late', remove=folder)\n"
        "print(late.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", owner_code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        command = int(owner.stdout.readline())
        owner.kill()
    wait_gone(command)
    wait_until(lambda: not folder.exists())


def test_killed_guardian_takes_the_command_along(tmp_path: Path) -> None:
    with ManagedProcess(["sleep", "600"], name="sleep", log_path=tmp_path / "log") as process:
        psutil.Process(process.pid).parent().kill()
        wait_gone(process.pid)


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="no-such-program"):
        ManagedProcess(["no-such-program"], name="ghost", log_path=tmp_path / "log")


def test_a_process_that_did_not_start_closes_no_file_of_somebody_else(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="did not start") as raised:
        ManagedProcess(["true"], name="true", log_path=tmp_path / "log", cwd=tmp_path / "nowhere")
    # The next files get the numbers that its pipes had.
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
    del raised
    gc.collect()
    for file in files:
        os.close(file)


def test_an_early_end_carries_the_log_tail(tmp_path: Path) -> None:
    with ManagedProcess(
        [sys.executable, "-c", "import sys; sys.exit('the reason')"], name="early", log_path=tmp_path / "log"
    ) as process:
        with pytest.raises(ProcessError, match="the reason"):
            process.wait_ready(lambda: False)
        assert process.poll() == 1


def test_exit_code_of_a_signal(tmp_path: Path) -> None:
    with ManagedProcess(["sleep", "600"], name="sleep", log_path=tmp_path / "log") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGINT
