"""A host with an NGINX configuration and its statistics, for installations without torch and Ray."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayjobs.cli.extras import MODULES
from tests.support.http_server import Received, ScriptedServer
from tests.support.steering_cases import trained_bundle
from tests.support.vts_documents import TOPOLOGY, document

BLOCKED = f"""import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {sorted({m for modules in MODULES.values() for m in modules})!r}:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
"""Makes every package of the extras unknown to a Python process."""
BOUNDS_MS = [1, 5, 10, 25, 50, 100, 250, 1000]


@dataclass(frozen=True)
class SmallHost:
    """What is there: the NGINX, a bundle for its groups, and the folder of a controller.

    Attributes:
        original: the configuration as it was written.
    """

    folder: Path
    status_url: str
    original: str

    @property
    def conf(self) -> Path:
        return self.folder / "nginx.conf"

    def commands(self) -> dict[str, list[str]]:
        """Words of `deepsched` for what such a host runs, by name."""
        steer = [
            "steer", "run", "--bundle", str(self.folder / "bundle"), "--nginx-conf", str(self.conf), "--status-url",
            self.status_url, "--folder", str(self.folder / "steer"), "--mode", "shadow", "--interval-s", "0.2",
            "--duration-s", "2",
        ]  # fmt: skip
        recording = str(self.folder / "recording.json")
        return {
            "doctor": ["doctor"],
            "collect": ["collect", recording, "--status-url", self.status_url, "--duration-s", "1"],
            "weights": ["weights", "get", "--set", f"reload.config={self.conf}"],
            "steer": steer,
            "status": ["steer", "status", "--folder", str(self.folder / "steer")],
        }

    def decisions(self) -> list[dict[str, Any]]:
        lines = (self.folder / "steer" / "audit.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["kind"] == "decision"]


@contextlib.contextmanager
def small_host(folder: Path) -> Iterator[SmallHost]:
    """The statistics are those of vts, a second later and with more requests at every reading."""
    trained_bundle().save(folder / "bundle")
    blocks = "".join(
        f"  upstream {group.name} {{\n"
        + "".join(f"    server {server} weight=5;\n" for server in group.servers)
        + "  }\n"
        for group in TOPOLOGY.groups
    )
    original = f"events {{}}\nhttp {{\n{blocks}}}\n"
    (folder / "nginx.conf").write_text(original)
    readings = 0

    def status(_: Received) -> bytes:
        nonlocal readings
        readings += 1
        body = json.dumps(_after(readings)).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    with ScriptedServer(status) as server:
        yield SmallHost(folder, f"http://{server.address}/status/format/json", original)


def _after(readings: int) -> dict[str, Any]:
    whole = document("before_load")
    whole["nowMsec"] += 200 * readings
    for servers in whole["upstreamZones"].values():
        for index, server in enumerate(servers):
            count, took_ms = 20 * readings, 8 * (index + 1)
            server |= {
                "requestCounter": count,
                "requestMsecCounter": count * took_ms,
                "responseMsecCounter": count * took_ms,
                "inBytes": count,
                "outBytes": count,
            }
            server["responses"]["2xx"] = count
            within = [count if bound >= took_ms else 0 for bound in BOUNDS_MS]
            server["requestBuckets"] = server["responseBuckets"] = {"msecs": BOUNDS_MS, "counters": within}
    return whole
