"""`deepsched load`: sends a load plan and reports every request, from its intended send time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from actuators.errors import ConfigError, LoadError
from actuators.load import LoadEngine, LoadOptions
from actuators.load_plan_file import plan_text
from actuators.load_plans import PlanOptions, make_streams
from actuators.load_summary import LoadSummary
from actuators.script import Stream
from actuators.topology import Group, Topology, social_network
from actuators.wrk2 import Wrk2Engine, Wrk2Options
from rayjobs.cli import Verb, run_verb
from rayjobs.console import remarks, results
from rayjobs.load_report import LoadReport
from rayjobs.runs import RunFolder

POLL_S = 0.1
_ANY_SERVER = ("server:80",)


class LoadRunOptions(PlanOptions):
    """Where the load goes, what sends it, and what is kept."""

    target: str = "http://127.0.0.1:8080"
    """http://HOST:PORT of the NGINX."""
    requests: dict[str, str] = Field(default_factory=dict)
    """Further request types for --mix or a trace: name to 'METHOD /PATH'."""
    window_s: float = Field(1.0, gt=0)
    """Length of a reported window."""
    engine: Literal["native", "wrk2"] = "native"
    """native: gen_load of this project; wrk2: your binary and Lua scripts, constant plans only."""
    output: Literal["auto", "json", "text"] = "auto"
    """stdout: JSON lines (actuators/load.schema.json), or a table; auto: a table on a terminal."""
    out: Path | None = None
    """Folder for the run's files; `runs` by default."""
    sending: LoadOptions = LoadOptions()
    """How the native engine sends."""
    wrk2: Wrk2Options = Wrk2Options()
    """The second engine."""


def run(options: LoadRunOptions) -> int:
    """Sends the plan; 0 when it ran to its end."""
    address = parse_target(options.target)
    streams = make_streams(options)
    topology = topology_of(streams, options.requests)
    text = plan_text(topology, streams, options.sending.body_files)
    folder = RunFolder.create(options.out, "load", options.seed, options)
    folder.write("plan.txt", text)
    json_lines = options.output == "json" or (options.output == "auto" and not sys.stdout.isatty())
    with LoadReport(folder, options.duration_s, json_lines=json_lines, live=sys.stderr.isatty()) as report:
        try:
            if options.engine == "wrk2":
                _run_wrk2(options, streams, folder, report)
            else:
                _run_native(options, address, topology, streams, folder, report)
        finally:
            if report.has_results:
                (remarks() if json_lines else results()).print(f"written: {folder.path}", markup=False)
    return 0


def parse_target(url: str) -> str:
    """HOST:PORT of ``http://HOST:PORT``. Raises ConfigError for anything else."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or port == 0 or parts.path not in ("", "/") or parts.query:
        raise ConfigError(
            f"target '{url}' is not http://HOST:PORT", where="--target", remedy="as http://127.0.0.1:8080"
        )
    return parts.netloc if port is not None else f"{parts.netloc}:80"


def topology_of(streams: Sequence[Stream], requests: dict[str, str]) -> Topology:
    """The groups that the streams need: the social network's, and the user's own.

    Raises ConfigError for a type that is neither.
    """
    groups = {group.request_type: group for group in social_network(_ANY_SERVER).groups}
    for name, text in requests.items():
        method, _, path = text.partition(" ")
        if not method.isalpha() or not path.startswith("/"):
            raise ConfigError(f"'{text}' is no request", where=f"requests.{name}", remedy="write 'METHOD /PATH'")
        groups[name] = Group(f"{name}_backend", name, method.upper(), path, 2.0, _ANY_SERVER)
    known = Topology(tuple(groups.values()))
    plan_text(known, streams, {})  # names what is unknown, with the closest match
    return Topology(tuple(groups[stream.request_type] for stream in streams))


def _run_native(
    options: LoadRunOptions,
    address: str,
    topology: Topology,
    streams: Sequence[Stream],
    folder: RunFolder,
    report: LoadReport,
) -> None:
    with LoadEngine(options.sending, folder.path / "engine") as engine:
        engine.start(
            address, topology, streams, seed=options.seed, duration_s=options.duration_s, window_s=options.window_s
        )
        report.begin(_start_line(options, engine))
        try:
            _follow(engine, report)
        except KeyboardInterrupt:
            engine.stop()
            report.end(_finish(engine, options, report))
            raise
        report.end(_finish(engine, options, report))


def _follow(engine: LoadEngine, report: LoadReport) -> None:
    while not engine.wait(POLL_S):
        for window in engine.poll_summaries():
            report.window(window)


def _finish(engine: LoadEngine, options: LoadRunOptions, report: LoadReport) -> LoadSummary:
    """The summary; when the engine died, what is known without it is reported before the error goes on."""
    try:
        summary = engine.finish(options.sending.timeout_s + options.sending.connect_timeout_s + 5.0)
        for window in engine.poll_summaries():
            report.window(window)
    except LoadError:
        report.end(engine.partial_summary())
        raise
    return summary


def _start_line(options: LoadRunOptions, engine: LoadEngine) -> dict[str, object]:
    return {
        "kind": "start", "version": 1, "target": options.target, "seed": options.seed, "duration_s": options.duration_s,
        "priority": engine.priority, "cores_awake": engine.cores_awake,
        "monotonic_s": engine.started_at_s, "unix_s": engine.started_unix_s,
    }  # fmt: skip


def _run_wrk2(options: LoadRunOptions, streams: Sequence[Stream], folder: RunFolder, report: LoadReport) -> None:
    with Wrk2Engine(options.wrk2, folder.path / "wrk2") as engine:
        engine.start(options.target, streams, duration_s=options.duration_s)
        for warning in engine.warnings:
            remarks().print(f"deepsched load: {warning}", markup=False)
        try:
            while not engine.wait(POLL_S):
                pass
        except KeyboardInterrupt:
            engine.stop()
            report.end(engine.finish(10.0))
            raise
        report.end(engine.finish(10.0))


VERB = Verb(
    name="load",
    summary="send a load plan and report every request from its intended send time",
    example="deepsched load --target http://127.0.0.1:8080 --plan constant --rate-rps 300 --duration-s 30",
    options=LoadRunOptions,
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
