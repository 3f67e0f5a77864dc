"""The served policy over HTTP: a FastAPI app that runs under Ray Serve and under plain uvicorn alike."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from actuators.errors import DeepSchedError
from rayjobs.serve_body import read_body
from rayjobs.serve_gate import App, Gate, GateRules
from rayjobs.serve_live import LiveView, events
from rayjobs.serve_models import (
    BundleRequest,
    OrdersAnswer,
    OrdersRequest,
    PolicyAnswer,
    Problem,
    WeightsAnswer,
    WeightsRequest,
)
from rayjobs.serve_service import BundleStore, advise
from rayjobs.steer_folder import SteerFolder
from tuning.guards import GuardOptions

PAGE = Path(__file__).with_name("live_page")
_FILES = {
    "/": "page.html", "/page.js": "page.js", "/page.css": "page.css", "/docs": "api.html", "/api.js": "api.js",
}  # fmt: skip
SMALL_BYTES = 100_000
"""Bodies up to this size are answered on the event loop; a hop to a thread would take longer."""
_REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem} for code in (400, 401, 403, 404, 409, 413, 421, 422)
}
_log = logging.getLogger("deepsched.serve")


@dataclass(frozen=True)
class ServeSettings:
    """What a server needs to know.

    Attributes:
        bundle: served first; root: folder below which other bundles may lie.
        state: folder of the pointer to the bundle in use.
        steer: folder of the controller whose record the page shows.
    """

    bundle: Path
    root: Path
    state: Path
    steer: Path
    rules: GateRules
    guards: GuardOptions


class Metrics:
    """Prometheus metrics of one replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answers = Counter("deepsched_answers", "Answers by decision", ["decision"], registry=self.registry)
        self.refused = Counter("deepsched_refused", "Requests that made no sense", registry=self.registry)
        self.seconds = Histogram(
            "deepsched_answer_seconds", "Time to an answer, body parsed", registry=self.registry,
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5),
        )  # fmt: skip
        self.novelty = Gauge("deepsched_novelty", "Largest novelty of the last answer", registry=self.registry)
        self.bundle = Gauge("deepsched_bundle_info", "The bundle in use", ["bundle"], registry=self.registry)
        self.alive = Gauge("deepsched_controller_alive", "1 while a controller steers", registry=self.registry)
        self.guards = Gauge("deepsched_controller_guard", "How often a guard spoke", ["guard"], registry=self.registry)

    def text(self, view: LiveView, bundle: str) -> bytes:
        now = view.now()
        self.alive.set(bool(now["alive"]))
        for guard in now.get("guards", []):
            self.guards.labels(guard["name"]).set(guard["count"])
        self.bundle.clear()
        self.bundle.labels(bundle).set(1)
        return generate_latest(self.registry)


def open_store(settings: ServeSettings) -> BundleStore:
    """Which bundle is served. Raises BundleError when the first one is refused."""
    return BundleStore(settings.bundle, settings.root, settings.state)


def create_app(settings: ServeSettings, store: BundleStore | None = None) -> App:
    """The app behind its gate. Raises BundleError when the first bundle is refused."""
    store = store or open_store(settings)
    view, metrics = LiveView(settings.steer), Metrics()
    # FastAPI's own pages fetch their scripts from elsewhere; ours works without a network.
    app = FastAPI(
        title="Deep Scheduling", version="1", description=__doc__, responses=_REFUSALS, docs_url=None, redoc_url=None
    )
    _handle_errors(app, metrics)
    _policy_routes(app, settings, store, metrics)
    _live_routes(app, settings, store, view, metrics)
    return Gate(app, settings.rules)


