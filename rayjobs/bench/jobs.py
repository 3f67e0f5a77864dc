"""Bench `jobs`: `ray job submit` to the first training result, `ray job stop` to the last process, exit codes.

A head that takes submitted jobs, and what the bench `jobs` does with it, as a user types it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from actuators.errors import ProcessError
from actuators.http_client import http_session
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure
from rayjobs.runs.local_ray import LocalRay

FIRST_RESULT_S = 75.0
STOP_S = 15.0


def measure(context: BenchContext) -> Sequence[Bar]:
    """The bars of submitted jobs, on a head of its own; the live job only when not quick."""
    with job_head() as head:
        # The first job uploads the package and starts the first workers: only the second one finds a warm head.
        cold_s = first_result_s(head, "cold", context.work_dir / "cold")
        head.command("stop", "cold")
        context.log(f"first result of the first job after {cold_s:.1f} s")
        how = "the configuration train-quick: upload, start, observation, first training iteration"
        bars = [figure("ray job submit to first training result, first job of a head", cold_s, "s", how=how)]
        if context.quick:
            return bars
        warm_s = first_result_s(head, "warm", context.work_dir / "warm")
        head.command("stop", "warm")
        bars.append(at_most("ray job submit to first training result, warm head", warm_s, FIRST_RESULT_S, "s", how=how))
        stop_s, count = stop_live_s(head, "live", context.work_dir / "live")
        how = f"live training with {count} processes under its folder, stopped under load"
        bars.append(at_most("ray job stop to its last process", stop_s, STOP_S, "s", how=how))
        shown, real = wrong_option_code(head)
        how = "a typo in an option: 2 in the job's record; the command itself knows only 0 and 1"
        bars.append(at_least("real exit code of a job", float(real or 0), 2.0, "", how=how, reference=float(shown)))
    return bars


ROOT = Path(__file__).parents[2]
READY_TIMEOUT_S = 150.0
POLL_S = 0.05


@dataclass(frozen=True)
class JobHead:
    """A head of our own with a dashboard on loopback.

    Attributes:
        url: of its dashboard.
        environment: what its clients need.
    """

    url: str
    environment: dict[str, str]

    def command(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray job VERB …` to its end."""
        ray = str(Path(sys.executable).with_name("ray"))
        return subprocess.run(
            [ray, "job", verb, "--address", self.url, *arguments],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def submit(self, name: str, *entrypoint: str) -> None:
        """Submits this checkout with that command and returns at once. Raises ProcessError."""
        done = self.command("submit", "--no-wait", "--submission-id", name, "--working-dir", ".", "--", *entrypoint)
        if done.returncode:
            raise ProcessError("not submitted", where=name, evidence=(done.stdout + done.stderr)[-300:])

    def exit_code(self, name: str) -> int | None:
        """The real exit code of a job that has ended."""
        with http_session(10.0) as session:
            answer = session.get(f"{self.url}/api/jobs/{name}", headers=self._headers())
        code: int | None = answer.json()["driver_exit_code"]
        return code

    def answers(self) -> bool:
        """Whether jobs may be submitted."""
        try:
            with http_session(2.0) as session:
                return session.get(f"{self.url}/api/jobs/", headers=self._headers()).ok
        except requests.RequestException:
            return False

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {Path(self.environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}


@contextmanager
def job_head() -> Iterator[JobHead]:
    """A running head that takes jobs. Raises ProcessError."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    ray = LocalRay(dashboard_port=port)
    try:
        head = JobHead(f"http://127.0.0.1:{port}", {**os.environ, **ray.environment})
        ray.wait_ready(head.answers, READY_TIMEOUT_S)
        yield head
    finally:
        ray.close()


def first_result_s(head: JobHead, name: str, out: Path) -> float:
    """Seconds from typing `ray job submit` to a training run's first row of figures. Raises ProcessError."""
    began_s = time.monotonic()
    head.submit(name, "python", "-m", "rayjobs.train", "--config", "train-quick", "--set", f"out={out}")
    await_true(lambda: any(_rows(path) for path in out.glob("train-*/progress.csv")), 300.0, f"{name}'s first result")
    return time.monotonic() - began_s


def stop_live_s(head: JobHead, name: str, out: Path) -> tuple[float, int]:
    """Submits live training, stops it once NGINX is under load; seconds from typing `ray job stop` until none of its
    processes is left, and how many there were. Raises ProcessError."""
    settings = ("parallel.testbeds=1", "observe.duration_s=60", f"out={out}")
    arguments = ["--testbed", "live", *(f"--set={setting}" for setting in settings)]
    head.submit(name, "python", "-m", "rayjobs.train", *arguments)
    await_true(lambda: any("gen_load" in line for line in _processes(out).values()), 300.0, f"{name}'s load")
    count = len(_processes(out))
    began_s = time.monotonic()
    head.command("stop", name)
    await_true(lambda: not _processes(out), 60.0, f"the end of {name}'s processes")
    return time.monotonic() - began_s, count


def await_true(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Raises ProcessError when it does not come."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise ProcessError(f"{what} did not come within {timeout_s:g} s")
        time.sleep(POLL_S)


def _rows(path: Path) -> int:
    return max(len(path.read_text().splitlines()) - 1, 0)


def _processes(folder: Path) -> dict[int, str]:
    """Pid → command line of every process that has the folder in it."""
    commands = {process.pid: " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])}
    return {pid: line for pid, line in commands.items() if str(folder) in line and pid != os.getpid()}


def wrong_option_code(head: JobHead) -> tuple[int, int | None]:
    """Exit code of `ray job submit` for a typo in the options, and the job's own."""
    done = head.command(
        "submit", "--submission-id", "typo", "--working-dir", ".", "--",
        "python", "-m", "rayjobs.train", "--set", "training.stepz=3",
    )  # fmt: skip
    return done.returncode, head.exit_code("typo")
