"""Names and meanings of the metrics of `tuning.live.metrics`, for readers without Ray."""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "deepsched_"

COUNTERS = {
    "windows": "Control intervals with a usable window",
    "faults": "Control intervals lost to a fault",
    "requests": "Requests answered by NGINX",
    "weight_changes": "Controls that differed from the previous one",
}
GAUGES = {
    "art_per_request": "Accumulative relative tardiness per request of the last window",
    "mean_ms": "Mean response time of the last window, measured by NGINX, milliseconds",
    "client_p99_ms": "99th percentile of client latency in the last window, milliseconds",
    "novelty": "Distance of the last window to the nearest cluster; above 1 it lies outside all clusters",
    "reward": "Reward of the last window",
}
TRIAL_GAUGES = {
    "trial_score": "Score of the trial's policy at its last iteration",
    "trial_steps": "Environment steps trained so far",
}


def exported(name: str, counters: Mapping[str, str]) -> str:
    """The metric's name in Prometheus; counters end in `_total`."""
    return f"ray_{PREFIX}{name}" + ("_total" if name in counters else "")
