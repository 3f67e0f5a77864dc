"""An HTTP endpoint that answers with JSON documents, as the admin endpoint of an Envoy does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tests.support.http_server import Received, ScriptedServer


@contextlib.contextmanager
def serving(documents: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Its URL, and the documents by the begin of their path; of a list the first one goes with every answer but the
    last. Others get 404.
    """

    def answer(request: Received) -> bytes:
        path = request.line.split()[1]
        found = next((name for name in documents if path.startswith(name)), None)
        if found is None:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        document = documents[found]
        if isinstance(document, list) and document:
            document = document.pop(0) if len(document) > 1 else document[0]
        body = json.dumps(document).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    with ScriptedServer(answer) as server:
        yield f"http://{server.address}", documents
