"""`deepsched collect`: records NGINX's statistics as JSON lines, live or from the history that Prometheus kept."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from actuators.contract.topology import Topology, social_network
from actuators.errors import ConfigError, closest
from actuators.load.engine import LoadEngine
from actuators.load.plans import PlanOptions, make_streams
from actuators.options import GIVEN, NOT_GIVEN, Never, Only
from actuators.other_proxies import names_another
from actuators.statistics.history import History
from actuators.statistics.lacks import lacks, named_groups
from actuators.statistics.reader import CollectOptions, StatusReader
from actuators.statistics.recording import SnapshotWriter, record
from actuators.statistics.vts import Snapshot
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import make_load, make_nginx, make_server
from rayjobs.cli.console import log_line
from rayjobs.cli.interrupts import Terminated
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.progress import SILENT_S
from rayjobs.load import only_errors, parse_target, topology_of
from rayjobs.runs.folder import RunFolder

_log = partial(log_line, "collect")


_LIVE = Only(prometheus=NOT_GIVEN)
_LOADED = Only(status_url=NOT_GIVEN, prometheus=NOT_GIVEN), Only(target=GIVEN)
_EMBEDDED = Only(status_url=NOT_GIVEN, prometheus=NOT_GIVEN)
_AGO_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class CollectRunOptions(PlanOptions):
    """What is recorded, where it is written, and which load runs meanwhile."""

    only: ClassVar = {
        **dict.fromkeys(PlanOptions.model_fields.keys() - {"duration_s"}, _LOADED),
        "duration_s": _LIVE,
        "until_pid": Only(status_url=GIVEN, target=NOT_GIVEN),
        "status_url": _LIVE,
        "target": _LIVE,
        "live.load": _LOADED,
        "live.service": _EMBEDDED,
        "live.nginx": _EMBEDDED,
        "live.collect": Never("set reading"),
    }

    out: Path = Path("snapshots.json")
    """File that the snapshots are appended to, one JSON object per line."""
    status_url: str = ""
    """vts JSON of your NGINX, as http://[USER:PASSWORD@]HOST:PORT/status/format/json, or its Prometheus text, which
    lacks weights; or an HAProxy or Envoy, as haproxy:/run/haproxy/admin.sock or envoy:http://127.0.0.1:9901. An
    embedded testbed when not given."""
    groups: tuple[str, ...] = ()
    """Upstreams that are recorded; all when empty."""
    prometheus: str = ""
    """Prometheus server whose history is recorded, as http://HOST:9090; when not given, live readings are recorded."""
    match: Annotated[str, Only(prometheus=GIVEN)] = ""
    """Selector of one NGINX in Prometheus, as {instance="10.0.0.1:80"}; the only one that it watches when not given."""
    start: Annotated[str, Only(prometheus=GIVEN)] = "1d"
    """Start of the history: a time as 2026-11-01T00:00:00Z, or how long ago, as 90m, 6h, 14d or 2w."""
    end: Annotated[str, Only(prometheus=GIVEN)] = "0s"
    """End of the history, written as `start`."""
    step_s: Annotated[float, Only(prometheus=GIVEN)] = Field(15.0, gt=0)
    """Shortest time between two snapshots of the history; a scrape is taken once."""
    target: str = ""
    """http://HOST:PORT that receives the load plan; without it, your NGINX is only read."""
    until_pid: int = Field(0, ge=0)
    """Process, for example your load generator, whose end also ends the recording; 0 for none."""
    interval_s: Annotated[float, _LIVE] = Field(0.5, gt=0)
    """Time between two snapshots."""
    reading: Annotated[CollectOptions, _LIVE] = CollectOptions()
    """How the statistics are read."""
    live: LiveOptions = LiveOptions()
    """Parts of the embedded testbed, and the load engine."""


@dataclass
class Subject:
    """The NGINX that is recorded, and the engine that sends load to it."""

    status_url: str
    engine: LoadEngine | None = None


