"""`deepsched load`: sends a load plan and reports every request from its intended send time.

The report of a run: a live line, JSON lines, tables, and HdrHistogram files.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field
from rich import box
from rich.table import Table

from actuators.closing import Closing
from actuators.contract import histogram
from actuators.contract.script import Stream
from actuators.contract.topology import Group, Topology, social_network
from actuators.errors import ConfigError, LoadError, closest
from actuators.files import write_atomic
from actuators.load.engine import LoadEngine, LoadOptions
from actuators.load.hdr_files import log_header, log_lines, percentile_table
from actuators.load.plans import PlanOptions, make_streams, plan_text
from actuators.load.summary import ERROR_CLASSES, LoadSummary
from actuators.load.wrk2 import Wrk2Engine, Wrk2Options
from actuators.options import Only
from rayjobs.cli.console import console_err, console_out, log_line
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.progress import Progress, Stage
from rayjobs.runs.folder import RunFolder


class LoadReport(Closing):
    """Follows one run; a context manager that closes its files.

    Args:
        folder: receives windows.jsonl and latency.hlog during the run, and the files of the summary at its end.
        json_lines: print JSON lines on stdout; else a table at the end.
        live: rewrite a line on stderr with every window.
        fixed: the plan has fixed gaps; a machine that does not keep them even is told.

    Attributes:
        has_results: `end` was called.
        only_errors: then, no request was answered with a status below 400.
    """

    def __init__(
        self, folder: RunFolder, duration_s: float, *, json_lines: bool, live: bool, fixed: bool = False
    ) -> None:
        self._folder, self._duration_s, self._fixed = folder, duration_s, fixed
        self._json_lines, self._live = json_lines, live
        self.has_results = False
        self.only_errors = False
        self._lines: TextIO = open(folder.file("windows.jsonl"), "a", encoding="utf-8")  # noqa: SIM115 - closed by close
        self._log: TextIO = open(folder.file("latency.hlog"), "a", encoding="utf-8")  # noqa: SIM115

    def begin(self, line: dict[str, Any]) -> None:
        """The `start` line."""
        self._write(line)
        self._log.write(log_header(line["unix_s"]))

    def window(self, window: LoadSummary) -> None:
        self._write(window.to_json("window"))
        self._log.writelines(log_lines(window))
        self._log.flush()
        if self._live:
            sys.stderr.write("\r\x1b[K" + live_line(window, self._duration_s))
            sys.stderr.flush()

    def end(self, summary: LoadSummary) -> None:
        """Writes the summary's files and prints it."""
        if self._live:
            sys.stderr.write("\r\x1b[K")
        self.has_results = True
        self.only_errors = only_errors(summary)
        document = summary.to_json("summary")
        self._write(document)
        self._folder.write("summary.json", json.dumps(document, indent=2) + "\n")
        for i, name in enumerate(summary.request_types):
            for kind, counts in (("corrected", summary.latency_counts[i]), ("raw", summary.raw_counts[i])):
                write_atomic(self._folder.file(f"{name}-{kind}.hgrm"), percentile_table(counts))
        if self._fixed and summary.gap_error > EVEN:
            log_line("load", uneven(summary))
        if not self._json_lines:
            out = console_out()
            out.print(counts_table(summary))
            out.print(latency_table(summary))
            out.print(footer(summary), markup=False)

    def close(self) -> None:
        self._lines.close()
        self._log.close()

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, separators=(",", ":")) + "\n"
        self._lines.write(text)
        self._lines.flush()
        if self._json_lines:
            sys.stdout.write(text)
            sys.stdout.flush()


def only_errors(summary: LoadSummary) -> bool:
    """Whether requests were due and none was answered with a status below 400."""
    return bool(summary.planned.sum() > 0 and summary.latency_counts.sum() == 0)


EVEN = 0.02
"""Variation of fixed gaps as sent, above which they are not called even."""


def uneven(summary: LoadSummary) -> str:
    """What to know of fixed gaps that this machine did not keep."""
    return (
        f"the gaps of this plan are fixed, and vary by {summary.gap_error:.1%} as sent: this machine does not keep them"
        f" within {EVEN:.0%}. Half of all sends are late by {summary.send_delay_p50_ms:.2f} ms or less, 99 % by"
        f" {summary.send_delay_p99_ms:.2f} ms; stalls of milliseconds come from other work, or from the host of a"
        " virtual machine (steal in top)"
    )


