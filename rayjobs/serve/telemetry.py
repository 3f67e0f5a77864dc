"""Prometheus metrics and structured logs of the served policy.

A log record is one JSON object a line on stderr; under Ray Serve, Serve's logger writes it in its own format.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rayjobs.serve.live import LiveView
from rayjobs.serve.metric_names import COUNTERS, HISTOGRAMS, NOVELTY, NOVELTY_TEXT, PREFIX


class Counts(Protocol):
    """Where a replica counts (`rayjobs.serve.metric_names`); a name that is not there raises KeyError."""

    def add(self, name: str, label: str) -> None:
        """One more of the counter, under this value of its label."""

    def observe(self, name: str, value: float) -> None:
        """One more value of the histogram."""

    def set(self, name: str, value: float) -> None:
        """The gauge's value."""

    def collect(self) -> Iterable[Metric]:
        """The counts of all replicas of this application."""


class ProcessCounts:
    """Counts of this process, which is the only replica."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(PREFIX + name, text, [label], registry=self._registry)
            for name, (text, label) in COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(PREFIX + name, text, buckets=bounds, registry=self._registry)
            for name, (text, bounds) in HISTOGRAMS.items()
        }
        self._gauges = {NOVELTY: Gauge(PREFIX + NOVELTY, NOVELTY_TEXT, registry=self._registry)}

    def add(self, name: str, label: str) -> None:
        self._counters[name].labels(label).inc()

    def observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(value)

    def set(self, name: str, value: float) -> None:
        self._gauges[name].set(value)

    def collect(self) -> Iterable[Metric]:
        return self._registry.collect()


class Metrics:
    """What one replica counts, and the text of all metrics.

    Args:
        counts: where it counts; those of this process by default.
    """

    def __init__(self, counts: Counts | None = None) -> None:
        self._counts = counts or ProcessCounts()

    def see(self, answer: dict[str, Any]) -> None:
        """Counts an answer to `POST /v1/weights`."""
        self._counts.add("answers", answer["decision"])
        if answer["state"]:
            self._counts.set(NOVELTY, max(answer["state"]["novelty"]))

    def took(self, seconds: float) -> None:
        """Counts the time of an answer."""
        self._counts.observe("answer_seconds", seconds)

    def together(self, requests: int) -> None:
        """Counts a batch of so many requests."""
        self._counts.observe("batch_requests", float(requests))

    def refuse(self, status: int) -> None:
        """Counts a refused request."""
        self._counts.add("refused", str(status))

    def text(self, view: LiveView, bundle: str, times_taken_back: int) -> bytes:
        """Prometheus text of all replicas' metrics, and of what any replica reads from the files of this start.

        Raises ProcessError when the other replicas' counts cannot be read.
        """
        shared = _of_files(view.now(), bundle, times_taken_back)
        registry = CollectorRegistry()
        registry.register(_Collected([*self._counts.collect(), *shared]))
        return generate_latest(registry)


class _Collected(Collector):
    """Families that were collected already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _of_files(now: dict[str, Any], bundle: str, times_taken_back: int) -> list[Metric]:
    in_use = GaugeMetricFamily(PREFIX + "bundle_info", "The bundle in use", labels=["bundle"])
    in_use.add_metric([bundle], 1.0)
    guards = GaugeMetricFamily(PREFIX + "controller_guard", "Decisions in which a guard intervened", labels=["guard"])
    for guard in now.get("guards", []):
        guards.add_metric([guard["name"]], float(guard["count"]))
    alive = GaugeMetricFamily(PREFIX + "controller_alive", "1 while a controller runs", value=float(now["alive"]))
    taken_back = GaugeMetricFamily(
        PREFIX + "bundles_taken_back", "Swaps since the start that were taken back, of all replicas",
        value=float(times_taken_back),
    )  # fmt: skip
    return [in_use, guards, alive, taken_back]


_LOG = logging.getLogger("deepsched.serve")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def event(name: str, level: int = logging.INFO, **about: Any) -> None:
    """Logs an event for operators; `about` becomes fields of the record."""
    _LOG.log(level, name, extra={"event": name, **about})


class JsonLines(logging.Formatter):
    """Time in UTC, level, logger, message, and the fields of `event`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr() -> None:
    """For uvicorn; does nothing where logging is configured already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def log_with_serve() -> None:
    """For a replica: only records that pass through Serve's logger reach its files."""
    logger = logging.getLogger("deepsched")
    logger.parent = logging.getLogger("ray.serve")
    logger.setLevel(logging.INFO)
