"""Prometheus metrics of one replica of the served policy.

Structured logs of the served policy: one JSON object a line. Ray Serve writes the same records in its own format.
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
    """Counted since the replica began."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answers = Counter("deepsched_answers", "Answers by decision", ["decision"], registry=self.registry)
        self.refused = Counter("deepsched_refused", "Refused requests by status", ["status"], registry=self.registry)
        self.seconds = Histogram(
            "deepsched_answer_seconds", "Time to an answer, from a whole body on", registry=self.registry,
            buckets=_SECONDS,
        )  # fmt: skip
        self.together = Histogram(
            "deepsched_batch_requests", "Requests that were decided together", registry=self.registry, buckets=_SIZES
        )
        self.novelty = Gauge("deepsched_novelty", "Largest novelty of the last answer", registry=self.registry)
        self.bundle = Gauge("deepsched_bundle_info", "The bundle in use", ["bundle"], registry=self.registry)
        self.alive = Gauge("deepsched_controller_alive", "1 while a controller steers", registry=self.registry)
        self.guards = Gauge("deepsched_controller_guard", "How often a guard spoke", ["guard"], registry=self.registry)

    def see(self, answer: dict[str, Any]) -> None:
        """One more answer to `POST /v1/weights`."""
        self.answers.labels(answer["decision"]).inc()
        if answer["state"]:
            self.novelty.set(max(answer["state"]["novelty"]))

    def text(self, view: LiveView, bundle: str) -> bytes:
        """All of them, and the controller's as its record tells them now."""
        now = view.now()
        self.alive.set(bool(now["alive"]))
        for guard in now.get("guards", []):
            self.guards.labels(guard["name"]).set(guard["count"])
        self.bundle.clear()
        self.bundle.labels(bundle).set(1)
        return generate_latest(self.registry)


_LOG = logging.getLogger("deepsched.serve")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def event(name: str, level: int = logging.INFO, **about: Any) -> None:
    """Something that an operator may want to find again; `about` becomes fields of the line."""
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
    """For a process of ours; does nothing where logging is set up already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def log_with_serve() -> None:
    """In a replica: only what goes through Serve's logger reaches its files."""
    logger = logging.getLogger("deepsched")
    logger.parent = logging.getLogger("ray.serve")
    logger.setLevel(logging.INFO)
