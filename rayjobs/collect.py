"""`deepsched collect`: records NGINX's statistics as JSON lines, with or without load from here."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from actuators.contract.topology import Topology, social_network
from actuators.errors import ConfigError
from actuators.load.engine import LoadEngine
from actuators.load.plans import PlanOptions, make_streams
from actuators.options import GIVEN, NOT_GIVEN, Never, Only
from actuators.statistics.reader import CollectOptions, StatusReader
from actuators.statistics.recording import SnapshotWriter, record
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import make_load, make_nginx, make_server
from rayjobs.cli.console import log_line
from rayjobs.cli.interrupts import Terminated
from rayjobs.cli.main import Verb, run_verb
from rayjobs.load import parse_target, topology_of
from rayjobs.runs.folder import RunFolder

_log = partial(log_line, "collect")


_LOADED = Only(status_url=NOT_GIVEN), Only(target=GIVEN)


class CollectRunOptions(PlanOptions):
    """What is recorded, where it is written, and which load runs meanwhile."""

    only: ClassVar = {
        **dict.fromkeys(PlanOptions.model_fields.keys() - {"duration_s"}, _LOADED),
        "until_pid": Only(status_url=GIVEN, target=NOT_GIVEN),
        "live.load": _LOADED,
        "live.service": Only(status_url=NOT_GIVEN),
        "live.nginx": Only(status_url=NOT_GIVEN),
        "live.collect": Never("set reading"),
    }

    out: Path = Path("snapshots.json")
    """File that the snapshots are appended to, one JSON object per line."""
    status_url: str = ""
    """vts JSON of your NGINX, as http://HOST:PORT/status/format/json; an embedded testbed when not given."""
    target: str = ""
    """http://HOST:PORT that receives the load plan; without it, your NGINX is only read."""
    until_pid: int = Field(0, ge=0)
    """Process, for example your load generator, whose end also ends the recording; 0 for none."""
    interval_s: float = Field(0.5, gt=0)
    """Time between two snapshots."""
    reading: CollectOptions = CollectOptions()
    """How the statistics are read."""
    live: LiveOptions = LiveOptions()
    """Parts of the embedded testbed, and the load engine."""


@dataclass
class Subject:
    """The NGINX that is recorded, and the engine that sends load to it."""

    status_url: str
    engine: LoadEngine | None = None


def run(options: CollectRunOptions) -> int:
    """Records until the load ends, the duration is over, or Ctrl-C; 0 then."""
    _check(options)
    with (
        SnapshotWriter(options.out) as writer,
        _subject(options) as subject,
        StatusReader(subject.status_url, options.reading) as reader,
    ):
        _record(options, subject, reader, writer)
    _log(f"{writer.written} snapshots and {writer.gaps} gaps in {options.out}")
    return 0


def _check(options: CollectRunOptions) -> None:
    if options.target and not options.status_url:
        raise ConfigError("--target without --status-url", remedy="give the URL of that NGINX's statistics")
    if options.status_url and not options.status_url.startswith(("http://", "https://")):
        raise ConfigError(
            f"'{options.status_url}' is not a URL", where="--status-url", remedy="write it as http://HOST:PORT/PATH"
        )


@contextlib.contextmanager
def _subject(options: CollectRunOptions) -> Iterator[Subject]:
    """The user's NGINX or an embedded one; the load has started."""
    with contextlib.ExitStack() as stack:
        if options.status_url and not options.target:
            yield Subject(options.status_url)
            return
        folder = RunFolder.create(None, "collect", options.seed, options)
        streams = make_streams(options)
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


def _record(options: CollectRunOptions, subject: Subject, reader: StatusReader, writer: SnapshotWriter) -> None:
    try:
        record(reader, writer, options.interval_s, _pause(options, subject), _log)
    except Terminated:
        raise
    except KeyboardInterrupt:
        return  # Ctrl-C is the usual end of a recording


def _pause(options: CollectRunOptions, subject: Subject) -> Callable[[float], bool]:
    end_s, stopped = time.monotonic() + options.duration_s, threading.Event()

    def pause(duration_s: float) -> bool:
        if subject.engine is not None:
            return subject.engine.wait(duration_s)
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
    common=("status_url", "target", "interval_s", "duration_s", "until_pid", "plan", "rate_rps", "mix", "seed"),
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
