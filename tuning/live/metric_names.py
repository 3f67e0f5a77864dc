"""Names and meanings of the metrics of `tuning.live.metrics`, for readers without Ray.

Their number does not grow with testbeds or trials: what several testbeds of a node tell is added up, or its mean.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "deepsched_"
NODE, GROUP = "node", "group"
"""Labels: address of the node that testbeds or a trial run on; request group."""

COUNTERS = {
    "windows": "Control intervals with a usable window, of all testbeds of the node",
    "faults": "Control intervals lost to a fault",
    "late": "Those of them whose answer came too late and was not used",
    "requests": "Requests answered by NGINX",
    "weight_changes": "Controls that differed from the previous one",
}
GAUGES = {
    "art_per_request": "Accumulative relative tardiness per request of the last windows, mean over the node's testbeds",
    "mean_ms": "Mean response time of the last windows, measured by NGINX, milliseconds",
    "client_p99_ms": "99th percentile of client latency in the last windows, milliseconds, the highest of the node",
    "novelty": "Distance of the last windows to the nearest cluster, the largest; above 1 it lies outside all clusters",
    "reward": "Reward of the last windows, mean over the node's testbeds",
}
BY_GROUP = ("requests", "mean_ms")
"""Metrics that also have the label of the request group."""
TRIAL_GAUGES = {
    "trial_score": "Score of the policy of the node's trial at its last iteration",
    "trial_steps": "Environment steps that it has trained so far",
}


def labels(name: str) -> tuple[str, ...]:
    """The labels of a metric."""
    return (NODE, GROUP) if name in BY_GROUP else (NODE,)


def exported(name: str, counters: Mapping[str, str]) -> str:
    """The metric's name in Prometheus; counters end in `_total`."""
    return f"ray_{PREFIX}{name}" + ("_total" if name in counters else "")
