"""What `deepsched load` shows and keeps of a run: live line, JSON lines, table, HdrHistogram files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import numpy as np
from rich import box
from rich.table import Table

from actuators import histogram
from actuators.files import write_atomic
from actuators.load_hdr import log_header, log_lines, percentile_table
from actuators.load_summary import ERROR_CLASSES, LoadSummary
from rayjobs.console import results
from rayjobs.runs import RunFolder


class LoadReport:
    """Follows one run; a context manager that closes its files.

    Args:
        folder: receives windows.jsonl and latency.hlog while it runs, the summary's files at its end.
        json_lines: stdout gets the JSON lines; else a table at the end.
        live: stderr is a terminal and gets a line that is rewritten with every window.

    Attributes:
        has_results: `end` was called.
    """

    def __init__(self, folder: RunFolder, duration_s: float, *, json_lines: bool, live: bool) -> None:
        self._folder, self._duration_s = folder, duration_s
        self._json_lines, self._live = json_lines, live
        self.has_results = False
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
        document = summary.to_json("summary")
        self._write(document)
        self._folder.write("summary.json", json.dumps(document, indent=2) + "\n")
        for i, name in enumerate(summary.request_types):
            for kind, counts in (("corrected", summary.latency_counts[i]), ("raw", summary.raw_counts[i])):
                write_atomic(self._folder.file(f"{name}-{kind}.hgrm"), percentile_table(counts))
        if not self._json_lines:
            out = results()
            out.print(counts_table(summary))
            out.print(latency_table(summary))
            out.print(footer(summary), markup=False)

    def close(self) -> None:
        self._lines.close()
        self._log.close()

    def __enter__(self) -> LoadReport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, separators=(",", ":")) + "\n"
        self._lines.write(text)
        self._lines.flush()
        if self._json_lines:
            sys.stdout.write(text)
            sys.stdout.flush()


def live_line(window: LoadSummary, duration_s: float) -> str:
    """One window for a person, with the time remaining."""
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
    """What became of the requests, a row per type."""
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
    found = [f"{name} {int(summary.errors[name][i])}" for name in ERROR_CLASSES if summary.errors[name][i]]
    return ", ".join(found) or "none"


def footer(summary: LoadSummary) -> str:
    """How long, and whether the engine itself can be trusted."""
    line = (
        f"{summary.end_s:.1f} s; engine: {summary.cpu_share:.0%} of a core, "
        f"send delay p99 {summary.send_delay_p99_ms:.2f} ms, "
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