@dataclass
class Chosen:
    """Restricts snapshots to the wanted groups, and says once what they do not show, or that they show none."""

    groups: tuple[str, ...]
    _said: set[str] = field(default_factory=set)
    _seen: set[str] = field(default_factory=set)

    def __call__(self, snapshot: Snapshot) -> Snapshot:
        """The wanted part. Raises ConfigError for a group that NGINX does not have."""
        known = named_groups(snapshot)
        for name in () if self._seen or snapshot.source == "prometheus" else self.groups:
            if name not in known:
                raise ConfigError(f"NGINX has no upstream '{name}'", where="--groups", remedy=closest(name, known))
        wanted = {name: snapshot.groups[name] for name in self.groups or snapshot.groups if name in snapshot.groups}
        self._seen |= set(wanted)
        if not wanted and "upstream" not in self._said:
            self._said.add("upstream")
            which = "of --groups" if self.groups else "block"
            _log(f"the statistics show no upstream {which}: readings without one are not recorded; {_why(snapshot)}")
        chosen = replace(snapshot, groups=wanted)
        for lack in lacks(chosen):
            if lack.name not in self._said:
                self._said.add(lack.name)
                _log(f"{lack.what}; {lack.remedy}")
        return chosen

    def unseen(self) -> list[str]:
        """Wanted groups that no snapshot had."""
        return sorted(set(self.groups) - self._seen)


def _why(snapshot: Snapshot) -> str:
    """What to do where no upstream is shown."""
    if snapshot.source == "prometheus":
        return "metrics show a server after its first request"
    if snapshot.is_nginx:
        return "let proxy_pass name an upstream block with the servers"
    return "give a load balancer that has servers"


def run(options: CollectRunOptions) -> int:
    """Records until the load ends, the duration is over, or Ctrl-C; 0 then, and 1 when nothing was recorded.

    Raises LoadError when the load engine has died; what was recorded before remains.
    """
    _check(options)
    chosen = Chosen(options.groups)
    with SnapshotWriter(options.out) as writer:
        if options.prometheus:
            _record_history(options, chosen, writer)
        else:
            with (
                _subject(options) as subject,
                StatusReader(subject.status_url, options.reading, takes_text=True) as reader,
            ):
                _record(options, subject, lambda: chosen(reader.snapshot()), writer)
    for name in chosen.unseen():
        _log(f"upstream '{name}' had no request")
    _log(f"{writer.written} snapshots and {writer.gaps} gaps in {options.out}")
    return 0 if writer.written else 1


def _check(options: CollectRunOptions) -> None:
    if options.target and not options.status_url:
        raise ConfigError("--target without --status-url", remedy="give the URL of that NGINX's statistics")
    if options.target:
        parse_target(options.target)
    for flag, url in (("--status-url", options.status_url), ("--prometheus", options.prometheus)):
        other = flag == "--status-url" and names_another(url)
        if url and not other and not url.startswith(("http://", "https://")):
            raise ConfigError(f"'{url}' is not a URL", where=flag, remedy="write it as http://HOST:PORT/PATH")


def _record_history(options: CollectRunOptions, chosen: Chosen, writer: SnapshotWriter) -> None:
    start_s, end_s = time_of(options.start, "--start"), time_of(options.end, "--end")
    if start_s >= end_s:
        remedy = f"give an earlier --start, or a later --end than '{options.end}'"
        raise ConfigError(f"'{options.start}' is not before the end", where="--start", remedy=remedy)
    tell = _teller(writer)
    with History(options.prometheus, options.match, options.groups) as history:
        for snapshot in history.snapshots(start_s, end_s, options.step_s):
            writer.write(chosen(snapshot))
            tell()


def time_of(text: str, flag: str) -> float:
    """Seconds since the epoch of a time, or of how long ago. Raises ConfigError."""
    ago = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    if ago:
        return time.time() - int(ago[1]) * _AGO_S[ago[2]]
    try:
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        remedy = "write 2026-11-01T00:00:00Z, or how long ago: 90m, 6h, 14d"
        raise ConfigError(f"'{text}' is not a time", where=flag, remedy=remedy) from error


