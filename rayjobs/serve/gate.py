"""ASGI middleware of the served policy: who may ask, what may be changed, how large a body may be.

Not built from Starlette's middleware classes: TrustedHostMiddleware answers 400 in plain text, nothing there bounds a
body, and BaseHTTPMiddleware buffers the event stream. Its headers, types and responses are used.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = frozenset({"/", "/page.js", "/charts.js", "/page.css", "/docs", "/api.js", "/healthz"})
"""Paths without data, served without a token."""
CHANGES = frozenset({"/v1/bundles", "/v1/orders"})
"""Paths that always need the token."""
LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Headers of every answer."""


@dataclass(frozen=True)
class GateRules:
    """What a request must satisfy.

    Attributes:
        token: required for changes, and for all data when `public`; changes are refused when it is empty.
        public: the server can be reached from other machines.
        max_body_bytes: largest body that is read.
    """

    token: str
    public: bool
    max_body_bytes: int


class Refused(Exception):  # noqa: N818 - an answer to the client, not an error of the server
    """The request is answered with this status and sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Gate:
    """Wraps an ASGI app.

    Args:
        refused: called for every refused request.
    """

    def __init__(
        self, app: ASGIApp, rules: GateRules, refused: Callable[[Refused, Scope], None] = lambda refusal, scope: None
    ) -> None:
        self._app, self._rules, self._refused = app, rules, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, exchange = Headers(scope=scope), _Exchange(send)
        try:
            self._admit(scope, headers)
            await self._app(scope, self._bounded(receive, headers, exchange), exchange.send)
        except Refused as refusal:
            exchange.refusal = refusal
        if exchange.refusal is None:
            return
        self._refused(exchange.refusal, scope)
        if not exchange.started:
            await _response(exchange.refusal)(scope, receive, send)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        rules, path, host = self._rules, scope["path"], headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not rules.public and name.lower() not in LOCAL_NAMES:
            # DNS rebinding: a foreign page whose name resolves to 127.0.0.1 must not read the answers.
            raise Refused(421, "this server answers requests from this machine only")
        changes = path in CHANGES and scope["method"] not in ("GET", "HEAD")
        if changes and not rules.token:
            raise Refused(403, "changes are off: the server has no token")
        if changes or (rules.public and path not in OPEN):
            # latin-1 is how Starlette decodes headers, so that any byte of a wrong token can be compared.
            given = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, b"Bearer " + rules.token.encode()):
                raise Refused(401, "a bearer token is needed")

    def _bounded(self, receive: Receive, headers: Headers, exchange: _Exchange) -> Receive:
        limit, read = self._rules.max_body_bytes, 0
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > limit:
            raise Refused(413, f"the body is longer than {limit} bytes")

        async def receive_some() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                # The app handles this as its own failure and answers; `_Exchange` drops that answer.
                exchange.refusal = Refused(413, f"the body is longer than {limit} bytes")
                raise exchange.refusal
            return message

        return receive_some


class _Exchange:
    """One request: adds headers to the answer, or drops the answer after a refusal."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.refusal: Refused | None = None

    async def send(self, message: Message) -> None:
        if self.refusal is not None and not self.started:
            return
        if message["type"] == "http.response.start":
            self.started = True
            MutableHeaders(scope=message).update(HEADERS)
        await self._send(message)


def _response(refusal: Refused) -> JSONResponse:
    challenge = {"www-authenticate": "Bearer"} if refusal.status == 401 else {}
    return JSONResponse({"detail": refusal.detail}, refusal.status, {**HEADERS, **challenge})
