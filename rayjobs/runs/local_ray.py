"""A private Ray on this machine, with its own ports, temporary folder and token; it neither joins nor stops another.

The head runs under a guardian (`actuators.processes.process`), not as a child of `ray.init`: when the driver is
killed, ray 2.60 leaves its dashboard and runtime-env agents running (docs/ray-facts.md#child-processes).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import logging
import os
import secrets
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from actuators.errors import ConfigError
from actuators.files import is_own_folder, open_private, read_regular, socket_place, write_private
from actuators.processes.process import ManagedProcess
from rayjobs.cli.console import console_err
from rayjobs.cli.interrupts import claim_signals, end_now
from rayjobs.runs.joining import AUTO, JOB_CONFIG, VARIABLE, Named, in_job, named_ray

OBJECT_STORE_BYTES = 200 * 2**20
START_TIMEOUT_S = 120.0
_REACH_S = 5.0
PREFIX = "deepsched-ray-"
_BELOW_BYTES = len(PREFIX) + 8 + len("/ray/session_2026-11-29_12-00-00_000000_4194304/sockets/plasma_store")
"""Of the longest path of a socket of Ray, below the folder for temporary folders."""
_RAY, _ADDRESS, _OWNER = "ray", "ray_current_cluster", "owner"
_BEYOND_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable, named after the systems where it is off by default; it works on Linux (ray 2.60)."""
_PATIENCE = {
    "RAY_raylet_start_wait_time_s": str(round(START_TIMEOUT_S)),
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(round(START_TIMEOUT_S)),
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": str(round(START_TIMEOUT_S)),
    "RAY_worker_niceness": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}
"""Ray gives its node 30 s to start, and Serve kills a proxy that needs more than 5 s; on a busy machine both take
longer. Ray starts its workers at nice 15: an NGINX and a load engine below them would wait for every other program.
Two changes of threads cost a served policy more than its decision; longer work leaves the event loop explicitly."""


