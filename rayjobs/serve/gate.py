"""ASGI middleware of the served policy: who may ask, what may be changed, how large a body may be.

Not built from Starlette's middleware classes: TrustedHostMiddleware answers 400 in plain text, nothing there bounds a
body, and BaseHTTPMiddleware buffers the event stream. Its headers, types and responses are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayjobs.serve.intake import Intake, Refused
from rayjobs.serve.tokens import OPTIONS, Role, Tokens

OPEN = frozenset({"/", "/page.js", "/charts.js", "/parts.js", "/page.css", "/docs", "/api.js", "/healthz"})
"""Paths without data, served without a token."""
CHANGES: Mapping[str, Role] = {"/v1/orders": "order", "/v1/bundles": "admin"}
"""What always needs a token, and whose."""
DECISIONS = "/v1/weights"
_LONGEST = 18
"""Digits of a `Content-Length` that is read."""
LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Headers of every answer."""
_WITH = {
    401: {"www-authenticate": "Bearer"}, 403: {"www-authenticate": 'Bearer error="insufficient_scope"'},
    408: {"connection": "close"}, 415: {"accept-encoding": "identity"}, 503: {"retry-after": "1"},
}  # fmt: skip


@dataclass(frozen=True)
class GateRules:
    """What a request must satisfy.

    Attributes:
        public: the server can be reached from other machines.
        max_body_bytes: largest body that is read.
    """

    tokens: Tokens
    public: bool
    max_body_bytes: int

    @property
    def open(self) -> bool:
        """Whether data and decisions need no token."""
        return not self.public and not self.tokens.read

    def needed(self, path: str, method: str) -> Role | None:
        """Whose token a request needs; None for no token."""
        if path in CHANGES and method not in ("GET", "HEAD"):
            return CHANGES[path]
        if path in OPEN or self.open:
            return None
        return "order" if path == DECISIONS else "read"


class Gate:
    """Wraps an ASGI app.

    Args:
        refused: called for every refused request.
    """

    def __init__(
        self, app: ASGIApp, rules: GateRules, refused: Callable[[Refused, Scope], None] = lambda refusal, scope: None
    ) -> None:
        self._app, self._rules, self._refused = app, rules, refused
        self._intake = Intake(rules.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._admit(scope, headers)
            if self._has_body(headers):
                await self._with_body(scope, receive, send)
            else:
                await self._app(scope, receive, _answered(send))
        except Refused as refusal:
            self._refused(refusal, scope)
            await _response(refusal)(scope, receive, send)

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the whole body before the app sees the request. Raises Refused."""
        body = await self._intake.read(receive)
        if body is None:
            return
        try:
            await self._app(scope, body.replayed(receive), _answered(send))
        finally:
            self._intake.release(body)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        rules, path, host = self._rules, route_path(scope), headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not rules.public and name.lower() not in LOCAL_NAMES:
            # DNS rebinding: a foreign page whose name resolves to 127.0.0.1 must not read the answers.
            raise Refused(421, "this server answers requests from this machine only")
        if not path.isprintable():
            # Starlette's routes end in `$`, which also matches before a line feed.
            raise Refused(400, "the path has a control character")
        needed = rules.needed(path, scope["method"])
        if needed is None:
            return
        # latin-1 is how Starlette decodes headers, so that any byte of a wrong token can be compared.
        kind, _, given = headers.get("authorization", "").encode("latin-1").partition(b" ")
        role = rules.tokens.role_of(given) if kind.lower() == b"bearer" else None
        wanted = " or ".join(OPTIONS[allowed] for allowed in rules.tokens.roles_for(needed))
        if role is None:
            raise Refused(401, f"a bearer token is needed: that of {wanted}")
        if role not in rules.tokens.roles_for(needed):
            raise Refused(403, f"the token of {OPTIONS[role]} does not allow this; it needs that of {wanted}")

    def _has_body(self, headers: Headers) -> bool:
        """Raises Refused for a body that would be too long, or is compressed."""
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise Refused(415, f"Content-Encoding: {encoding[:40]} is not read; send the body plain")
        given, most = headers.get("content-length", "0"), self._rules.max_body_bytes
        length = given.lstrip("0") or "0"
        if not (given.isascii() and given.isdigit()) or len(length) > _LONGEST or int(length) > most:
            raise self._intake.too_long()
        return length != "0" or "transfer-encoding" in headers


def route_path(scope: Scope) -> str:
    """The path by which the app finds its route: without the prefix under which it is mounted, as Serve's
    `route_prefix` (https://asgi.readthedocs.io/en/latest/specs/www.html#http-connection-scope, `root_path`).
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if path == root or path.startswith(f"{root}/") else path


def _answered(send: Send) -> Send:
    """Adds our headers to the answer."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return send_with_headers


def _response(refusal: Refused) -> JSONResponse:
    return JSONResponse({"detail": refusal.detail}, refusal.status, {**HEADERS, **_WITH.get(refusal.status, {})})
