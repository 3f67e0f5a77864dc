"""DeathStarBench's wrk2 as a second load engine: the user's binary and Lua scripts, our summary.

Where its counts differ from ours there are warnings; its behaviour is described in docs/nginx-facts.md#wrk2. Neither
wrk nor the original wrk2 can run such plans: they have no distribution of gaps (`-D`).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from actuators.closing import Closing
from actuators.contract import histogram
from actuators.contract.script import Stream
from actuators.errors import ConfigError, LoadError, MissingToolError, ProcessError
from actuators.files import private_folder
from actuators.load.summary import LoadSummary
from actuators.options import Options
from actuators.processes.process import ManagedProcess

DISCARDED_S = 10.0
"""wrk2 empties its histogram after ten seconds; a shorter run keeps everything in it."""
_OTHER_RATE = 0.01
"""Share of the plan's rate by which the one of wrk2 may differ without a warning."""
_USAGE_TIMEOUT_S = 10.0
_BUILD = "build wrk2 of https://github.com/delimitrou/DeathStarBench (folder wrk2) and give its path"
_LUA_SOCKET = (
    "install LuaSocket (apt-get install lua-socket) and set LUA_PATH='/usr/share/lua/5.1/?.lua;;' and "
    "LUA_CPATH='/usr/lib/x86_64-linux-gnu/lua/5.1/?.so;;'"
)
_DISTRIBUTIONS = {"exponential": "exp", "fixed": "fixed", "zipf": "zipf"}


class Wrk2Options(Options):
    """The user's wrk2; one process per request type."""

    path: Path | None = None
    """The binary; without it the engine cannot run, because a `wrk` on the PATH may be a different program."""
    scripts: dict[str, Path] = Field(default_factory=dict)
    """Request type to its Lua script (-s); without one for each type of the mix the engine cannot run."""
    threads: int = Field(1, ge=1)
    """Threads per process (-t)."""
    connections: int = Field(64, ge=1)
    """Connections per process (-c); at least four times the requests in flight, because wrk2 pipelines."""


@dataclass(frozen=True)
class Wrk2Plan:
    """One process: a request type at a constant rate, which wrk2 takes in whole requests per thread and second.

    Attributes:
        rate_rps: what wrk2 sends; `asked_rps`: what the plan asks for.
    """

    request_type: str
    rate_rps: int
    asked_rps: float
    distribution: str
    script: Path


class Wrk2Engine(Closing):
    """Runs wrk2 for every stream at once; a context manager.

    Attributes:
        warnings: one line for each way in which its summary differs from ours.
    """

    def __init__(self, options: Wrk2Options, work_dir: Path) -> None:
        self.options, self.work_dir = options, Path(work_dir)
        self.binary = _find(options.path)
        usage = _usage(self.binary)
        self._shows_sent = "-r, --requests" in usage
        self.warnings: list[str] = []
        self._plans: list[Wrk2Plan] = []
        self._processes: list[ManagedProcess] = []
        self._duration_s = 0

    def start(self, url: str, streams: Sequence[Stream], *, duration_s: float) -> None:
        """Starts a process per stream that has requests.

        Raises:
            ConfigError: a plan without requests or one that wrk2 cannot run (changing rates, `normal`), or a missing
                script.
            ProcessError: a process did not start.
        """
        self.close()
        self._plans = [
            _plan(stream, self.options) for stream in streams if any(step.rate_rps > 0 for step in stream.steps)
        ]
        if not self._plans:
            raise ConfigError("the plan has no requests", where="load plan", remedy="give a rate of more than 0")
        self._duration_s = max(round(duration_s), 1)
        self.warnings = _warnings(self._plans, duration_s, self._duration_s)
        if not self._shows_sent:
            self.warnings.append(
                "this wrk2 does not tell how many requests it sent: those without an answer are unknown"
            )
        private_folder(self.work_dir)
        for plan in self._plans:
            log = self.work_dir / f"wrk2-{plan.request_type}.txt"
            log.unlink(missing_ok=True)
            command = [
                str(self.binary), "-D", _DISTRIBUTIONS[plan.distribution], f"-t{self.options.threads}",
                f"-c{max(self.options.connections, self.options.threads)}", f"-d{self._duration_s}s",
                f"-R{plan.rate_rps}", "-L", *(["-r"] if self._shows_sent else []), "-s", str(plan.script), url,
            ]  # fmt: skip
            name = f"wrk2 of {plan.request_type}"
            self._processes.append(ManagedProcess(command, name=name, log_path=log, cwd=plan.script.parent))

    def wait(self, timeout_s: float) -> bool:
        """True once all processes have ended. Raises LoadError for a script that does not load."""
        for plan, process in zip(self._plans, self._processes, strict=True):
            _check_script(plan, process)
        running = [process for process in self._processes if process.poll() is None]
        if running:
            with contextlib.suppress(ProcessError):  # it still runs
                running[0].wait(timeout_s)
        return all(process.poll() is not None for process in self._processes)

    def stop(self) -> None:
        """Ends the arrivals; wrk2 then prints its results."""
        for process in self._processes:
            process.send_signal(signal.SIGINT)

    def finish(self, timeout_s: float) -> LoadSummary:
        """All types' results as one summary; warns of answers whose latency is not in it.

        Raises LoadError for a process that failed or printed no results.
        """
        parts = []
        for plan, process in zip(self._plans, self._processes, strict=True):
            code = process.wait(timeout_s)
            _check_script(plan, process)
            if code != 0:
                raise LoadError(f"{process.name} ended with code {code}", evidence=process.log_tail())
            text = process.log_path.read_text(encoding="utf-8", errors="replace")
            parts.append(parse_output(text, plan.request_type, plan.rate_rps, self._duration_s))
        summary = _joined(parts)
        for name, answered, counts in zip(
            summary.request_types, summary.answered.tolist(), summary.raw_counts, strict=True
        ):
            if counts.sum() < answered:
                self.warnings.append(f"{name}: latencies are those of {counts.sum()} of {answered} answers")
        return summary

    def close(self) -> None:
        for process in self._processes:
            process.close()
        self._processes = []


