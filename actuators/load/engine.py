"""Runs the load engine (gen_load/): start a plan, poll its windows, stop, finish with a summary."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, ClassVar

from pydantic import Field

from actuators.closing import Closing
from actuators.contract.script import Clients, Stream
from actuators.contract.topology import Topology
from actuators.contract.window import LoadWindow, merge_load_windows
from actuators.errors import ConfigError, LoadError
from actuators.files import private_folder
from actuators.load.build import engine_path
from actuators.load.plans import plan_text
from actuators.load.summary import LoadSummary
from actuators.options import Moved, Options
from actuators.processes.process import ManagedProcess

LONGEST_TIMEOUT_S = 120.0
"""Of both time-outs: the latency histogram ends at 134 s (`actuators.contract.histogram.SIZE`)."""
_END_S = 2.0
LONGEST_FINISH_S = 2 * LONGEST_TIMEOUT_S + _END_S
"""Longest wait of `LoadEngine.finish` without a time-out of the caller."""
MOST_UNREAD = 1000
"""Windows that are kept apart until they are polled: 68 MB with three types."""


class LoadOptions(Options):
    """How the load engine sends requests; the plan says which and when."""

    timeout_s: float = Field(10.0, gt=0, le=LONGEST_TIMEOUT_S)
    """Longest wait for a response, or for a free connection, in seconds; at most 120, because the latency histogram
    ends at 134 s."""
    connect_timeout_s: float = Field(3.0, gt=0, le=LONGEST_TIMEOUT_S)
    """Longest wait for a connection to open, in seconds; at most 120."""
    max_connections: int = Field(2048, ge=1, le=60000)
    """Most connections open at once; requests beyond that wait, and count as late or not sent."""
    spin_us: float = Field(0.0, ge=0)
    """Busy-wait before each send, in microseconds: exact to microseconds with 60, at the cost of CPU time. At 0, random
    gaps have none, and fixed ones as long as waking up is late on this machine, at most a quarter of the gap. With 1
    there is practically none."""
    normal_priority: bool = False
    """Keep the normal scheduling priority: sends may then be late on a busy machine."""
    allow_cpu_idle: bool = False
    """Let a virtual machine's idle cores halt: sends are then late when its host is busy."""
    users: int = Field(962, ge=2)
    """Number of users in the requests; DeathStarBench's social graph has 962."""
    saturated_cpu_share: float = Field(0.9, gt=0)
    """CPU share of the engine (0…1) above which a window counts as saturated."""
    saturated_delay_ms: float = Field(10.0, gt=0)
    """p99 of the engine's own part of the send delay, in milliseconds, above which a window counts as saturated."""
    body_files: dict[str, Path] = Field(default_factory=dict)
    """Request type to a file whose bytes are the body of every request; built-in bodies when not given."""
    engine: Path | None = None
    """A `gen_load` that was built elsewhere, for machines without a compiler; built on first use by default."""

    moved: ClassVar = {"let_cores_sleep": Moved("allow_cpu_idle")}


