"""The dashboard of the served policy: answers, their times, and Ray Serve's replicas."""

from __future__ import annotations

from collections.abc import Iterator

from rayjobs.dashboards.panels import RED, YELLOW, Json, dashboard, lines, row, stat, steps, variable
from rayjobs.serve.metric_names import COUNTERS, HISTOGRAMS, NOVELTY, NOVELTY_TEXT, PREFIX

_WINDOW = "[$__rate_interval]"
_OF_SERVE = 'application=~"$application"'
RAY_SERVE = {
    "serve_replica_utilization_percent": "Share of what a replica can do that requests took in the last 10 minutes",
    "serve_autoscaling_desired_replicas": "Replicas that the autoscaler's policy wants, before its bounds",
    "serve_autoscaling_total_requests": "Requests in progress and waiting, as the autoscaler counts them",
    "serve_replica_processing_queries": "Requests that each replica works on",
    "serve_deployment_request_counter_total": "Requests that each replica has answered",
    "serve_deployment_error_counter_total": "Requests on which a replica failed",
}
"""Ray Serve's own metrics that are drawn, without the prefix `ray_` (ray 2.60)."""
_ALIVE = "serve_replica_utilization_percent"
"""Renewed by every replica that runs; `serve_deployment_replica_healthy` vanishes a minute after a change."""


def serving_dashboard() -> Json:
    """The whole dashboard, for Ray Serve and, but for the replicas, for `--front uvicorn`."""
    items = [*_answers(), *_replicas()]
    application = variable("application", "Application", f"label_values(ray_{_ALIVE}, application)")
    about = "The policy that `deepsched serve` serves; counts reach Prometheus within Ray's report interval (10 s)."
    return dashboard("deepsched-serving", "Deep Scheduling: serving", items, [application], about)


def _answers() -> Iterator[Json]:
    yield row("Answers")
    (answers, _), (refused, _) = COUNTERS["answers"], COUNTERS["refused"]
    yield stat(
        "Refused", "Share of the requests that were refused",
        (f"sum({_rate('refused_total')}) / (sum({_rate('answers_total')}) + sum({_rate('refused_total')}))", "refused"),
        "percentunit", steps((0.01, YELLOW), (0.1, RED)),
    )  # fmt: skip
    yield stat("Novelty", NOVELTY_TEXT, (f"max({_named(NOVELTY)})", "novelty"), "short", steps((1, YELLOW)))
    for title, text, name, label in (
        ("Answers per second", answers, "answers_total", "decision"),
        ("Refused per second", refused, "refused_total", "status"),
    ):
        yield lines(title, text, [(f"sum by ({label}) ({_rate(name)})", f"{{{{{label}}}}}")], "reqps")
    times, sizes = HISTOGRAMS["answer_seconds"][0], HISTOGRAMS["batch_requests"][0]
    quantiles = [
        (f"histogram_quantile({q}, sum by (le) ({_rate('answer_seconds_bucket')}))", f"p{round(100 * q)}")
        for q in (0.5, 0.99)
    ]
    yield lines("Time of an answer", times, quantiles, "s")
    size = f"sum({_rate('batch_requests_sum')}) / sum({_rate('batch_requests_count')})"
    yield lines("Requests a batch", sizes, [(size, "mean")], "short")


def _replicas() -> Iterator[Json]:
    yield row("Replicas")
    wanted = "serve_autoscaling_desired_replicas"
    by = "by (application, deployment)"
    yield lines(
        "Replicas", f"Replicas that run. {RAY_SERVE[wanted]}",
        [
            (f"count {by} (ray_{_ALIVE}{{{_OF_SERVE}}})", "{{deployment}} running"),
            (f"max {by} (ray_{wanted}{{{_OF_SERVE}}})", "{{deployment}} wanted"),
        ],
        "short",
    )  # fmt: skip
    for title, name in (
        ("Requests in the application", "serve_autoscaling_total_requests"),
        ("Requests in progress", "serve_replica_processing_queries"),
    ):
        query = f"sum {by} (ray_{name}{{{_OF_SERVE}}})"
        yield lines(title, RAY_SERVE[name], [(query, "{{deployment}}")], "short")
    busy = f"sum by (replica) (ray_{_ALIVE}{{{_OF_SERVE}}})"
    yield lines("Utilization of each replica", RAY_SERVE[_ALIVE], [(busy, "{{replica}}")], "percent")
    for title, name in (
        ("Requests per second and replica", "serve_deployment_request_counter_total"),
        ("Failures per second and replica", "serve_deployment_error_counter_total"),
    ):
        query = f"sum by (replica) (rate(ray_{name}{{{_OF_SERVE}}}{_WINDOW}))"
        yield lines(title, RAY_SERVE[name], [(query, "{{replica}}")], "reqps")


def _named(name: str) -> str:
    """The series as a replica's Ray exports it, and as `/metrics` on uvicorn does."""
    # Training has series of the same prefix, all of them with the label `node`.
    return f'{{__name__=~"(ray_)?{PREFIX}{name}",node=""}}'


def _rate(name: str) -> str:
    return f"rate({_named(name)}{_WINDOW})"
