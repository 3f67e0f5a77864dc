"""Runs the processes of the stand-in, servers and shared stages: starts them, plays scripts, reads counters."""

from __future__ import annotations

import json
import signal
import sys
import time
from abc import ABC, abstractmethod
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
from actuators.social_network.stages import stages_plan
from actuators.social_network.store import SocialNetworkOptions, remove_database

_CALL_TIMEOUT_S = 5.0


class AdminProcess(ABC):
    """A process of the stand-in with an admin listener; a context manager.

    Args:
        work_dir: receives `FILE.log` and `FILE.json` (both addresses).
    """

    def __init__(self, options: SocialNetworkOptions, work_dir: Path, name: str, file: str) -> None:
        self._options, self._work_dir, self._name, self._file = options, work_dir, name, file
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
        """Process id. Raises ServiceError when it was not started."""
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
        """Returns when it serves; no effect while it runs. Raises ServiceError or ProcessError."""
        if self.running:
            return
        self.close()
        private_folder(self._work_dir)
        ready_file = self._work_dir / f"{self._file}.json"
        ready_file.unlink(missing_ok=True)
        self._process = ManagedProcess(
            [sys.executable, "-m", *self._arguments(), "--ready-file", str(ready_file.resolve())],
            name=f"social-network {self._name}",
            log_path=self._work_dir / f"{self._file}.log",
            cwd=Path(__file__).resolve().parents[2],
        )
        self._process.wait_ready(ready_file.exists, self._options.start_timeout_s)
        addresses = json.loads(ready_file.read_text())
        self._address, self._admin = addresses["address"], addresses["admin"]

    def counters(self) -> dict[str, Any]:
        """Counts since `play`. Raises ServiceError when the process does not respond."""
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

    @abstractmethod
    def _arguments(self) -> list[str]:
        """Module and arguments, without --ready-file."""

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
            f"{self._name} {what}", where=self._address or str(self._work_dir), remedy="start it", evidence=tail
        )


class SocialNetworkServer(AdminProcess):
    """One stand-in server process; a context manager.

    Args:
        work_dir: receives `server-INDEX.log` and `server-INDEX.json` (both addresses).
        database: made by `create_database`; shared by all servers of a testbed on one machine.
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
        super().__init__(options, work_dir, f"server {index}", f"server-{index}")
        self._database, self._index, self._host, self._port = database, index, host, port

    def start(self) -> None:
        """Returns when /healthz responds. A server that died starts again on the same address, without a plan.

        Raises ServiceError or ProcessError.
        """
        if self.running:
            return
        super().start()
        self._port = int(self._address.rpartition(":")[2])
        assert self._process is not None
        self._process.wait_ready(self.healthy, self._options.start_timeout_s)

    def healthy(self) -> bool:
        """Whether /healthz responds within a second."""
        return responds(f"http://{self._address}/healthz", 1.0)

    def play(self, script: Script, topology: Topology, stages: str = "") -> None:
        """Plays this server's part of a script, from this call on, with zero counters and an empty queue.

        Starts a server that has died first.

        Args:
            stages: address of the `SharedStages` that play the script's stages; empty without stages.

        Raises ConfigError for a script of another shape, ServiceError when the server does not respond.
        """
        plan = plan_of(script, topology, self._index, stages)
        self.start()
        self.play_plan(plan)

    def play_plan(self, plan: ServerPlan) -> None:
        """As `play`, for a plan."""
        self._admin_call("POST", "/play", {"plan": plan.to_json(), "start_s": time.monotonic()})

    def behave(self, *behaviours: Behaviour) -> None:
        """Replaces the plan's behaviours; seconds count from this call. Raises ServiceError."""
        self._admin_call("POST", "/behaviours", [vars(behaviour) for behaviour in behaviours])

    def remove_database(self) -> None:
        """Removes the database, after all of its servers were closed; idempotent. Raises OSError."""
        remove_database(self._database)

    def _arguments(self) -> list[str]:
        return [
            "actuators.social_network", "--database", str(self._database.resolve()), "--index", str(self._index),
            "--host", self._host, "--port", str(self._port),
        ]  # fmt: skip


class SharedStages(AdminProcess):
    """The process of the stages behind all servers of a testbed; it starts with the first script that has stages."""

    def __init__(self, options: SocialNetworkOptions, work_dir: Path) -> None:
        super().__init__(options, work_dir, "stages", "stages")

    def play(self, script: Script, topology: Topology) -> str:
        """Plays the script's stages from this call on, empty ones; their address, "" for a script without stages.

        Raises ConfigError for an unknown path, ServiceError or ProcessError.
        """
        if not script.stages:
            return ""
        plan = stages_plan(script, topology)
        self.start()
        self._admin_call("POST", "/play", {"plan": plan.to_json(), "start_s": time.monotonic()})
        return self.address

    def _arguments(self) -> list[str]:
        return ["actuators.social_network.stages_endpoint"]
