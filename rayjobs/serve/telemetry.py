"""Prometheus metrics and structured logs of one replica of the served policy.

A log record is one JSON object a line on stderr; under Ray Serve, Serve's logger writes it in its own format.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rayjobs.serve.live import LiveView

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters since the replica started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answers = Counter("deepsched_answers", "Answers by decision", ["decision"], registry=self.registry)
        self.refused = Counter("deepsched_refused", "Refused requests by status", ["status"], registry=self.registry)
        self.seconds = Histogram(
            "deepsched_answer_seconds", "Time from the complete body to the answer", registry=self.registry,
            buckets=_SECONDS,
        )  # fmt: skip
        self.together = Histogram(
            "deepsched_batch_requests",
            "Requests decided by one call of the network",
            registry=self.registry,
            buckets=_SIZES,
        )
        self.novelty = Gauge("deepsched_novelty", "Largest novelty of the last answer", registry=self.registry)
        self.bundle = Gauge("deepsched_bundle_info", "The bundle in use", ["bundle"], registry=self.registry)
        self.taken_back = Gauge(
            "deepsched_bundles_taken_back", "Swaps since the start that were taken back, of all replicas",
            registry=self.registry,
        )  # fmt: skip
        self.alive = Gauge("deepsched_controller_alive", "1 while a controller runs", registry=self.registry)
        self.guards = Gauge(
            "deepsched_controller_guard", "Decisions in which a guard intervened", ["guard"], registry=self.registry
        )

    def see(self, answer: dict[str, Any]) -> None:
        """Counts an answer to `POST /v1/weights`."""
        self.answers.labels(answer["decision"]).inc()
        if answer["state"]:
            self.novelty.set(max(answer["state"]["novelty"]))

    def text(self, view: LiveView, bundle: str, times_taken_back: int) -> bytes:
        """Prometheus text of all metrics, those of the controller's record included."""
        now = view.now()
        self.alive.set(bool(now["alive"]))
        for guard in now.get("guards", []):
            self.guards.labels(guard["name"]).set(guard["count"])
        self.taken_back.set(times_taken_back)
        self.bundle.clear()
        self.bundle.labels(bundle).set(1)
        return generate_latest(self.registry)


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
