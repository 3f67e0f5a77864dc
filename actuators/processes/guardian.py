"""A small stand-alone program between an owner and its child process: nothing is left when the owner is killed.

`actuators.processes.process` starts it with `python -I -S guardian.py OPTIONS -- COMMAND…`. It holds the read end of a
pipe (the lifeline) whose write end only the owner has. When the owner closes it, exits or is killed, the guardian ends
the command and everything that the command left behind: it is a child subreaper (prctl(2)), so workers of a killed
NGINX master become its children.

Own code, because no library does this: psutil finds and kills processes, but from within the owner, which SIGKILL ends
first. Standard library only, because it must start in milliseconds.
"""

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """Runs the command until it ends or its owner is gone; returns its exit code, 128 + N after signal N."""
    options = _parse()
    os.setsid()
    _drop_realtime_priority()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup = _wake_on_signals()
    child = _start(options, libc)
    os.write(options.status_fd, f"pid {child.pid}\n".encode())
    _wait(child, options.lifeline_fd, wakeup)
    if child.poll() is None:
        _end(child, options.stop_signal, options.grace_s)
    code = child.wait()
    _kill_leftovers()
    if options.remove and _is_closed(options.lifeline_fd):
        import shutil  # noqa: PLC0415 - a guardian must start in milliseconds

        shutil.rmtree(options.remove, ignore_errors=True)
    os.write(options.status_fd, f"exit {code}\n".encode())
    return code if code >= 0 else 128 - code


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lifeline-fd", type=int, required=True)
    parser.add_argument("--status-fd", type=int, required=True)
    parser.add_argument("--stop-signal", type=int, default=signal.SIGTERM)
    parser.add_argument("--death-signal", type=int, default=signal.SIGKILL)
    parser.add_argument("--grace-s", type=float, default=3.0)
    parser.add_argument("--remove", default="")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    return options


def _drop_realtime_priority() -> None:
    """The realtime priority of an owner (`actuators.processes.system`) is not for its command."""
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK in (os.SCHED_RR, os.SCHED_FIFO):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _wake_on_signals() -> int:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    os.set_blocking(read_end, False)
    signal.set_wakeup_fd(write_end)

    def note(number: int, frame: FrameType | None) -> None:
        """Nothing to do: the wake-up byte matters."""

    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, note)
    # The terminal's Ctrl-C is for the owner, which closes the lifeline when it has finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return read_end


def _start(options: argparse.Namespace, libc: ctypes.CDLL) -> "subprocess.Popen[bytes]":
    guardian = os.getpid()

    def in_child() -> None:
        # The kernel ends the command if the guardian itself is killed.
        libc.prctl(PR_SET_PDEATHSIG, int(options.death_signal), 0, 0, 0)
        if os.getppid() != guardian:
            os._exit(1)
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    try:
        return subprocess.Popen(options.command, stdin=subprocess.DEVNULL, preexec_fn=in_child)  # noqa: PLW1509 - one thread
    except OSError as error:
        os.write(options.status_fd, f"failed {error}\n".encode())
        sys.exit(127)


def _wait(child: "subprocess.Popen[bytes]", lifeline_fd: int, wakeup_fd: int) -> None:
    """Returns when the command has exited, the lifeline is closed, or a SIGTERM has come."""
    while child.poll() is None:
        ready, _, _ = select.select([lifeline_fd, wakeup_fd], [], [])
        if lifeline_fd in ready and not os.read(lifeline_fd, 64):
            return
        if wakeup_fd in ready and signal.SIGTERM in os.read(wakeup_fd, 512):
            return
        _reap_adopted(child.pid)


def _is_closed(lifeline_fd: int) -> bool:
    """Whether the owner has gone or has given up the command."""
    ready, _, _ = select.select([lifeline_fd], [], [], 0)
    return bool(ready) and not os.read(lifeline_fd, 64)


def _end(child: "subprocess.Popen[bytes]", stop_signal: int, grace_s: float) -> None:
    _signal_group(child.pid, stop_signal, group=False)
    deadline = time.monotonic() + grace_s
    while child.poll() is None and time.monotonic() < deadline:
        select.select([], [], [], 0.01)
    _signal_group(child.pid, signal.SIGKILL, group=True)


def _signal_group(pid: int, number: int, *, group: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if group else os.kill)(pid, number)


def _kill_leftovers() -> None:
    """Kills and reaps every descendant; a subreaper inherits those whose parents have died."""
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _reap_adopted(own: int) -> None:
    """Reaps adopted zombies, but not the command itself, which Popen waits for."""
    for pid in _children():
        if pid != own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _children() -> list[int]:
    me = os.getpid()
    with open(f"/proc/{me}/task/{me}/children") as file:
        return [int(pid) for pid in file.read().split()]


if __name__ == "__main__":
    sys.exit(main())