class LocalRay:
    """A Ray head with room for testbeds; the constructor returns at once, `connect` waits for it.

    Its folder is private. Ray opens its own folder, `ray` below it, to all users (mode 0777, ray 2.60).

    Custom resources: `proxy` and `client`, one per testbed, and `server`, `servers` per testbed.

    Args:
        cpus: logical CPUs; this machine's cores when None.
        dashboard_port: of the dashboard on 127.0.0.1, which takes submitted jobs; None for no dashboard.
    """

    def __init__(
        self, testbeds: int = 1, servers: int = 3, cpus: int | None = None, dashboard_port: int | None = None
    ) -> None:
        self.folder, self._owner = _made_folder(_BELOW_BYTES)
        write_private(self.folder / "token", secrets.token_hex(32))
        self.environment = _environment(self.folder)
        self._watch: _Watch | None = None
        resources = {"proxy": testbeds, "client": testbeds, "server": testbeds * servers}
        # `python` in the command of a submitted job is looked up on the PATH of the head, and must be this one.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._head = ManagedProcess(
            [
                sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0",
                f"--include-dashboard={str(dashboard_port is not None).lower()}", "--dashboard-host=127.0.0.1",
                f"--dashboard-port={dashboard_port or 0}", "--dashboard-agent-listen-port=0", "--disable-usage-stats",
                # Nothing scales this head, and no driver prints its workers' lines: two processes fewer.
                "--no-monitor", "--include-log-monitor=false",
                f"--num-cpus={cpus or os.cpu_count()}", f"--resources={json.dumps(resources)}",
                f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={self.folder / _RAY}",
            ],
            name="Ray",
            log_path=self.folder / "head.log",
            env={**os.environ, **self.environment, **_PATIENCE, "PATH": path},
            # A graceful end drains for up to 30 s, but the caller has closed its actors already.
            stop_signal=signal.SIGKILL,
            remove=self.folder,
        )  # fmt: skip

    def wait_ready(self, ready: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        """Returns when the condition holds. Raises ProcessError when the head ends, or after `timeout_s`."""
        self._head.wait_ready(ready, timeout_s)

    def connect(self) -> None:
        """Waits until the head is up and makes this process its driver. Raises ProcessError."""
        address = self.folder / _RAY / _ADDRESS
        self.wait_ready(lambda: address.exists() and bool(address.read_text().strip()))
        os.environ.update(self.environment)
        os.environ.pop("RAY_ADDRESS", None)
        _take_environment()
        # Of a job that asks for a private Ray: its runtime environment exists on the job's cluster only.
        submitted = os.environ.pop(JOB_CONFIG, None)
        try:
            _connect(address.read_text().strip())
        finally:
            if submitted is not None:
                os.environ[JOB_CONFIG] = submitted

    def watch(self) -> None:
        """Ends this process with one line, from now until `close`, as soon as a process of this head is gone.

        Ray's own library would end it within a second, without a word of ours and with pages of its log (ray 2.60).
        """
        self._watch = _Watch(self._head.pid)

    def close(self) -> None:
        """Disconnects, ends every process of this Ray and removes its folder; idempotent."""
        if self._watch is not None:
            self._watch.close()
        if "ray" in sys.modules:
            import ray

            ray.shutdown()
        self._head.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._owner.close()


class _Watch:
    """A thread that waits for the end of any process of a head, on pidfds: a poll would come too late."""

    def __init__(self, head: int) -> None:
        self._names: dict[int, str] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (own := psutil.Process(head), *own.children()):
                with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                    self._names[os.pidfd_open(process.pid)] = _program(process)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._wait, name="watch-ray", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        ended, _, _ = select.select([self._stop_read, *self._names], [], [])
        if self._stop_read not in ended:
            names = ", ".join(sorted(self._names[fd] for fd in ended))
            end_now(f"deepsched: Ray's {names} ended, by a signal or for lack of memory; all was stopped", 1)

    def close(self) -> None:
        """Idempotent."""
        if self._names or self._thread.is_alive():
            os.write(self._stop_write, b"x")
            self._thread.join()
            for descriptor in (self._stop_read, self._stop_write, *self._names):
                os.close(descriptor)
            self._names = {}


def _program(process: psutil.Process) -> str:
    """The script of a Python process, or the program."""
    return Path(next((word for word in process.cmdline() if word.endswith(".py")), process.name())).stem


@contextlib.contextmanager
def ray_session(
    testbeds: int = 1, servers: int = 3, address: str | None = None, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """The Ray of this process: connected already, one that is named, that of its job, or a `LocalRay` for the block.

    Says which one was joined.

    Args:
        address: the option of `RayOptions`.
        meanwhile: called once, while a Ray of our own starts: imports, for example, which take as long.

    Raises:
        ConfigError: there is no Ray at that address, or it does not let us in.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        meanwhile()
        yield
        return
    named = named_ray(address)
    if named is None:
        with local_ray(testbeds, servers, meanwhile=meanwhile):
            yield
        return
    meanwhile()
    with connected(named.address, named.source):
        _say_joined(named)
        yield


def _say_joined(named: Named) -> None:
    import ray

    nodes = sum(node["Alive"] for node in ray.nodes())
    size = f"{nodes} nodes, {ray.cluster_resources().get('CPU', 0.0):g} CPUs"
    found = ray.get_runtime_context().gcs_address
    console_err().print(f"joined Ray at {found} ({named.source}): {size}", markup=False, soft_wrap=True)


@contextlib.contextmanager
def socket_folder(below: int) -> Iterator[Path]:
    """A private temporary folder for sockets; what a killed process leaves is removed by the next start.

    Args:
        below: bytes that the path of a socket has below it.
    """
    folder, owner = _made_folder(len(PREFIX) + 9 + below)
    with owner:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def connected(address: str, source: str = "--address") -> Iterator[None]:
    """Makes this process a driver of the Ray at that address, with the authentication of the environment.

    `auto` is the head that `ray start` left on this machine, and RAY_ADDRESS is ignored; in a job it is the job's head.

    Raises ConfigError when there is none, or it does not let us in; `source`: who named it.
    """
    _take_environment()
    here = address == AUTO and not in_job()
    # Ray would use RAY_ADDRESS in place of `auto`, and start a new Ray when that is `local` (ray 2.60).
    hidden = os.environ.pop(VARIABLE, None) if here else None
    try:
        if here:
            services = importlib.import_module("ray._private.services")
            services.find_gcs_addresses.cache_clear()
            _require_listener(services.canonicalize_bootstrap_address_or_die(AUTO))
        # Not the address that was found: Ray takes the token of ~/.ray by itself for `auto` only.
        _connect(address)
    except (OSError, RuntimeError, ValueError, _ray_error()) as error:
        what = str(error).strip().splitlines()[0]
        remedy = "for a token: export RAY_AUTH_MODE=token, with the head's own in ~/.ray/auth_token"
        raise ConfigError(f"cannot join Ray at {address}: {what}", where=source, remedy=remedy) from error
    finally:
        if hidden is not None:
            os.environ[VARIABLE] = hidden
    try:
        yield
    finally:
        sys.modules["ray"].shutdown()


@contextlib.contextmanager
def local_ray(
    testbeds: int = 1, servers: int = 3, cpus: int | None = None, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[LocalRay]:
    """A connected `LocalRay` for the block; restores the environment afterwards.

    Args:
        meanwhile: called once, while it starts.
    """
    before = dict(os.environ)
    ray = LocalRay(testbeds, servers, cpus)
    try:
        meanwhile()
        ray.connect()
        ray.watch()
        yield ray
    finally:
        ray.close()
        for name in ray.environment:
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in (*ray.environment, "RAY_ADDRESS") if name in before})


def running_heads() -> list[Path]:
    """Folders of all private heads that run on this machine now."""
    return [folder for folder in _own_folders() if _address(folder)]


@contextlib.contextmanager
def joined(folder: Path) -> Iterator[None]:
    """Makes this process another driver of the head in that folder for the block.

    Raises OSError when the head has ended.
    """
    address = _address(folder)
    _require_listener(address)
    environment = _environment(folder)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        _take_environment()
        _connect(address)
        yield
    finally:
        sys.modules["ray"].shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _address(folder: Path) -> str:
    """HOST:PORT of that head; empty when it is not ready or its owner has ended."""
    try:
        text = read_regular(folder / _RAY / _ADDRESS, 1024).decode() if _is_owned(folder) else ""
        return text.strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _require_listener(address: str) -> None:
    """Raises OSError when nothing listens there: Ray itself would wait for minutes, and then end the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConnectionError(f"no head at '{address}'")
    socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()


def _take_environment() -> None:
    """Ray reads its environment when it is imported, which may have been before now (ray 2.60)."""
    constants: Any = importlib.import_module("ray._private.ray_constants")
    constants.ENABLE_RAY_CLUSTER = os.environ.get(_BEYOND_LOOPBACK) != "0"
    raylet = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _connect(address: str) -> None:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    # RLlib explains its new API stack at every start.
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    # ray.init handles SIGTERM and would exit without any cleanup.
    claim_signals()


def _ray_error() -> type[Exception]:
    """Ray's own errors; the head's refusal of a token is one."""
    error: type[Exception] = importlib.import_module("ray.exceptions").RayError
    return error


def _environment(folder: Path) -> dict[str, str]:
    """What every process of the head in that folder needs, drivers too."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        # Its node is then 127.0.0.1, and all that listens is bound to it (docs/ray-facts.md#ports).
        _BEYOND_LOOPBACK: "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # More threads than cores make small networks many times slower (docs/ray-facts.md#threads).
        "OMP_NUM_THREADS": "1",
    }


def _made_folder(below: int) -> tuple[Path, BinaryIO]:
    """A private folder, and the file by which it counts as owned until the file is closed or this process ends."""
    sweep_stale_folders()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=socket_place(below)))
    owner = open(folder / ".owner", "wb", opener=open_private)  # noqa: SIM115 - open as long as its folder is owned
    # A sweep that met the file before it is locked would remove the folder.
    fcntl.flock(owner, fcntl.LOCK_EX)
    (folder / ".owner").rename(folder / _OWNER)
    return folder, owner


def _own_folders() -> list[Path]:
    """Folders of this user's heads; another user's, and links, are passed over: neither joined nor removed."""
    places = sorted({Path(tempfile.gettempdir()), socket_place(_BELOW_BYTES)})
    return [folder for place in places for folder in sorted(place.glob(PREFIX + "*")) if is_own_folder(folder)]


def sweep_stale_folders() -> None:
    """Removes the temporary folders of killed owners."""
    for folder in _own_folders():
        if not _is_owned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_owned(folder: Path) -> bool:
    """False when the process that created the folder has ended; a folder without the file is being created.

    The lock on the file ends with its process, whatever the namespace of process ids and whatever it was killed by.
    """
    try:
        with open(os.open(folder / _OWNER, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as owner:
            if pid := owner.read(64):
                # Version 0.1 wrote its process id and locked nothing.
                return psutil.pid_exists(int(pid))
            # Shared: two processes that ask at the same time must not see each other.
            fcntl.flock(owner, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except (OSError, ValueError):
        return True
