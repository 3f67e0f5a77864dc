"""Two bundles behind a served app of their own, and what asks it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from actuators.http_client import responds
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from rayjobs.serve.__main__ import serving
from rayjobs.serve.options import ServeOptions, make_settings
from rayjobs.serve.tokens import Role
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import PATIENCE_S

TOKENS: dict[Role, str] = {"order": "the-token-for-orders", "read": "the-token-for-reading"}


def role_files(folder: Path, *roles: Role) -> dict[str, Path]:
    """Options of `serve` with a file for the token of each role."""
    given = {}
    for role in roles:
        path = folder / f"{role}.token"
        path.touch(0o600)
        path.write_text(f"{TOKENS[role]}\n")
        given[f"{role}_token_file"] = path
    return given


@dataclass
class Served:
    """A served app; `token` is that of `admin`."""

    url: str
    token: str
    folder: Path

    def post(self, path: str, body: Any, token: str | None = None, **more: Any) -> requests.Response:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        data = body if isinstance(body, (bytes, str)) else json.dumps(body)
        return requests.post(self.url + path, data=data, headers=headers, timeout=PATIENCE_S, **more)

    def get(self, path: str, token: str | None = None, **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}", **more.pop("headers", {})} if token else more.pop("headers", {})
        return requests.get(self.url + path, headers=headers, timeout=PATIENCE_S, **more)


@contextmanager
def serve_process(bundle: Path, folder: Path) -> Iterator[tuple[ManagedProcess, str]]:
    """`deepsched serve` on uvicorn, a process of its own; its state and log are in the folder, which it shows."""
    port = free_port("127.0.0.1")
    command = [
        sys.executable, "-m", "rayjobs.serve", str(bundle), "--front", "uvicorn", "--port", str(port),
        "--folder", str(folder / "state"), "--steer-folder", str(folder),
    ]  # fmt: skip
    with ManagedProcess(command, name="serve", log_path=folder / "serve.log") as process:
        process.wait_ready(lambda: responds(f"http://127.0.0.1:{port}/healthz"), PATIENCE_S)
        yield process, f"http://127.0.0.1:{port}"


def served_bundles(folder: Path, front: str, host: str = "127.0.0.1", **more: Any) -> Iterator[Served]:
    for name, seed in (("first", 0), ("second", 1)):
        trained_bundle(seed=seed).save(folder / "bundles" / name)
    options = ServeOptions.model_validate(
        {"bundle": folder / "bundles" / "first", "port": 0, "front": front, "host": host,
         "folder": folder / "state", "steer_folder": folder / "steer", **more}
    )  # fmt: skip
    settings = make_settings(options)
    with serving(options, settings) as address:
        port = address.rpartition(":")[2]
        yield Served(f"http://127.0.0.1:{port}", settings.rules.tokens.admin, folder)
