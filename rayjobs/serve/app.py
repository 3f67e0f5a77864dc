"""The served policy over HTTP: a FastAPI app for Ray Serve and for uvicorn."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.types import ASGIApp, Scope

from actuators.errors import ConflictError, DeepSchedError, ProcessError
from rayjobs.serve.answers import Answers
from rayjobs.serve.bundles import BundleStore, InUse
from rayjobs.serve.gate import CHANGES, Gate, GateRules
from rayjobs.serve.intake import Refused
from rayjobs.serve.live import LiveView, events
from rayjobs.serve.models import (
    BundleRequest,
    HealthAnswer,
    OrdersAnswer,
    OrdersRequest,
    PolicyAnswer,
    Problem,
    WeightsAnswer,
    WeightsRequest,
)
from rayjobs.serve.telemetry import Metrics, event
from rayjobs.serve.tokens import OPTIONS
from rayjobs.steer.folder import SteerFolder
from tuning.steering.options import GuardOptions

PAGE = Path(__file__).with_name("page")
_FILES = {
    "/": "page.html", "/page.js": "page.js", "/charts.js": "charts.js", "/parts.js": "parts.js",
    "/page.css": "page.css", "/docs": "api.html", "/api.js": "api.js",
}  # fmt: skip
_REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem} for code in (400, 401, 403, 404, 409, 413, 421, 422, 503)
}


@dataclass(frozen=True)
class Batching:
    """How many requests one call of the network decides.

    Attributes:
        size: maximum number; 1 decides every request on its own.
        wait_s: how long the first request waits for others; 0 takes only those that wait already.
    """

    size: int = 1
    wait_s: float = 0.0


@dataclass(frozen=True)
class ServeSettings:
    """Settings of the app.

    Attributes:
        bundle: the bundle that is served first.
        root: folder of the bundles that may be served instead.
        state: folder of the pointer to the bundle in use.
        steer: folder of the controller that the page shows and commands.
        batching: only in force under Ray Serve.
    """

    bundle: Path
    root: Path
    state: Path
    steer: Path
    rules: GateRules
    guards: GuardOptions
    batching: Batching = Batching()


def open_answers(settings: ServeSettings, metrics: Metrics | None = None) -> Answers:
    """Answers of the bundle in use, counted in `metrics`. Raises BundleError when it cannot be used."""
    store = BundleStore(settings.bundle, settings.root, settings.state)
    return Answers(store, settings.guards, metrics)


def create_app(settings: ServeSettings, answers: Answers | None = None) -> ASGIApp:
    """The app behind its gate. Raises BundleError when the bundle cannot be used."""
    answers = answers or open_answers(settings)
    metrics = answers.metrics
    # FastAPI's own API pages load scripts from the Internet; ours works without a network.
    app = FastAPI(
        title="Deep Scheduling", version="1", description=__doc__, responses=_REFUSALS, docs_url=None, redoc_url=None
    )
    _handle_errors(app, metrics)
    _policy_routes(app, answers)
    _live_routes(app, settings, answers)
    _describe_tokens(app, settings.rules)

    def refused(refusal: Refused, scope: Scope) -> None:
        metrics.refuse(refusal.status)
        if scope["path"] in CHANGES:
            event("refused", logging.WARNING, status=refusal.status, path=scope["path"], detail=refusal.detail)

    return Gate(app, settings.rules, refused)


def _policy_routes(app: FastAPI, answers: Answers) -> None:
    store = answers.store
    schema = WeightsRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs")

    @app.post(
        "/v1/weights",
        response_model=WeightsAnswer,
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    )
    async def weights(request: Request) -> Response:
        """Weights per group and server, the state, and the decision with its reason."""
        return Response(await answers.answer(await request.body()), media_type="application/json")

    _add_definitions(app, definitions)

    @app.get("/v1/policy", response_model=PolicyAnswer)
    def policy() -> dict[str, Any]:
        """The served bundle: its provenance and evaluation."""
        return _describe(store)

    @app.post("/v1/bundles", response_model=PolicyAnswer)
    def bundles(request: BundleRequest) -> dict[str, Any]:
        """Serves another bundle, or the previous one; requests in progress are completed."""
        store.rollback() if request.path is None else store.swap(Path(request.path))
        described = _describe(store)
        event("bundle", bundle=described["bundle"], folder=described["folder"])
        return described


def _live_routes(app: FastAPI, settings: ServeSettings, answers: Answers) -> None:
    folder, view, store = SteerFolder(settings.steer), LiveView(settings.steer), answers.store

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
        present = folder.order(**changes).model_dump(exclude={"answered"})
        result = {**present, "controller": folder.is_locked()}
        event("orders", **result)
        return result

    @app.get("/healthz", response_model=HealthAnswer)
    def healthz() -> dict[str, Any]:
        """Answers once the bundle is loaded; says whether the latest swap was taken back, and why."""
        in_use = store.in_use()
        return {"status": "ok", "bundle": in_use.bundle.id, "taken_back": _taken_back(store, in_use)}

    @app.get("/metrics", response_class=Response)
    def metrics_text() -> Response:
        """Prometheus text, of all replicas."""
        in_use = store.in_use()
        text = answers.metrics.text(view, in_use.bundle.id, in_use.served.times_taken_back)
        return Response(text, media_type="text/plain; version=0.0.4")

    for route, name in _FILES.items():
        app.add_api_route(route, _file(name), include_in_schema=False, response_class=FileResponse)


def _file(name: str) -> Any:
    async def file() -> FileResponse:
        return FileResponse(PAGE / name)

    return file


def _handle_errors(app: FastAPI, metrics: Metrics) -> None:
    def answered(status: int, detail: str) -> JSONResponse:
        metrics.refuse(status)
        return JSONResponse({"detail": detail}, status)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, ConflictError):
            return answered(409, str(error)[:1000])
        if isinstance(error, (ValidationError, RequestValidationError)):
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])[:200]
            return answered(422, f"{where}: {first['msg']}"[:500])
        return answered(422, str(error)[:1000])

    async def silent(request: Request, error: Exception) -> JSONResponse:
        return answered(503, str(error)[:1000])

    async def unwritten(request: Request, error: Exception) -> JSONResponse:
        event("unwritten", logging.ERROR, path=request.url.path, detail=str(error))
        return answered(503, f"cannot write: {getattr(error, 'strerror', None) or error}")

    for kind in (ValidationError, RequestValidationError, DeepSchedError):
        app.add_exception_handler(kind, refused)
    # Other processes that the answer needs.
    app.add_exception_handler(ProcessError, silent)
    # A full disk or missing rights: the bundle in use stays in use.
    app.add_exception_handler(OSError, unwritten)


def _describe(store: BundleStore) -> dict[str, Any]:
    in_use = store.in_use()
    bundle, previous = in_use.bundle, in_use.served.previous
    problem = bundle.own.bundle.problem
    return {
        "bundle": bundle.id,
        "folder": str(bundle.folder),
        "previous": str(previous) if previous else None,
        "taken_back": _taken_back(store, in_use),
        "request_types": list(problem.topology.request_types),
        "groups": [group.name for group in problem.topology.groups],
        "deadlines_s": problem.deadlines_s.tolist(),
        "clusters": problem.encoder.clusters,
        "frames": problem.options.frames,
        "decision": problem.options.model_dump(mode="json"),
        "provenance": bundle.own.bundle.provenance,
    }


def _taken_back(store: BundleStore, in_use: InUse) -> dict[str, Any] | None:
    """The latest swap, when it was taken back; its folder below that of all bundles, for those without a token."""
    taken = in_use.served.taken_back
    if taken is None:
        return None
    return {"folder": str(taken.folder.relative_to(store.root.resolve())), "why": taken.why, "at": taken.at}


def _describe_tokens(app: FastAPI, rules: GateRules) -> None:
    """Adds to the OpenAPI page whose token each operation needs."""
    original, roles = app.openapi, rules.tokens.roles_for("read")
    schemes = {r: {"type": "http", "scheme": "bearer", "description": f"The token of {OPTIONS[r]}"} for r in roles}

    def openapi() -> dict[str, Any]:
        document = original()
        document["components"]["securitySchemes"] = schemes
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                needed = rules.needed(path, method.upper())
                operation["security"] = [{role: []} for role in rules.tokens.roles_for(needed)] if needed else []
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _add_definitions(app: FastAPI, definitions: dict[str, Any]) -> None:
    """Adds the request body's models to the OpenAPI page; `answers.read_body` parses it, faster than FastAPI."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        document["components"]["schemas"] = {**definitions, **document["components"].get("schemas", {})}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