def parse_output(text: str, request_type: str, rate_rps: int, duration_s: int) -> LoadSummary:
    """The summary of the ``-L -r`` output of one process.

    wrk2 counts latency from the actual send time, as `raw_counts` does; `latency_counts` repeats them, because they are
    equal for a sender that is on time. It does not tell statuses from 400 on apart: they count as status_5xx. What it
    calls timeouts are connections without a recent request, counted again every 2 s: they are not used. `timeout` are
    the requests without an answer at the end.

    `planned` is rate times duration, or times what an interrupted run had of it: wrk2 does not tell how many requests
    its random gaps gave.

    Raises LoadError when there are no results in it.
    """
    ended = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m|h),", text)
    if ended is None:
        last = " | ".join(text.strip().splitlines()[-3:])
        raise LoadError("wrk2 printed no results", where=f"type {request_type}", evidence=last)
    answered, end_s = int(ended[1]), float(ended[2]) * _SECONDS[ended[3]]
    sent_line = re.search(r"Sent (\d+) requests", text)
    socket = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout \d+", text)
    connect, read, write = map(int, socket.groups()) if socket else (0, 0, 0)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    received = re.search(r"requests in [^,]+, ([\d.]+)([KMGT]?)B read", text)
    counts, sum_s = _spectrum(text)
    sent = max(int(sent_line[1]) if sent_line else answered + read + write, answered)
    closed = min(read + write, sent - answered)
    empty = LoadSummary.empty((request_type,))
    errors = {
        "connect": connect,
        "timeout": sent - answered - closed,
        "closed": closed,
        "status_5xx": int(refused[1]) if refused else 0,
    }
    return replace(
        empty,
        end_s=end_s,
        planned=_one(round(rate_rps * min(duration_s, end_s))),
        sent=_one(sent),
        answered=_one(answered),
        errors={**empty.errors, **{name: _one(count) for name, count in errors.items()}},
        received_bytes=_one(round(float(received[1]) * _BYTES[received[2]]) if received else 0),
        latency_counts=counts[None, :],
        latency_s_sum=np.array([sum_s]),
        raw_counts=counts[None, :],
        raw_s_sum=np.array([sum_s]),
        windows=1,
    )


_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_ROW = re.compile(r"^\s+([\d.]+)\s+([\d.]+)\s+(\d+)(?:\s+[\d.inf]+)?\s*$", re.MULTILINE)


def _spectrum(text: str) -> tuple[np.ndarray, float]:
    """Counts ``[histogram.SIZE]`` from the first detailed percentile spectrum, and the sum in seconds."""
    counts = np.zeros(histogram.SIZE, dtype=np.int64)
    _, found, rest = text.partition("Detailed Percentile spectrum:")
    table, _, footer = rest.partition("#[Mean")
    before = 0
    for value_ms, _share, cumulative in _ROW.findall(table):
        counts[histogram.bucket_of(round(float(value_ms) * 1e3))] += int(cumulative) - before
        before = int(cumulative)
    mean = re.match(r"\s*=\s*([\d.]+)", footer)
    return counts, float(mean[1]) / 1e3 * before if found and mean else 0.0


def _find(path: Path | None) -> Path:
    if path is None:
        raise ConfigError("no wrk2 binary", where="engine wrk2", remedy="give its path")
    program = shutil.which(path)
    if program is None:
        raise MissingToolError(f"'{path}' is not a program", where="engine wrk2", remedy=_BUILD)
    return Path(program).absolute()


