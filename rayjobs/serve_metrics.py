"""Prometheus metrics of one replica of the served policy."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rayjobs.serve_live import LiveView

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
