"""Whether two evaluations of the same thing agree: simulated ones to the bit, live ones within their intervals."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from actuators.errors import DataError
from actuators.options import first_fault
from tuning.judging.content import EvaluationContent
from tuning.judging.evaluation import with_present_names
from tuning.judging.statistics import PairedRatio
from tuning.judging.verdicts import METRIC_NAMES, format_ratio, ratio_of

FILE = "evaluation.json"


@dataclass(frozen=True)
class Agreement:
    """One part (scenario and testbed) of two runs.

    Attributes:
        title: scenario and testbed.
        exact: bit-equality was asked for.
        differences: where they do not agree, a line each.
        compared: numbers (exact) or ratios with an interval in both runs (live).
        unknown: ratios without an interval in one of them, which say nothing.
    """

    title: str
    exact: bool
    differences: tuple[str, ...]
    compared: int
    unknown: int = 0

    @property
    def agrees(self) -> bool:
        """Whether something was compared and nothing differs."""
        return self.compared > 0 and not self.differences

    @property
    def sentence(self) -> str:
        """What was found, in one line."""
        without = f"{self.unknown} ratios have no interval in one of the runs" if self.unknown else ""
        if self.differences:
            more = f" and {len(self.differences) - 1} more" if len(self.differences) > 1 else ""
            return f"{self.title}: {len(self.differences)} of {self.compared} differ: {self.differences[0]}{more}"
        if not self.compared:
            return f"{self.title}: nothing can be compared: {without or 'no policy was judged'}"
        what = "numbers are equal to the bit" if self.exact else "ratios are within both runs' intervals"
        return f"{self.title}: all {self.compared} {what}" + (f"; {without}" if without else "")


def load_evaluations(run: Path) -> dict[str, dict[str, Any]]:
    """Part → content of its `evaluation.json`, from a run's folder and those in it, S2 before S10. Raises DataError."""
    paths = [path for path in (run / FILE, *sorted(run.glob(f"*/{FILE}"), key=_natural)) if path.exists()]
    if not paths:
        raise DataError("no evaluation in this folder", where=str(run), remedy="give the folder of a run that judged")
    found = {}
    for path in paths:
        content = _load(path)
        found[part_title(content)] = content
    return found


def _load(path: Path) -> dict[str, Any]:
    remedy = "evaluate again"
    try:
        data = path.read_bytes()
        EvaluationContent.model_validate_json(data)
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path)) from error
    except ValidationError as error:
        raise DataError(f"not an evaluation: {first_fault(error)}", where=str(path), remedy=remedy) from error
    return with_present_names({"seeds": 1, "testbed": "", **json.loads(data)})


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.parent.name)]


def part_title(content: dict[str, Any]) -> str:
    """Scenario and testbed."""
    return ", ".join(name for name in (content["scenario"], content.get("testbed", "")) if name)


def agreement(title: str, old: dict[str, Any], new: dict[str, Any]) -> Agreement:
    """Compares the numbers of the policies: exactly unless the testbed is live."""
    if old.get("testbed") != "live":
        before, after = _leaves(old["policies"]), _leaves(new["policies"])
        names = sorted(before.keys() | after.keys())
        differences = [
            f"{name} was {before.get(name)}, is {after.get(name)}"
            for name in names
            if before.get(name) != after.get(name)
        ]
        return Agreement(title, True, tuple(differences), len(names))
    names = [name for name in old["policies"] if name in new["policies"] and name != old["reference"]]
    pairs = [
        (f"{n} {METRIC_NAMES[m]}", ratio_of(old["policies"][n], m), ratio_of(new["policies"][n], m))
        for n in names
        for m in _LIVE
    ]
    looked = [(name, a, b, within(a, b)) for name, a, b in pairs]
    compared = sum(near is not None for *_, near in looked)
    apart = [
        f"{n} was {format_ratio(a.value)}, is {format_ratio(b.value)}" for n, a, b, near in looked if near is False
    ]
    missing = [f"{name} is not in both" for name in old["policies"].keys() ^ new["policies"].keys()]
    return Agreement(title, False, tuple(missing + apart), compared, len(pairs) - compared)


_LIVE = ("mean_ms", "p99_ms")


def within(one: PairedRatio, other: PairedRatio) -> bool | None:
    """Whether two ratios differ by no more than both intervals together allow; None when one has no interval."""
    ends = (one.value, one.low, one.high, other.value, other.low, other.high)
    if any(end is None or end <= 0 for end in ends):
        return None
    first, low_1, high_1, second, low_2, high_2 = (math.log(end) for end in ends if end)
    return abs(first - second) <= math.hypot((high_1 - low_1) / 2, (high_2 - low_2) / 2)


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every number and word of nested values by its path."""
    if isinstance(value, dict):
        return {
            k: v for name, inner in value.items() for k, v in _leaves(inner, f"{path}.{name}" if path else name).items()
        }
    if isinstance(value, list):
        return {k: v for index, inner in enumerate(value) for k, v in _leaves(inner, f"{path}[{index}]").items()}
    return {path: value}


def comparison_rows(runs: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row per part and policy of some runs, with each run's policy content; for `deepsched compare`."""
    titles = dict.fromkeys(title for parts in runs.values() for title in parts)
    rows = []
    for title in titles:
        names = dict.fromkeys(name for parts in runs.values() for name in parts.get(title, {}).get("policies", {}))
        for name in names:
            cells = {run: parts.get(title, {}).get("policies", {}).get(name) for run, parts in runs.items()}
            rows.append({"part": title, "policy": name, "cells": cells})
    return rows