def _usage(binary: Path) -> str:
    """What the program says of its options. Raises MissingToolError when it is not the wrk2 of DeathStarBench."""
    try:
        done = subprocess.run([binary, "-v"], capture_output=True, timeout=_USAGE_TIMEOUT_S, check=False)
        text = (done.stdout + done.stderr).decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingToolError(f"does not run: {error}", where=str(binary), remedy=_BUILD) from error
    if "-D, --dist" in text and "-R, --rate" in text:
        return text
    known = "wrk2, but not that of DeathStarBench" if "-R, --rate" in text else "wrk, not wrk2"
    what = known if text.startswith("wrk ") else "not wrk2"
    raise MissingToolError(f"it is {what}: it has no option -D", where=str(binary), remedy=_BUILD)


def _check_script(plan: Wrk2Plan, process: ManagedProcess) -> None:
    """Raises LoadError when wrk2 could not load the script: it then sends GET requests for the bare URL instead."""
    text = process.log_path.read_text(encoding="utf-8", errors="replace")
    said = next((line for line in text.splitlines() if line.startswith((f"{plan.script}: ", "PANIC: "))), "")
    if not said:
        return
    what = said.removeprefix(f"{plan.script}: ")[-200:]
    remedy = _LUA_SOCKET if "module 'socket' not found" in said else "correct the script"
    raise LoadError(f"its Lua script fails: {what}", where=str(plan.script), remedy=remedy)


def _plan(stream: Stream, options: Wrk2Options) -> Wrk2Plan:
    where = f"type {stream.request_type}"
    if len(stream.steps) != 1:
        raise ConfigError("wrk2 sends at a constant rate only", where=where, remedy="use the plan 'constant'")
    step = stream.steps[0]
    if step.distribution not in _DISTRIBUTIONS:
        raise ConfigError(
            f"wrk2 does not implement '{step.distribution}' gaps: it would send without a limit", where=where,
            remedy=f"use one of {', '.join(_DISTRIBUTIONS)}, or the native engine",
        )  # fmt: skip
    script = options.scripts.get(stream.request_type)
    if script is None or not Path(script).is_file():
        raise ConfigError(
            f"no Lua script '{script}'" if script else "no Lua script", where=where,
            remedy="give one per request type of the mix, as DeathStarBench's wrk2/scripts/social-network/*.lua",
        )  # fmt: skip
    per_thread = max(round(step.rate_rps / options.threads), 1)
    rate_rps = per_thread * options.threads
    return Wrk2Plan(stream.request_type, rate_rps, step.rate_rps, step.distribution, Path(script).absolute())


def _warnings(plans: Sequence[Wrk2Plan], asked_s: float, duration_s: int) -> list[str]:
    """What to know of these plans; `duration_s` is what wrk2 takes of `asked_s`."""
    lines = [
        f"{plan.request_type}: wrk2 takes whole requests per second and thread, {plan.rate_rps}/s in place of"
        f" {plan.asked_rps:g}/s"
        for plan in plans
        if abs(plan.rate_rps - plan.asked_rps) > _OTHER_RATE * plan.asked_rps
    ]
    if duration_s != asked_s:
        lines.append(f"wrk2 takes whole seconds: it runs for {duration_s} s in place of {asked_s:g} s")
    lines += [
        "wrk2 pipelines: NGINX does not see requests that wait in a connection, and answers a connection in order",
        "wrk2 counts latency from the actual send time and rounds its timers to milliseconds",
        "wrk2's timeouts count idle connections: requests without an answer at the end are counted instead",
    ]
    if duration_s > DISCARDED_S:
        lines.append(f"wrk2 does not count the latencies of the first {DISCARDED_S:g} s")
    if DISCARDED_S < duration_s < 3 * DISCARDED_S:
        lines.append(f"{duration_s:g} s leave little after that; run at least {3 * DISCARDED_S:g} s")
    distributions = {plan.distribution for plan in plans}
    if "fixed" in distributions:
        lines.append("wrk2's fixed gaps are not even: every connection has a separate clock, and all start together")
    if "zipf" in distributions:
        lines.append("wrk2's zipf differs: exponent 3 over 1…100")
    return lines


def _joined(parts: Sequence[LoadSummary]) -> LoadSummary:
    """One summary with a row for the type of each part."""
    first = parts[0]
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name, value in vars(first).items()
        if isinstance(value, np.ndarray)
    }
    errors = {name: np.concatenate([part.errors[name] for part in parts]) for name in first.errors}
    types = tuple(name for part in parts for name in part.request_types)
    return replace(first, request_types=types, errors=errors, end_s=max(part.end_s for part in parts), **joined)


def _one(value: int) -> np.ndarray:
    return np.array([value], dtype=np.int64)
