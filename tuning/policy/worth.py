"""What an evaluation found a bundle to be worth: kept in the bundle, so that it goes wherever the bundle is copied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat

from actuators.files import write_atomic

KEPT_RATIOS = ("mean_ms", "p99_ms", "miss_ratio", "art_per_request")


class _Ratio(BaseModel):
    ratio: FiniteFloat | None
    interval: tuple[FiniteFloat, FiniteFloat] | None


class _Worth(BaseModel):
    """What `worth_of` returns; bundles come from strangers."""

    scenario: str
    testbed: str
    reference: str
    rounds: int
    requests: int
    mean_ms: _Ratio
    p99_ms: _Ratio
    miss_ratio: _Ratio
    art_per_request: _Ratio


def worth_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios of the learned policy to the reference, with 95 % intervals, and where they were measured.

    Args:
        evaluation: the content of `evaluation.json`; raises KeyError or TypeError for anything else.
    """
    found = evaluation["policies"][evaluation["learned"]]
    about = {name: evaluation[name] for name in ("scenario", "testbed", "reference", "rounds")}
    ratios = {name: {"ratio": found["ratios"][name], "interval": found["intervals"][name]} for name in KEPT_RATIOS}
    return {**about, "requests": found["requests"], **ratios}


def note_worth(bundle: Path, evaluation: Mapping[str, Any]) -> None:
    """Adds it to a bundle's provenance; nothing when the learned policy was not evaluated. Raises OSError."""
    if evaluation["learned"] not in evaluation["policies"]:
        return
    path = bundle / "bundle.json"
    data = json.loads(path.read_bytes())
    data["provenance"]["evaluation"] = worth_of(evaluation)
    write_atomic(path, json.dumps(data, indent=1).encode())


def noted_worth(bundle: Path) -> dict[str, Any] | None:
    """What is noted in the bundle, or measured in the run folder around it; None without a readable evaluation."""
    try:
        noted = json.loads((bundle / "bundle.json").read_bytes())["provenance"].get("evaluation")
        if noted is None:
            noted = worth_of(json.loads((bundle.absolute().parent / "evaluation.json").read_bytes()))
        return _Worth.model_validate(noted).model_dump(mode="json")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def describe_worth(worth: Mapping[str, Any]) -> str:
    """In one line, of the mean response time; empty when that has no ratio."""
    mean = worth.get("mean_ms") or {}
    if mean.get("ratio") is None:
        return ""
    low, high = mean.get("interval") or (None, None)
    interval = "" if low is None or high is None else f" (95 % interval {low:.2f} to {high:.2f})"
    return (
        f"mean response time {mean['ratio']:.2f}×{interval} that of {worth['reference']} in {worth['scenario']},"
        f" as the evaluation on a {worth['testbed']} testbed measured"
    )
