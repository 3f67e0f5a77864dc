"""A program that prints what the load engine prints, sends nothing and ends at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actuators.contract import histogram
from actuators.load.summary import LoadSummary

BEGIN: dict[str, Any] = {"kind": "start", "monotonic_s": 0.0, "unix_s": 0.0, "priority": "normal"}


def part(request_types: Sequence[str], start_s: float, *, answered: int = 0, refused: int = 0) -> LoadSummary:
    """The second from `start_s`: of each type, so many requests were answered with 200 and with 500."""
    empty = LoadSummary.empty(request_types)
    counts = empty.latency_counts.copy()
    counts[:, histogram.bucket_of(2000)] = answered
    good, bad = (np.full(len(request_types), count, dtype=np.int64) for count in (answered, refused))
    return replace(
        empty, start_s=start_s, end_s=start_s + 1.0, planned=good + bad, sent=good + bad, answered=good + bad,
        errors={**empty.errors, "status_5xx": bad}, latency_counts=counts, raw_counts=counts, windows=1,
    )  # fmt: skip


def fake_engine(
    folder: Path, windows: Sequence[LoadSummary], *, summary: LoadSummary | None = None, plan: str = "", code: int = 0
) -> Path:
    """The program; it prints these windows, and `plan` for ``--print-plan``, then ends with `code`.

    Args:
        summary: of the whole run; None for an engine that dies.
    """
    lines = [BEGIN, *(window.to_json("window") for window in windows)]
    lines += [summary.to_json("summary")] if summary is not None else []
    output, printed = folder / "engine-output.jsonl", folder / "engine-plan.txt"
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    printed.write_text(plan)
    path = folder / "gen_load"
    path.write_text(f'#!/bin/sh\ncase "$*" in *--print-plan*) exec cat {printed};; esac\ncat {output}\nexit {code}\n')
    path.chmod(0o755)
    return path