def _policy_routes(app: FastAPI, settings: ServeSettings, store: BundleStore, metrics: Metrics) -> None:
    def answered(body: bytes) -> bytes:
        result = advise(store.current(), read_body(body), settings.guards)
        metrics.answers.labels(result["decision"]).inc()
        if result["state"]:
            metrics.novelty.set(max(result["state"]["novelty"]))
        return to_json(result, inf_nan_mode="null")

    schema = WeightsRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs")

    @app.post(
        "/v1/weights",
        response_model=WeightsAnswer,
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    )
    async def weights(request: Request) -> Response:
        """Weights per group and server, the state, and the decision with its reason."""
        body = await request.body()
        began_s = time.perf_counter()
        data = answered(body) if len(body) <= SMALL_BYTES else await run_in_threadpool(answered, body)
        metrics.seconds.observe(time.perf_counter() - began_s)
        return Response(data, media_type="application/json")

    _add_definitions(app, definitions)

    @app.get("/v1/policy", response_model=PolicyAnswer)
    def policy() -> dict[str, Any]:
        """What is served: the bundle's provenance and evaluation."""
        return _describe(store)

    @app.post("/v1/bundles", response_model=PolicyAnswer)
    def bundles(request: BundleRequest) -> dict[str, Any]:
        """Serves another bundle, or the previous one again; no request is dropped."""
        store.rollback() if request.path is None else store.swap(Path(request.path))
        described = _describe(store)
        _log.info(json.dumps({"event": "bundle", "bundle": described["bundle"], "folder": described["folder"]}))
        return described


def _live_routes(app: FastAPI, settings: ServeSettings, store: BundleStore, view: LiveView, metrics: Metrics) -> None:
    folder = SteerFolder(settings.steer)

    @app.get("/v1/live")
    def live() -> dict[str, Any]:
        """The controller's latest decision and figures."""
        return view.now()

    @app.get("/v1/history")
    def history() -> dict[str, Any]:
        """Weights, states and decisions of the last 15 minutes."""
        return view.history()

    @app.get("/v1/live/events", response_class=StreamingResponse)
    def live_events() -> StreamingResponse:
        """`/v1/live` every second, as server-sent events."""
        return StreamingResponse(events(view), media_type="text/event-stream")

    @app.post("/v1/orders", response_model=OrdersAnswer)
    def orders(request: OrdersRequest) -> dict[str, Any]:
        """Pauses, resumes or reverts the controller, or changes its mode."""
        changes = request.model_dump(exclude_none=True)
        result = folder.order(**changes).model_dump()
        _log.info(json.dumps({"event": "orders", **result}))
        return result

    @app.get("/healthz", response_model=dict[str, str])
    def healthz() -> dict[str, str]:
        """Answers when the bundle is loaded."""
        return {"status": "ok", "bundle": store.current().id}

    @app.get("/metrics", response_class=Response)
    def metrics_text() -> Response:
        """Prometheus text."""
        return Response(metrics.text(view, store.current().id), media_type="text/plain; version=0.0.4")

    for route, name in _FILES.items():
        app.add_api_route(route, _file(name), include_in_schema=False, response_class=FileResponse)


def _file(name: str) -> Any:
    async def file() -> FileResponse:
        return FileResponse(PAGE / name)

    return file


def _handle_errors(app: FastAPI, metrics: Metrics) -> None:
    async def refused(request: Request, error: Exception) -> JSONResponse:
        metrics.refused.inc()
        if isinstance(error, (ValidationError, RequestValidationError)):
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])[:200]
            return JSONResponse({"detail": f"{where}: {first['msg']}"[:500]}, 422)
        return JSONResponse({"detail": str(error)[:1000]}, 422)

    for kind in (ValidationError, RequestValidationError, DeepSchedError):
        app.add_exception_handler(kind, refused)


def _describe(store: BundleStore) -> dict[str, Any]:
    bundle = store.current()
    problem, previous = bundle.own.bundle.problem, store.previous()
    return {
        "bundle": bundle.id,
        "folder": str(bundle.folder),
        "previous": str(previous) if previous else None,
        "request_types": list(problem.topology.request_types),
        "groups": [group.name for group in problem.topology.groups],
        "deadlines_s": problem.deadlines_s.tolist(),
        "clusters": problem.encoder.clusters,
        "frames": problem.options.frames,
        "decision": problem.options.model_dump(mode="json"),
        "provenance": bundle.own.bundle.provenance,
    }


def _add_definitions(app: FastAPI, definitions: dict[str, Any]) -> None:
    """The request body's models in the OpenAPI page: the body is parsed by us, faster than FastAPI would."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        document["components"]["schemas"] = {**definitions, **document["components"].get("schemas", {})}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
