"""Runs one stand-in server as a process: starts it, plays its part of a script, reads its counters."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from actuators.contract.script import Behaviour, Script
from actuators.contract.topology import Topology
from actuators.errors import ServiceError
from actuators.files import private_folder
from actuators.http_client import http_session, responds
from actuators.processes.process import ManagedProcess
from actuators.social_network.capacity import ServerPlan, plan_of
from actuators.social_network.store import SocialNetworkOptions

_CALL_TIMEOUT_S = 5.0


class SocialNetworkServer:
    """One stand-in server process; a context manager.

    Args:
        work_dir: receives `server-INDEX.log` and `server-INDEX.json` (both addresses).
        database: made by `create_database`; shared by all servers of a testbed.
        index: of the server in its topology, 0…1023; unique among the database's servers.
        port: 0 takes a free port at the first start and keeps it for later ones.
    """

    def __init__(
        self,
        options: SocialNetworkOptions,
        *,
        work_dir: Path,
        database: Path,
        index: int,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._options, self._work_dir, self._database = options, work_dir, database
        self._index, self._host, self._port = index, host, port
        self._process: ManagedProcess | None = None
        self._address = self._admin = ""

    @property
    def address(self) -> str:
        """``HOST:PORT`` of the public listener; known after the first start."""
        return self._address

    @property
    def admin(self) -> str:
        """``127.0.0.1:PORT`` of the admin listener; it changes with each start."""
        return self._admin

    @property
    def pid(self) -> int:
        """Process id of the server. Raises ServiceError when it was not started."""
        if self._process is None:
            raise self._error("is not running")
        return self._process.pid

    def kill(self) -> None:
        """Sends SIGKILL to the process, for tests of a crash; returns when it has ended."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(_CALL_TIMEOUT_S)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when /healthz responds. A server that died starts again on the same address, without a plan.

        Raises ServiceError or ProcessError.
        """
        if self.running:
            return
        self.close()
        private_folder(self._work_dir)
        ready_file = self._work_dir / f"server-{self._index}.json"
        ready_file.unlink(missing_ok=True)
        self._process = ManagedProcess(
            [
                sys.executable, "-m", "actuators.social_network", "--database", str(self._database.resolve()),
                "--index", str(self._index), "--host", self._host, "--port", str(self._port),
                "--ready-file", str(ready_file.resolve()),
            ],
            name=f"social-network server {self._index}",
            log_path=self._work_dir / f"server-{self._index}.log",
            cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        self._process.wait_ready(ready_file.exists, self._options.start_timeout_s)
        addresses = json.loads(ready_file.read_text())
        self._address, self._admin = addresses["address"], addresses["admin"]
        self._port = int(self._address.rpartition(":")[2])
        self._process.wait_ready(self.healthy, self._options.start_timeout_s)

    def healthy(self) -> bool:
        """Whether /healthz responds within a second."""
        return responds(f"http://{self._address}/healthz", 1.0)

    def play(self, script: Script, topology: Topology) -> None:
        """Plays this server's part of a script, from this call on, with zero counters and an empty queue.

        Starts a server that has died first.

        Raises ConfigError for a script of another shape, ServiceError when the server does not respond.
        """
        plan = plan_of(script, topology, self._index)
        self.start()
        self.play_plan(plan)

    def play_plan(self, plan: ServerPlan) -> None:
        """As `play`, for a plan."""
        self._admin_call("POST", "/play", {"plan": plan.to_json(), "start_s": time.monotonic()})

    def behave(self, *behaviours: Behaviour) -> None:
        """Replaces the plan's behaviours; seconds count from this call. Raises ServiceError."""
        self._admin_call("POST", "/behaviours", [vars(behaviour) for behaviour in behaviours])

    def counters(self) -> dict[str, Any]:
        """Counts since `play` (see `ServiceCounters`), with `waiting` and `busy` now.

        Raises ServiceError when the server does not respond.
        """
        return self._admin_call("GET", "/counters")

    def close(self) -> None:
        """Ends the process; idempotent."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _admin_call(self, method: str, path: str, message: Any = None) -> dict[str, Any]:
        if self._process is None:
            raise self._error("is not running")
        try:
            with http_session(_CALL_TIMEOUT_S) as session:
                answer = session.request(method, f"http://{self._admin}{path}", json=message)
            content: dict[str, Any] = answer.json()
        except requests.RequestException as error:
            code = self._process.poll()
            state = "does not answer" if code is None else f"ended with code {code}"
            raise self._error(f"{state}: {error!r}") from error
        if not answer.ok:
            raise self._error(f"refused {path}: {content.get('error')}")
        return content

    def _error(self, what: str) -> ServiceError:
        tail = self._process.log_tail() if self._process is not None else ""
        return ServiceError(
            f"server {self._index} {what}", where=self._address or str(self._work_dir), remedy="start it", evidence=tail
        )