def live_line(window: LoadSummary, duration_s: float) -> str:
    """One window in words, with the remaining time."""
    left_s = max(round(duration_s - window.end_s), 0)
    length_s = max(window.end_s - window.start_s, 1e-9)
    p99_ms = histogram.percentile_ms(window.latency_counts.sum(axis=0), 99)
    errors = sum(int(counts.sum()) for counts in window.errors.values())
    line = (
        f"{left_s // 60:02d}:{left_s % 60:02d} left  {window.sent.sum() / length_s:.0f} requests/s"
        f"  p99 {p99_ms:.1f} ms  errors {errors}  in flight {window.in_flight}"
    )
    return line + ("  SATURATED" if window.saturated_windows else "")


def counts_table(summary: LoadSummary) -> Table:
    """Outcomes of the requests, a row per type."""
    drawn = _table("requests", "type", "offered/s", "answered/s", "sent", "answered", "late", "retried", "errors")
    for i, name in enumerate(summary.request_types):
        counts = [str(getattr(summary, field)[i]) for field in ("sent", "answered", "late", "retried")]
        rates = f"{summary.offered_rps[i]:.1f}", f"{summary.achieved_rps[i]:.1f}"
        drawn.add_row(name, *rates, *counts, errors_text(summary, i))
    return drawn


def latency_table(summary: LoadSummary) -> Table:
    """Milliseconds from the intended send time to the last byte; `raw` from the actual send time."""
    drawn = _table(
        "latency in ms from the intended send time (raw: from the actual one)",
        "type", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "raw p50", "raw p99",
    )  # fmt: skip
    corrected, raw = summary.percentiles_ms(), summary.percentiles_ms(raw=True)
    for name, mean_ms in zip(summary.request_types, _means_ms(summary), strict=True):
        percentiles = [corrected[name][p] for p in ("p50", "p90", "p99", "p99.9", "p99.99")]
        cells = [mean_ms, *percentiles, raw[name]["p50"], raw[name]["p99"]]
        drawn.add_row(name, *("–" if np.isnan(value) else f"{value:.2f}" for value in cells))
    return drawn


def _table(title: str, *headings: str) -> Table:
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for heading in headings:
        drawn.add_column(heading, justify="left" if heading in ("type", "errors") else "right")
    return drawn


def errors_text(summary: LoadSummary, i: int) -> str:
    """``timeout 3, status_5xx 1`` or ``none``."""
    counts = [f"{name} {int(summary.errors[name][i])}" for name in ERROR_CLASSES if summary.errors[name][i]]
    return ", ".join(counts) or "none"


def footer(summary: LoadSummary) -> str:
    """Duration, and the state of the engine itself."""
    line = (
        f"{summary.end_s:.1f} s; engine: {summary.cpu_share:.0%} of a core, "
        f"send delay p99 {summary.send_delay_p99_ms:.2f} ms, gaps off by {summary.gap_error:.1%} of their mean, "
        f"{summary.saturated_windows} of {summary.windows} windows saturated"
    )
    if summary.interrupted:
        line += "; interrupted"
    if not summary.complete:
        line += (
            f"; INCOMPLETE: the engine died, {int(summary.unaccounted.sum())} requests that were sent are lost with it"
        )
    return line


def _means_ms(summary: LoadSummary) -> Sequence[float]:
    answers = summary.latency_counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        means: Sequence[float] = (summary.latency_s_sum * 1e3 / np.where(answers > 0, answers, np.nan)).tolist()
    return means


POLL_S = 0.1
MOST_SILENT_S = 10.0
"""Longer windows are too rare to tell by themselves that the sending goes on."""
_WITH_TLS = ("https", "h2", "h2c")
_ANY_SERVER = ("server:80",)
_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,127}")
_MAX_METHOD, _MAX_PATH_BYTES = 31, 1023
"""As gen_load/plan.c reads them."""
_ENCODE = "percent-encode it (%20)"


