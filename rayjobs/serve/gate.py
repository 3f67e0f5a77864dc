"""The gate before the served policy: who may ask, what may be changed, how large a body may be. Pure ASGI."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/", "/page.js", "/charts.js", "/page.css", "/docs", "/api.js", "/healthz"})
"""What anybody may see: no data."""
CHANGES = frozenset({"/v1/bundles", "/v1/orders"})
"""What always needs the token."""
LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True)
class GateRules:
    """Who may pass.

    Attributes:
        token: of changes, and of everything beyond loopback; changes are refused when it is empty.
        public: the server can be reached beyond loopback.
        max_body_bytes: longest body that is read.
    """

    token: str
    public: bool
    max_body_bytes: int


class Refused(Exception):  # noqa: N818 - it is an answer, not an error of ours
    """The request is answered by this status and sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Gate:
    """Wraps an ASGI app.

    Args:
        refused: hears of every request that was refused, its path and method.
    """

    def __init__(
        self, app: App, rules: GateRules, refused: Callable[[Refused, Scope], None] = lambda refusal, scope: None
    ) -> None:
        self._app, self._rules, self._refused = app, rules, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        call = _Call(send)
        try:
            self._admit(scope, headers)
            await self._app(scope, self._bounded(receive, headers, call), call.send)
        except Refused as refusal:
            call.refusal = refusal
        if call.refusal is not None:
            self._refused(call.refusal, scope)
        if call.refusal is not None and not call.started:
            await _refuse(send, call.refusal)

    def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        rules, path = self._rules, scope["path"]
        host = headers.get(b"host", b"").decode("latin-1")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not rules.public and name.lower() not in LOCAL_NAMES:
            # A page of a stranger whose name suddenly means 127.0.0.1 must not read us.
            raise Refused(421, "this server is for this machine only")
        changes = path in CHANGES and scope["method"] not in ("GET", "HEAD")
        if changes and not rules.token:
            raise Refused(403, "changes are off: the server has no token")
        if changes or (rules.public and path not in OPEN):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + rules.token.encode()):
                raise Refused(401, "a bearer token is needed")

    def _bounded(self, receive: Receive, headers: dict[bytes, bytes], call: _Call) -> Receive:
        limit, read = self._rules.max_body_bytes, 0
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            raise Refused(413, f"the body is longer than {limit} bytes")

        async def receive_some() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                # The app takes this for its own failure; what it would say of it is held back.
                call.refusal = Refused(413, f"the body is longer than {limit} bytes")
                raise call.refusal
            return message

        return receive_some


class _Call:
    """One request on its way through: adds headers to the answer, or holds the answer back after a refusal."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.refusal: Refused | None = None

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if self.refusal is not None and not self.started:
            return
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await self._send(message)


async def _refuse(send: Send, refusal: Refused) -> None:
    body = json.dumps({"detail": refusal.detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
