"""The proxies that are judged: ours with its learning, programs that others wrote, and the user's own behind a URL."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import numpy as np

from actuators.contract.control import ServiceTimes, Weights
from actuators.contract.topology import Topology
from actuators.errors import ActuationError, ConfigError, DeepSchedError, MissingToolError, closest
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.nginx.reload import Reloader
from actuators.statistics.reader import CollectOptions, Collector
from actuators.testbed.peers import PEERS, Peer, why_missing
from envs.heuristics.controllers import EstimatorController
from envs.heuristics.names import ESTIMATED

LEARNED = "expected_delay"
OURS = {
    LEARNED: "our NGINX, expected_delay with learned service times",
    "least_conn": "our NGINX, least_conn in memory",
}
_INTERVAL_S = 1.0
_COMMAND_TIMEOUT_S = 20.0


class Proxy(Protocol):
    """A running proxy. Reasons are empty where the call is possible; both calls raise ActuationError."""

    name: str
    what: str
    address: str
    without_weights: str
    without_reload: str

    def set_weights(self, weights: Sequence[int]) -> None:
        """Puts weights of the servers in force, 1…100."""
        ...

    def reload(self) -> None:
        """Makes it read its configuration again."""
        ...


def names_of(given: Sequence[str]) -> tuple[str, ...]:
    """The proxies that are started here; all that are installed when none is given.

    Raises ConfigError for an unknown name, MissingToolError for a given one that is not installed.
    """
    known = (*OURS, *PEERS)
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown proxy '{name}'", where="proxies", remedy=closest(name, known))
        if name in PEERS and (reason := why_missing(name)):
            raise MissingToolError(f"{name} cannot run here: {reason}", remedy="leave it out")
    return tuple(given) or (LEARNED, *(name for name in PEERS if not why_missing(name)))


def address_of(url: str) -> str:
    """HOST:PORT of an ``http://HOST:PORT``. Raises ConfigError for any other URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = parts = None
    if parts is None or parts.scheme != "http" or not host or parts.path not in ("", "/") or parts.query:
        raise ConfigError(f"'{url}' is not the address of a proxy", where="proxy", remedy="give http://HOST:PORT")
    return f"[{host}]:{port or 80}" if ":" in host else f"{host}:{port or 80}"


@contextlib.contextmanager
def started(name: str, topology: Topology, workers: int, work_dir: Path) -> Iterator[Proxy]:
    """A proxy of `names_of` before these servers, until the block ends."""
    if name not in OURS:
        with Peer(name, topology, work_dir) as peer:
            yield _Program(peer)
        return
    options = NginxOptions(method="least_conn", actuation="memory")
    with contextlib.ExitStack() as stack:
        nginx = Nginx(options, topology, work_dir=work_dir)
        nginx.start()
        stack.callback(nginx.close)
        if name in ESTIMATED:
            yield stack.enter_context(_Learning(name, nginx, topology, workers))
        else:
            yield _Memory(nginx, topology)


class _Program:
    """A program that others wrote, as `actuators.testbed.peers` runs it."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.name, self.address, self.what = peer.name, peer.address, PEERS[peer.name]
        self.without_weights, self.without_reload = peer.without_weights, peer.without_reload
        self.set_weights, self.reload = peer.set_weights, peer.reload


class _Memory:
    """Our NGINX with weights in memory."""

    name = "least_conn"
    without_weights = without_reload = ""

    def __init__(self, nginx: Nginx, topology: Topology) -> None:
        self._nginx, self._topology = nginx, topology
        self.address, self.what = nginx.address, OURS[self.name]

    def set_weights(self, weights: Sequence[int]) -> None:
        values = np.broadcast_to(np.asarray(weights), self._topology.shape)
        self._nginx.apply(Weights(self._topology, values))

    def reload(self) -> None:
        reloader = Reloader(self._nginx.master_pid, load_ms=None)
        reloader.wait_for_few_generations()
        reloader.reload()


class _Learning(_Memory):
    """Our NGINX with `expected_delay`, whose service times a thread learns from its statistics; a context manager.

    For `set_weights` the service times that are in force are divided by the weights.
    """

    def __init__(self, name: str, nginx: Nginx, topology: Topology, workers: int) -> None:
        super().__init__(nginx, topology)
        self.name, self.what = name, OURS[name]
        self._controller = EstimatorController(topology, ESTIMATED[name], float(workers))
        first = self._controller.begin(topology)
        assert isinstance(first, ServiceTimes)
        self._control, self._weights = first, np.ones(topology.shape[1])
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._error: DeepSchedError | None = None
        self._thread = threading.Thread(target=self._learn, name="learning", daemon=True)

    def __enter__(self) -> _Learning:
        self._nginx.balance(self._controller.method, self._control)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def set_weights(self, weights: Sequence[int]) -> None:
        with self._lock:
            self._weights = np.asarray(weights, dtype=float)
            self._apply()

    def _learn(self) -> None:
        try:
            with contextlib.closing(Collector(self._nginx.status_url, self._topology, CollectOptions())) as collector:
                collector.begin()
                while not self._ended.wait(_INTERVAL_S):
                    control = self._controller.decide(collector.window())
                    with self._lock:
                        if isinstance(control, ServiceTimes):
                            self._control = control
                        self._apply()
        except DeepSchedError as error:
            self._error = error

    def _apply(self) -> None:
        tau_s = self._control.tau_s / self._weights
        self._nginx.apply(ServiceTimes(self._topology, tau_s, self._control.workers))


class GivenProxy:
    """The user's proxy, and commands for it. Raises ConfigError for a URL or command of another form."""

    def __init__(self, url: str, weights_command: str, reload_command: str) -> None:
        self.address = address_of(url)
        self.name, self.what = self.address, f"your proxy at {url}"
        self.without_weights = "" if weights_command else "no --weights-command was given"
        self.without_reload = "" if reload_command else "no --reload-command was given"
        if weights_command and "{weights}" not in weights_command:
            raise ConfigError("no {weights} in the command", where="weights_command", remedy="say where they stand")
        self._weights_command = _words(weights_command, "weights_command")
        self._reload_command = _words(reload_command, "reload_command")

    def set_weights(self, weights: Sequence[int]) -> None:
        listed = ",".join(map(str, weights))
        _execute([word.replace("{weights}", listed) for word in self._weights_command])

    def reload(self) -> None:
        _execute(self._reload_command)


def _words(command: str, where: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"not a command: {error}", where=where, remedy="close its quotes") from error


def _execute(command: Sequence[str]) -> None:
    """Raises ActuationError with the end of its messages."""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ActuationError(f"the command failed: {error}", where=shlex.join(command)) from error
    if result.returncode:
        evidence = " | ".join(result.stderr.splitlines()[-3:])
        raise ActuationError(
            f"the command ended with {result.returncode}", where=shlex.join(command), evidence=evidence
        )


Log = Callable[[str], None]
"""Receives a line about what is measured now."""