@contextlib.contextmanager
def _subject(options: CollectRunOptions) -> Iterator[Subject]:
    """The user's NGINX or an embedded one; the load has started."""
    with contextlib.ExitStack() as stack:
        if options.status_url and not options.target:
            yield Subject(options.status_url)
            return
        folder = RunFolder.create(None, "collect", options.seed, options)
        streams = make_streams(options, options.live.load.engine)
        if options.target:
            address, topology, url = parse_target(options.target), topology_of(streams, {}), options.status_url
        else:
            address, topology, url = _embedded(options, folder.path, stack)
        engine = make_load(options.live, folder.path / "load")
        stack.callback(engine.close)
        engine.start(address, topology, streams, seed=options.seed, duration_s=options.duration_s)
        _log(f"load plan '{options.plan}' on http://{address} for {options.duration_s:g} s, statistics at {url}")
        yield Subject(url, engine)


def _embedded(options: CollectRunOptions, folder: Path, stack: contextlib.ExitStack) -> tuple[str, Topology, str]:
    """Address, topology and status URL of servers and an NGINX started here."""
    servers = []
    for index in range(len(social_network().servers)):
        servers.append(make_server(options.live, folder, index, options.seed))
        stack.callback(servers[-1].close)
    topology = social_network(tuple(server.address for server in servers))
    nginx = make_nginx(options.live, topology, folder)
    stack.callback(nginx.close)
    return nginx.address, topology, nginx.status_url


def _teller(writer: SnapshotWriter) -> Callable[[], None]:
    """Says how much was recorded, when nothing was said for `SILENT_S`."""
    said_s = time.monotonic()

    def tell() -> None:
        nonlocal said_s
        if time.monotonic() - said_s >= SILENT_S:
            said_s = time.monotonic()
            _log(f"{writer.written} snapshots and {writer.gaps} gaps so far")

    return tell


def _record(options: CollectRunOptions, subject: Subject, read: Callable[[], Snapshot], writer: SnapshotWriter) -> None:
    pause, tell = _pause(options, subject), _teller(writer)

    def pause_and_tell(duration_s: float) -> bool:
        end_s = time.monotonic() + duration_s
        while (left_s := end_s - time.monotonic()) > SILENT_S:
            if pause(SILENT_S):
                return True
            tell()
        tell()
        return pause(left_s)

    try:
        record(read, writer, options.interval_s, pause_and_tell, _log)
    except Terminated:
        raise
    except KeyboardInterrupt:
        pass  # Ctrl-C is the usual end of a recording
    if subject.engine is not None:
        summary = subject.engine.partial_summary()
        # After Ctrl-C, requests may be in flight that have not failed.
        if only_errors(summary) and any(counts.any() for counts in summary.errors.values()):
            _log("no request of the load was answered without an error; check the target")


def _pause(options: CollectRunOptions, subject: Subject) -> Callable[[float], bool]:
    end_s, stopped = time.monotonic() + options.duration_s, threading.Event()

    def pause(duration_s: float) -> bool:
        if subject.engine is not None:
            ended = subject.engine.wait(duration_s)
            while subject.engine.poll_summaries():
                pass  # their sum is all that is asked for; a dead engine is an error after its last window
            return ended
        stopped.wait(min(duration_s, max(end_s - time.monotonic(), 0.0)))
        gone = options.until_pid > 0 and not os.path.exists(f"/proc/{options.until_pid}")
        return gone or time.monotonic() >= end_s

    return pause


VERB = Verb(
    name="collect",
    example="deepsched collect example.json --status-url http://127.0.0.1:8080/status/format/json --duration-s 60",
    options=CollectRunOptions,
    run=run,
    positional=("out",),
    common=(
        "status_url", "groups", "interval_s", "duration_s", "until_pid", "prometheus", "match", "start", "end",
        "step_s", "target", "plan", "rate_rps",
    ),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
