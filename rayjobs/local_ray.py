"""A Ray of our own on this machine: its ports, temporary folder and token; it joins and stops no other.

The head runs under a guardian (`actuators.process`), not as a child of `ray.init`: when the driver is
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
from collections.abc import Iterator
from pathlib import Path

from actuators.process import ManagedProcess
from rayjobs.interrupts import claim_signals

OBJECT_STORE_BYTES = 200 * 2**20
START_TIMEOUT_S = 90.0
PREFIX = "deepsched-ray-"
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
            # `python` in a submitted job's command is looked up on the head's PATH: it must be this one.
            env={**os.environ, **self.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            # A graceful end drains for up to 30 s; whoever closes this has closed its actors already.
            stop_signal=signal.SIGKILL,
        )  # fmt: skip

    def connect(self) -> None:
        """Waits until the head is up and makes this process its driver. Raises ProcessError."""
        address = self.folder / "ray_current_cluster"
        self._head.wait_ready(lambda: address.exists() and bool(address.read_text().strip()), START_TIMEOUT_S)
        os.environ.update(self.environment)
        os.environ.pop("RAY_ADDRESS", None)
        raylet = importlib.import_module("ray._raylet")
        # Ray reads its environment when it is imported, which may have been before now (ray 2.60).
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
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
    if _SUBMITTED not in os.environ:
        with local_ray(testbeds, servers):
            yield
        return
    _connect("auto")
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
        owner = folder / "owner"
        if owner.exists() and not Path("/proc", owner.read_text().strip()).exists():
            shutil.rmtree(folder, ignore_errors=True)