class LoadRunOptions(PlanOptions):
    """Target, engine and output."""

    target: str = "http://127.0.0.1:8080"
    """http://HOST:PORT of the NGINX."""
    requests: dict[str, str] = Field(default_factory=dict)
    """Further request types for --mix or a trace: name to 'METHOD /PATH'; only the built-in ones when not given."""
    window_s: Annotated[float, Only(engine="native")] = Field(1.0, gt=0)
    """Length of a reported window."""
    engine: Literal["native", "wrk2"] = "native"
    """native: the engine of this project; wrk2: your binary and Lua scripts, constant plans only."""
    output: Literal["auto", "json", "text"] = "auto"
    """stdout: JSON lines (actuators/load/load.schema.json), or a table; auto: a table on a terminal."""
    out: Path | None = None
    """Folder for the run's folder; `runs` when not given."""
    sending: Annotated[LoadOptions, Only(engine="native")] = LoadOptions()
    """How the native engine sends."""
    wrk2: Annotated[Wrk2Options, Only(engine="wrk2")] = Wrk2Options()
    """The engine wrk2."""


def run(options: LoadRunOptions) -> int:
    """Sends the plan; 0 when it has ended, 1 when no request was answered as it should be."""
    address = parse_target(options.target)
    streams = make_streams(options, options.sending.engine)
    topology = topology_of(streams, options.requests)
    text = plan_text(topology, streams, options.sending.body_files)
    folder = RunFolder.create(options.out, "load", options.seed, options)
    folder.write("plan.txt", text)
    json_lines = options.output == "json" or (options.output == "auto" and not sys.stdout.isatty())
    fixed = any(step.distribution == "fixed" for stream in streams for step in stream.steps)
    shown = options.engine == "native" and options.window_s <= MOST_SILENT_S
    live = shown and sys.stderr.isatty()
    saying = _saying(options.duration_s, quiet=live or (shown and json_lines))
    with LoadReport(folder, options.duration_s, json_lines=json_lines, live=live, fixed=fixed) as report:
        try:
            if options.engine == "wrk2":
                _run_wrk2(options, address, streams, folder, report, saying)
            else:
                _run_native(options, address, topology, streams, folder, report, saying)
        finally:
            if report.has_results:
                (console_err() if json_lines else console_out()).print(f"written: {folder.path}", markup=False)
        if report.only_errors:
            log_line("load", f"no request was answered without an error; check the target {options.target}")
        return int(report.only_errors)


def parse_target(url: str) -> str:
    """HOST:PORT of ``http://HOST:PORT``. Raises ConfigError for anything else."""
    remedy = "as http://127.0.0.1:8080, an IPv6 address as http://[::1]:8080"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
    except ValueError as error:  # of brackets
        raise ConfigError(f"target '{url}' is not http://HOST:PORT", where="--target", remedy=remedy) from error
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme in _WITH_TLS:
        raise ConfigError(
            f"target '{url}': requests are sent as HTTP/1.1 without TLS", where="--target",
            remedy="give a plain listener of the same server; for TLS and HTTP/2 use h2load of nghttp2, or k6",
        )  # fmt: skip
    if parts.scheme != "http" or not parts.hostname or port == 0 or parts.path not in ("", "/") or parts.query:
        raise ConfigError(f"target '{url}' is not http://HOST:PORT", where="--target", remedy=remedy)
    return parts.netloc if port is not None else f"{parts.netloc}:80"


def topology_of(streams: Sequence[Stream], requests: dict[str, str]) -> Topology:
    """The groups of the streams: those of the social network and of `requests`.

    Raises ConfigError for a type in neither, a request that the engine's plan cannot carry, and one whose type has no
    stream.
    """
    groups = {group.request_type: group for group in social_network(_ANY_SERVER).groups}
    for name, text in requests.items():
        method, path = _request(name, text)
        groups[name] = Group(f"{name}_backend", name, method, path, 2.0, _ANY_SERVER)
    known = Topology(tuple(groups.values()))
    plan_text(known, streams, {})  # names what is unknown, with the closest match
    sent = [stream.request_type for stream in streams]
    for name in requests:
        if name not in sent:
            raise ConfigError(
                f"the plan sends no requests of type '{name}'", where=f"requests.{name}", remedy=closest(name, sent)
            )
    return Topology(tuple(groups[name] for name in sent))


def _request(name: str, text: str) -> tuple[str, str]:
    """Method and path of one of the `requests`. Raises ConfigError for what the engine's plan cannot carry."""
    where = f"requests.{name}"
    if not _TYPE.fullmatch(name):
        remedy = "name it with 1 to 127 ASCII letters, digits, '_', '-' and '.'"
        raise ConfigError("invalid request type", where=where, remedy=remedy)
    method, _, path = text.partition(" ")
    if not (method.isascii() and method.isalpha() and path.startswith("/")):
        raise ConfigError(f"invalid request '{text}'", where=where, remedy="write 'METHOD /PATH'")
    if len(method) > _MAX_METHOD:
        remedy = f"use at most {_MAX_METHOD} letters"
        raise ConfigError(f"a method of {len(method)} letters", where=where, remedy=remedy)
    if " " in path or not path.isprintable():
        raise ConfigError("white space or a control character in the path", where=where, remedy=_ENCODE)
    if len(path.encode()) > _MAX_PATH_BYTES:
        raise ConfigError(
            f"a path of {len(path.encode())} bytes", where=where, remedy=f"give at most {_MAX_PATH_BYTES}"
        )
    return method.upper(), path


