"""A Ray of our own on this machine: its ports, temporary folder and token; it joins and stops no other.

The head runs under a guardian (`actuators.processes.process`), not as a child of `ray.init`: when the driver is
killed, ray 2.60 leaves its dashboard and runtime-env agents behind for ever; a guardian leaves nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from actuators.processes.process import ManagedProcess
from rayjobs.cli.interrupts import claim_signals

OBJECT_STORE_BYTES = 200 * 2**20
START_TIMEOUT_S = 120.0
PREFIX = "deepsched-ray-"
_PATIENCE = {
    "RAY_raylet_start_wait_time_s": str(round(START_TIMEOUT_S)),
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(round(START_TIMEOUT_S)),
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": str(round(START_TIMEOUT_S)),
    "RAY_worker_niceness": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}
"""Ray gives its own node 30 s to start, and Serve kills a proxy that needs more than 5 s, which a busy machine may
not give them. Ray starts its workers at nice 15: an NGINX and a load engine below them would wait for every other
program of the machine. Two hops between threads cost a served policy more than its answer takes; what takes longer
leaves the event loop by itself."""
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the environment of a submitted job's entrypoint."""


class LocalRay:
    """A Ray head with room for testbeds; `start` returns at once, `connect` waits for it.

    Custom resources: `proxy` and `client`, one per testbed, and `server`, `servers` per testbed.

    Args:
        cpus: logical CPUs; this machine's cores when None.
        dashboard_port: of the dashboard on 127.0.0.1, which takes submitted jobs; none when None.
    """

    def __init__(
        self, testbeds: int = 1, servers: int = 3, cpus: int | None = None, dashboard_port: int | None = None
    ) -> None:
        _sweep_stale_folders()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        (self.folder / "owner").write_text(str(os.getpid()))
        self.environment = _environment(self.folder)
        resources = {"proxy": testbeds, "client": testbeds, "server": testbeds * servers}
        # `python` in a submitted job's command is looked up on the head's PATH: it must be this one.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._head = ManagedProcess(
            [
                sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0",
                f"--include-dashboard={str(dashboard_port is not None).lower()}", "--dashboard-host=127.0.0.1",
                f"--dashboard-port={dashboard_port or 0}", "--dashboard-agent-listen-port=0", "--disable-usage-stats",
                f"--num-cpus={cpus or os.cpu_count()}", f"--resources={json.dumps(resources)}",
                f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={self.folder}",
            ],
            name="Ray",
            log_path=self.folder / "head.log",
            env={**os.environ, **self.environment, **_PATIENCE, "PATH": path},
            # A graceful end drains for up to 30 s; whoever closes this has closed its actors already.
            stop_signal=signal.SIGKILL,
        )  # fmt: skip

    def wait_ready(self, ready: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        """Returns when the condition holds. Raises ProcessError when the head ends or it does not come in time."""
        self._head.wait_ready(ready, timeout_s)

    def connect(self) -> None:
        """Waits until the head is up and makes this process its driver. Raises ProcessError."""
        address = self.folder / "ray_current_cluster"
        self.wait_ready(lambda: address.exists() and bool(address.read_text().strip()))
        os.environ.update(self.environment)
        os.environ.pop("RAY_ADDRESS", None)
        _take_environment()
        _connect(address.read_text().strip())

    def close(self) -> None:
        """Disconnects, ends every process of this Ray and removes its folder; idempotent."""
        if "ray" in sys.modules:
            import ray

            ray.shutdown()
        self._head.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def ray_session(testbeds: int = 1, servers: int = 3) -> Iterator[None]:
    """The Ray that this process is connected to or was submitted to as a job, or else a `LocalRay` for the block."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    with connected("auto") if in_job() else local_ray(testbeds, servers):
        yield


def in_job() -> bool:
    """Whether this process was submitted to a cluster with `ray job submit`."""
    return _SUBMITTED in os.environ


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """This process as a driver of the Ray at that address, with the authentication of its environment."""
    _connect(address)
    try:
        yield
    finally:
        sys.modules["ray"].shutdown()


@contextlib.contextmanager
def local_ray(testbeds: int = 1, servers: int = 3, cpus: int | None = None) -> Iterator[LocalRay]:
    """A connected `LocalRay` for the block; the environment is as before afterwards."""
    before = dict(os.environ)
    ray = LocalRay(testbeds, servers, cpus)
    try:
        ray.connect()
        yield ray
    finally:
        ray.close()
        for name in ray.environment:
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in (*ray.environment, "RAY_ADDRESS") if name in before})


def running_heads() -> list[Path]:
    """Folders of the heads of ours that run on this machine now, of whatever process."""
    return [folder for folder in sorted(Path(tempfile.gettempdir()).glob(PREFIX + "*")) if _address(folder)]


@contextlib.contextmanager
def joined(folder: Path) -> Iterator[None]:
    """This process as one more driver of the head in that folder, for the block."""
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        _take_environment()
        _connect(_address(folder))
        yield
    finally:
        sys.modules["ray"].shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _address(folder: Path) -> str:
    """Where that head listens; empty when it is not up or its owner has gone."""
    try:
        return (folder / "ray_current_cluster").read_text().strip() if _is_owned(folder) else ""
    except OSError:
        return ""


def _take_environment() -> None:
    """Ray reads its environment when it is imported, which may have been before now (ray 2.60)."""
    raylet = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _connect(address: str) -> None:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    # RLlib explains its new API stack at every start.
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    # ray.init takes SIGTERM for itself and would leave without letting anything end.
    claim_signals()


def _environment(folder: Path) -> dict[str, str]:
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # More threads than cores make tiny networks many times slower (measured: shared/ray.md).
        "OMP_NUM_THREADS": "1",
    }


def _sweep_stale_folders() -> None:
    """Removes the temporary folders of owners that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        if not _is_owned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_owned(folder: Path) -> bool:
    """False when the process that made the folder has ended; a folder without its number is being made."""
    try:
        return psutil.pid_exists(int((folder / "owner").read_text()))
    except (OSError, ValueError):
        return True
