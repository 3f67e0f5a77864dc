"""The status endpoint of a recorded system: every reading is the next snapshot, so seconds pass in milliseconds."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from actuators.statistics.recording import read_snapshots, to_json
from actuators.statistics.vts import Snapshot
from tests.support.http_server import Received, ScriptedServer

MODULE = "v0.2.2"


def vts_document(snapshot: Snapshot) -> dict[str, Any]:
    """What nginx-module-vts would show."""
    line = json.loads(to_json(snapshot))
    zones = {
        name: [{**counters, "server": server} for server, counters in line[name].items()] for name in snapshot.groups
    }
    own = {name: line[name] for name in ("nowMsec", "loadMsec", "hostName", "connections")}
    return {**own, "moduleVersion": MODULE, "upstreamZones": zones}


@contextlib.contextmanager
def played(recording: Path) -> Iterator[str]:
    """URL of the endpoint; after the last snapshot it begins again, as an NGINX that was restarted."""
    documents = [json.dumps(vts_document(each)).encode() for each in read_snapshots(recording).snapshots]
    with ScriptedServer(_answers(documents)) as server:
        yield f"http://{server.address}/status/format/json"


def _answers(documents: Sequence[bytes]) -> Any:
    turn = itertools.cycle(documents)

    def answer(request: Received) -> bytes:
        if "/control" in request.line:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        body = next(turn)
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    return answer
