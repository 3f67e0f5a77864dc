"""Names and meanings of the metrics that a replica of the served policy counts, for readers without Ray."""

from __future__ import annotations

PREFIX = "deepsched_"

COUNTERS: dict[str, tuple[str, str]] = {
    "answers": ("Answers to POST /v1/weights by decision", "decision"),
    "refused": ("Refused requests by status", "status"),
}
"""Name → meaning, label."""

HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "answer_seconds": (
        "Time from the complete body to the answer",
        (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5),
    ),
    "batch_requests": ("Requests decided by one call of the network", (1, 2, 4, 8, 16, 32, 64, 128, 256)),
}
"""Name → meaning, upper limits of the buckets."""

NOVELTY, NOVELTY_TEXT = "novelty", "Largest novelty of the last answer; of several replicas the largest"


def exported(ray: bool) -> set[str]:
    """Names of the series in Prometheus: at `/metrics`, or as Ray exports those of its replicas."""
    prefix = ("ray_" if ray else "") + PREFIX
    of_histograms = {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    return {prefix + name for name in (*(f"{name}_total" for name in COUNTERS), *of_histograms, NOVELTY)}