def _run_native(
    options: LoadRunOptions,
    address: str,
    topology: Topology,
    streams: Sequence[Stream],
    folder: RunFolder,
    report: LoadReport,
    saying: contextlib.AbstractContextManager[Say],
) -> None:
    with LoadEngine(options.sending, folder.path / "engine") as engine:
        engine.start(
            address, topology, streams, seed=options.seed, duration_s=options.duration_s, window_s=options.window_s
        )
        report.begin(_start_line(options, engine))
        try:
            with saying as say:
                _follow(engine, report, options.duration_s, say)
        except KeyboardInterrupt:
            engine.stop()
            report.end(_finish(engine, options, report))
            raise
        report.end(_finish(engine, options, report))


Say = Callable[[str, float], None]
"""Takes what goes on and the share of the sending that is over, 0…1."""


@contextlib.contextmanager
def _saying(duration_s: float, *, quiet: bool) -> Iterator[Say]:
    """Says on stderr every few seconds how far the sending is; nothing when `quiet`."""
    if quiet:
        yield lambda text, fraction: None
        return
    # Drawing would take CPU time from what is measured.
    with Progress([Stage("send", duration_s)], drawn=False) as progress, progress.stage("send") as stage:
        yield stage.update


def _follow(engine: LoadEngine, report: LoadReport, duration_s: float, say: Say) -> None:
    with contextlib.suppress(LoadError):  # `_finish` tells of an engine that died
        while not engine.wait(POLL_S):
            for window in engine.poll_summaries():
                report.window(window)
                say(live_line(window, duration_s), window.end_s / duration_s)


def _finish(engine: LoadEngine, options: LoadRunOptions, report: LoadReport) -> LoadSummary:
    """The summary; when the engine has died, reports what it has written before the error is passed on."""
    try:
        summary = engine.finish(options.sending.timeout_s + options.sending.connect_timeout_s + 5.0)
        for window in engine.poll_summaries():
            report.window(window)
    except LoadError:
        with contextlib.suppress(LoadError):
            for window in engine.poll_summaries():
                report.window(window)
        report.end(engine.partial_summary())
        raise
    return summary


def _start_line(options: LoadRunOptions, engine: LoadEngine) -> dict[str, object]:
    return {
        "kind": "start", "version": 1, "target": options.target, "seed": options.seed, "duration_s": options.duration_s,
        "priority": engine.priority, "cores_awake": engine.cores_awake,
        "wake_late_us": engine.wake_late_us, "spin_us": engine.spin_us,
        "monotonic_s": engine.started_at_s, "unix_s": engine.started_unix_s,
    }  # fmt: skip


def _run_wrk2(
    options: LoadRunOptions,
    address: str,
    streams: Sequence[Stream],
    folder: RunFolder,
    report: LoadReport,
    saying: contextlib.AbstractContextManager[Say],
) -> None:
    with Wrk2Engine(options.wrk2, folder.path / "wrk2") as engine:
        engine.start(f"http://{address}", streams, duration_s=options.duration_s)
        warned = _tell(engine.warnings)
        try:
            with saying:
                while not engine.wait(POLL_S):
                    pass
        except KeyboardInterrupt:
            engine.stop()
            report.end(engine.finish(10.0))
            raise
        report.end(engine.finish(10.0))
        _tell(engine.warnings[warned:])


def _tell(warnings: Sequence[str]) -> int:
    """Prints them; how many there are."""
    for warning in warnings:
        log_line("load", warning)
    return len(warnings)


VERB = Verb(
    name="load",
    example="deepsched load --target http://127.0.0.1:8080 --plan constant --rate-rps 300 --duration-s 30",
    options=LoadRunOptions,
    run=run,
    common=(
        "target", "plan", "rate_rps", "duration_s", "mix", "distribution", "seed", "engine", "output",
        "window_s", "out",
    ),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_verb(VERB))