class LoadEngine(Closing):
    """One load engine at a time; a context manager. `start` may be called again: it ends a running engine first.

    Windows count what happened in them: `planned` by intended send time, `sent` by actual send time,
    responses, errors and latencies by the time they ended. So a window is final at its end, and the windows of a run
    add up exactly to its summary. After the end of the plan more windows follow until nothing is in flight;
    the last one may be short. When more than `MOST_UNREAD` windows wait for a poll, the oldest ones are added to one.

    Raises:
        MissingToolError: no compiler and no `options.engine`.
    """

    def __init__(self, options: LoadOptions, work_dir: Path) -> None:
        self.options, self.work_dir = options, Path(work_dir)
        self.binary = options.engine or engine_path()
        self._process: ManagedProcess | None = None
        self._output: EngineOutput | None = None
        self._seen = LoadSummary.empty(())
        self.started_at_s = 0.0
        """`time.monotonic()` of the plan's second 0."""
        self.started_unix_s = 0.0
        """The same in seconds since the epoch."""
        self.priority = "normal"
        """Scheduling priority of the engine: ``realtime`` (until it is saturated), ``raised`` or ``normal``."""
        self.cores_awake = False
        """Whether idle cores of this virtual machine are kept from halting while the engine runs."""
        self.wake_late_us, self.spin_us = 0.0, 0.0
        """By how much a sleep ends too late here (0 where it was not measured), and the busy-wait that is in force."""

    def start(
        self,
        address: str,
        topology: Topology,
        streams: Sequence[Stream],
        *,
        seed: int,
        duration_s: float,
        window_s: float = 1.0,
        clients: Sequence[Clients] = (),
        deadlines_s: Sequence[float] = (),
        varied: bool = False,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Starts the plan against `address` (``HOST:PORT``); returns after the engine has begun (milliseconds).

        Args:
            clients: per group, when they give up and repeat; without, they wait for `timeout_s` and never repeat.
            deadlines_s: per group, within which an answer counts as good; without, none does.
            varied: requests differ in cost, as `actuators.social_network.costs` says.
            extra: further options of `gen_load`, for example ``{"requests-csv": "requests.csv"}``.

        Raises:
            ConfigError: a duration, window, stream or body file is invalid.
            LoadError: the engine did not start, or the address accepts no connections.
        """
        self.close()
        _check_positive(duration_s, "duration")
        _check_positive(window_s, "window")
        private_folder(self.work_dir)
        plan = self.work_dir / "load-plan.txt"
        plan.write_text(plan_text(topology, streams, self.options.body_files, clients, deadlines_s, varied=varied))
        arguments = {
            "target": address, "plan": str(plan), "seed": str(seed), "duration-s": repr(float(duration_s)),
            "window-s": repr(float(window_s)), **self._option_arguments(), **(extra or {}), "output": "json",
        }  # fmt: skip
        log = self.work_dir / "load-engine.log"
        log.unlink(missing_ok=True)
        self._process = ManagedProcess(
            [str(self.binary), *(f"--{name}={value}" for name, value in arguments.items())],
            name="the load engine",
            log_path=log,
            pipe_stdout=True,
            stop_signal=signal.SIGKILL,
        )
        self._output = EngineOutput(self._process.stdout)
        self._seen = LoadSummary.empty(topology.request_types)
        self._await_begin(self._output)

    @property
    def running(self) -> bool:
        """True from `start` until the engine has written everything and ended."""
        return self._output is not None and not self._output.ended

    @property
    def pid(self) -> int:
        """Process id of the engine. Raises LoadError before `start` and after `close`."""
        if self._process is None:
            raise LoadError("no load was started", remedy="call start first")
        return self._process.pid

    def poll(self) -> list[LoadWindow]:
        """The windows completed since the last poll; never waits.

        Raises LoadError when the engine has died, after returning all windows that it had written.
        """
        return [part.window() for part in self.poll_summaries()]

    def window(self) -> LoadWindow:
        """The windows completed since the last poll, as one; never waits. Raises LoadError as `poll`."""
        return merge_load_windows(self.poll(), len(self._seen.request_types))

    def poll_summaries(self) -> list[LoadSummary]:
        """As `poll`; the windows also have raw latencies and bytes."""
        if self._output is None:
            return []
        died = self._output.ended and self._output.summary is None
        parts = self._output.take_windows()
        for part in parts:
            self._seen += part
        if died and not parts:
            raise self._death()
        return parts

    def wait(self, timeout_s: float) -> bool:
        """True once the engine has ended; False after `timeout_s` seconds."""
        return self._output is None or self._output.wait_end(timeout_s)

    def stop(self) -> None:
        """Ends the arrivals now; requests in flight have until their timeout."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    def finish(self, timeout_s: float | None = None) -> LoadSummary:
        """The summary, when the plan has ended or was stopped and nothing is in flight.

        Args:
            timeout_s: None for as long as requests in flight may take after `stop`, by the options' time-outs; at
                most `LONGEST_FINISH_S`.

        Raises LoadError when the engine died, or still runs after `timeout_s` seconds.
        """
        if self._output is None:
            raise LoadError("no load was started", remedy="call start first")
        if timeout_s is None:
            timeout_s = self.options.timeout_s + self.options.connect_timeout_s + _END_S
        if not self._output.wait_end(timeout_s):
            raise LoadError(f"the load has not ended after {timeout_s:g} s", remedy="call stop first, or wait longer")
        if self._output.summary is None:
            raise self._death()
        return self._output.summary

    def partial_summary(self) -> LoadSummary:
        """The sum of the windows polled so far, for a run whose engine has died (`complete` is False)."""
        return replace(self._seen, complete=False)

    def close(self) -> None:
        """Kills the engine if it still runs; idempotent."""
        process, self._process, self._output = self._process, None, None
        if process is not None:
            process.close()

    def _option_arguments(self) -> dict[str, str]:
        names = (
            "timeout_s", "connect_timeout_s", "max_connections", "spin_us", "users", "saturated_cpu_share",
            "saturated_delay_ms",
        )  # fmt: skip
        arguments = {name.replace("_", "-"): str(getattr(self.options, name)) for name in names}
        flags = [name for name in ("normal_priority", "allow_cpu_idle") if getattr(self.options, name)]
        return arguments | dict.fromkeys((name.replace("_", "-") for name in flags), "")

    def _await_begin(self, output: EngineOutput) -> None:
        begun = output.wait_begin(self.options.connect_timeout_s + 5.0)
        if output.begin is None:
            error = self._death() if begun else LoadError("the load engine did not begin", where=str(self.work_dir))
            self.close()
            raise error
        self.started_at_s, self.started_unix_s = output.begin["monotonic_s"], output.begin["unix_s"]
        self.priority, self.cores_awake = output.begin["priority"], output.begin.get("cores_awake", False)
        self.wake_late_us, self.spin_us = (output.begin.get(name, 0.0) for name in ("wake_late_us", "spin_us"))

    def _death(self) -> LoadError:
        """The error for an engine that ended without a summary: its own message when it refused the plan."""
        assert self._process is not None
        code = self._process.wait(5.0)
        message = self._process.log_tail(1).removeprefix("gen_load: ")
        if code == 2:
            return LoadError(message, remedy="correct the target or the plan")
        where = str(self._process.log_path)
        return LoadError(f"the load engine died with code {code}", where=where, evidence=message)


class EngineOutput:
    """The JSON lines of one run of the engine, read in a thread, so that neither process waits for the other.

    Attributes:
        begin: the ``start`` line; None before it.
        summary: of the ``summary`` line; None before it.
        ended: the engine has closed its output.
    """

    def __init__(self, stdout: IO[bytes]) -> None:
        self.begin: dict[str, Any] | None = None
        self.summary: LoadSummary | None = None
        self.ended = False
        self._windows: deque[LoadSummary] = deque()
        self._news = threading.Condition()
        # Duplicated, because the process may close its stream during a read.
        descriptor = os.dup(stdout.fileno())
        threading.Thread(target=self._read, args=(descriptor,), name="load-engine-output", daemon=True).start()

    def take_windows(self) -> list[LoadSummary]:
        """The windows since the last call, in order, the oldest of more than `MOST_UNREAD` as one; never waits."""
        with self._news:
            windows = list(self._windows)
            self._windows.clear()
        return windows

    def wait_begin(self, timeout_s: float) -> bool:
        """True once the engine has begun or ended; False after `timeout_s` seconds."""
        with self._news:
            return self._news.wait_for(lambda: self.begin is not None or self.ended, timeout_s)

    def wait_end(self, timeout_s: float) -> bool:
        """True once the engine has ended; False after `timeout_s` seconds."""
        with self._news:
            return self._news.wait_for(lambda: self.ended, timeout_s)

    def _read(self, descriptor: int) -> None:
        try:
            with os.fdopen(descriptor, "rb") as stream:
                for line in stream:
                    self._sort(line)
        finally:
            with self._news:
                self.ended = True
                self._news.notify_all()

    def _sort(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            return  # torn: the engine was killed while it wrote
        # Parsed on arrival, because the caller asks at the end of an interval, when every millisecond counts.
        content = json.loads(line)
        summary = None if content["kind"] == "start" else LoadSummary.from_json(content)
        with self._news:
            if summary is None:
                self.begin = content
            elif content["kind"] == "window":
                self._windows.append(summary)
                if len(self._windows) > MOST_UNREAD:
                    self._windows.appendleft(self._windows.popleft() + self._windows.popleft())
            else:
                self.summary = summary
            self._news.notify_all()


def _check_positive(value_s: float, name: str) -> None:
    if not 0 < value_s < float("inf"):
        raise ConfigError(f"{name} is {value_s:g} s", where="load plan", remedy="it must be more than 0")
