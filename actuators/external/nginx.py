"""Weights of an NGINX that somebody else runs: its files are edited in place, tested, reloaded, confirmed, rolled back.

The rights that this needs, without root too: docs/your-nginx.md#rights.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from pydantic import Field

from actuators.contract.control import MAX_WEIGHT, Control, Weights
from actuators.contract.testbed import Applied
from actuators.contract.topology import Group, Topology
from actuators.errors import ActuationError, ConfigError, StatusError, closest
from actuators.external.config_editor import ServerEdit, edit_file, find_directive
from actuators.external.config_reader import ParsedConfig, read_config
from actuators.nginx.detect import detect
from actuators.nginx.reload import Change, Reloader, put_in_force, test_config, write_atomically
from actuators.options import Options
from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import ServerCounters

_PENDING, _DONE = "files changed, not yet confirmed in force\n", "in force\n"
"""Contents of the lock file: the state of the last change."""


class ExternalNginxOptions(Options):
    """How to reach and reload an NGINX that somebody else runs."""

    config: Path = Path("/etc/nginx/nginx.conf")
    """Its main configuration file."""
    groups: tuple[str, ...] = ()
    """Upstreams whose weights may be set; all upstreams when empty."""
    status_url: str = ""
    """Its vts JSON, to confirm what is in force; without it, new workers are the only evidence."""
    binary: str = "nginx"
    """NGINX program that tests the configuration, by name or path."""
    pid_file: Path | None = None
    """File with the master's process id; by default the one in the configuration, else /run/nginx.pid."""
    test_command: tuple[str, ...] = ()
    """Command that tests the configuration whose path is appended, as sudo,-n,nginx,-t,-q,-c; by default `binary`."""
    reload_command: tuple[str, ...] = ()
    """Command that reloads NGINX, as sudo,-n,nginx,-s,reload; its master process is signalled when not given."""
    min_reload_interval_s: float = Field(1.0, ge=0)
    """Least seconds between two reloads, of all processes together."""
    lock_timeout_s: float = Field(5.0, ge=0)
    """Longest wait, in seconds, for another process that changes the same NGINX."""
    reload_timeout_s: float = Field(5.0, gt=0)
    """Seconds until a new configuration must be in force."""
    drain_timeout_s: float = Field(60.0, gt=0)
    """Longest wait, in seconds, while workers of two earlier configurations are still busy."""


class ExternalNginx:
    """Reads and sets the weights of one NGINX; changes only `weight=` and `down` of its server lines.

    Args:
        on_step: called with the name of each step before it.

    Raises:
        ConfigError: the configuration cannot be read, or has no such group.
        MissingToolError: there is no NGINX program to test a configuration.
    """

    def __init__(self, options: ExternalNginxOptions, *, on_step: Callable[[str], None] = lambda _: None) -> None:
        self.options, self._on_step = options, on_step
        self._build = detect(options.binary)
        self.topology = config_topology(read_config(options.config), options.groups)

    def control(self) -> Weights:
        """The weights in the files. Raises ConfigError."""
        return config_weights(read_config(self.options.config), self.topology)

    def apply(self, control: Control) -> Applied:
        """Edits, tests, reloads, and returns when the weights are in force; the same weights do nothing.

        Raises ActuationError; the old files are then on disk and in force.
        """
        began_s = time.monotonic()
        if not isinstance(control, Weights) or control.topology != self.topology:
            raise ActuationError("this NGINX takes weights of its own groups only", remedy="use its topology")
        try:
            with self._locked():
                config = read_config(self.options.config)
                changes = config_changes(config, control)
                # An actuator that was killed may have left new files that were never loaded.
                needed = bool(changes) or self._lock_path.read_text() == _PENDING
                if needed:
                    self._put_in_force(config, changes, control)
        except OSError as error:
            remedy = "run as root, or as the owner of the configuration"
            raise ActuationError(f"{error.strerror}", where=str(error.filename), remedy=remedy) from error
        return Applied(needed, time.monotonic() - began_s)

    def _put_in_force(self, config: ParsedConfig, changes: Mapping[Path, Change], control: Weights) -> None:
        self._remove_leftovers(changes)
        self._on_step("test")
        self._test(config, changes, control)
        self._on_step("keep originals")
        self._keep_originals(changes)
        self._await_turn()
        put_in_force(changes, self._reloader(config), confirm=lambda: self._confirm(control), on_step=self._on_step)
        self._on_step("done")
        self._lock_path.write_text(_DONE)

    def _remove_leftovers(self, changes: Mapping[Path, Change]) -> None:
        """Removes temporary files of killed processes. The lock is held, so that no other process uses them."""
        for folder in {self.options.config.absolute().parent, *(path.parent for path in changes)}:
            for pattern in (".*.deepsched", ".*.deepsched-test"):
                for leftover in folder.glob(pattern):
                    leftover.unlink(missing_ok=True)

    def _test(self, config: ParsedConfig, changes: Mapping[Path, Change], control: Weights) -> None:
        """Runs `nginx -t` on copies beside the originals, and checks that the copies hold the wanted weights."""
        copies: dict[Path, Path] = {}
        try:
            main = _copy(config.main, config, changes, copies)
            command = self.options.test_command or (str(self._build.binary), "-t", "-q", "-c")
            test_config([*command, str(main)])
            if config_weights(read_config(main), self.topology) != control:
                remedy = "write the server lines in a simpler form"
                raise ActuationError(
                    "the edited files do not hold these weights", where=str(config.main), remedy=remedy
                )
        finally:
            for copy in copies.values():
                copy.unlink(missing_ok=True)

    def _keep_originals(self, changes: Mapping[Path, Change]) -> None:
        for path, change in changes.items():
            backup = path.with_name(f".{path.name}.deepsched-original")
            if not backup.exists():
                write_atomically(backup, change.old)

    def _reloader(self, config: ParsedConfig) -> Reloader:
        options = self.options
        return Reloader(
            _master_pid(options.pid_file or config.pid_file or Path("/run/nginx.pid")),
            load_ms=self._load_ms if options.status_url else None,
            command=options.reload_command,
            timeout_s=options.reload_timeout_s,
            drain_timeout_s=options.drain_timeout_s,
        )

    def _load_ms(self) -> int:
        with StatusReader(self.options.status_url) as reader:
            return reader.snapshot().load_ms

    def _confirm(self, control: Weights) -> None:
        """Compares with the statistics, if there are any."""
        if not self.options.status_url:
            return
        with StatusReader(self.options.status_url) as reader:
            confirm_weights(control, reader.snapshot().groups, where=self.options.status_url)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock that keeps two processes from changing the files at once; it ends with its process."""
        with open(self._lock_path, "a") as lock:
            deadline = time.monotonic() + self.options.lock_timeout_s
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        where, remedy = str(self._lock_path), "wait for it, or end it"
                        raise ActuationError(
                            "another process is changing this NGINX", where=where, remedy=remedy
                        ) from None
                    select.select([], [], [], 0.02)
            yield

    @property
    def _lock_path(self) -> Path:
        config = self.options.config.absolute()
        return config.with_name(f".{config.name}.deepsched-lock")

    def _await_turn(self) -> None:
        """Waits for the least interval between reloads: the lock file has the time of the last one."""
        if self._lock_path.read_text():
            rest_s = self._lock_path.stat().st_mtime + self.options.min_reload_interval_s - time.time()
            if 0 < rest_s <= self.options.min_reload_interval_s:
                select.select([], [], [], rest_s)
        self._lock_path.write_text(_PENDING)


def confirm_weights(control: Weights, groups: Mapping[str, Mapping[str, ServerCounters]], *, where: str) -> None:
    """Compares the weights of a control with those in the statistics of an NGINX.

    The statistics show a host name as each of its addresses; all of them are compared. Entries that two lines of a
    group share, and lines that the statistics do not show, are skipped.

    Args:
        groups: group → server as the statistics show it → counters, as `Snapshot.groups`.
        where: of the statistics, for errors.

    Raises:
        StatusError: a group is missing.
        ActuationError: a weight is different.
    """
    for g, group in enumerate(control.topology.groups):
        if group.name not in groups:
            raise StatusError(f"the statistics have no group {group.name}", where=where)
        names = {server: _shown_as(server) for server in group.servers}
        for server, own in names.items():
            others = set[str]().union(*(shown for other, shown in names.items() if other != server))
            wanted = control.values[g, control.topology.server_index(server)]
            for name in sorted(own - others):
                counters = groups[group.name].get(name)
                if counters is not None and counters.weight != wanted:
                    raise ActuationError(f"{name} has weight {counters.weight} in {group.name}", where=where)


def config_topology(config: ParsedConfig, wanted: tuple[str, ...]) -> Topology:
    """The groups of those names, or all groups.

    Raises ConfigError when there is none, or a server is listed twice in one.
    """
    names = tuple(dict.fromkeys(line.group for line in config.servers))
    if not names:
        raise ConfigError("no upstream with a server", where=str(config.main), remedy="name the right configuration")
    for name in wanted:
        if name not in names:
            raise ConfigError(f"unknown group '{name}'", where=str(config.main), remedy=closest(name, names))
    for name in wanted or names:
        servers = [line.server for line in config.group(name)]
        twice = next((line for line in config.group(name) if servers.count(line.server) > 1), None)
        if twice is not None:
            remedy = "list it once, or name the groups to change: --set reload.groups=A,B"
            raise ConfigError(
                f"{twice.server} is listed twice in {name}", where=f"{twice.file}:{twice.line}", remedy=remedy
            )
    return Topology(
        tuple(
            Group(name, name, "GET", "/", 2.0, tuple(line.server for line in config.group(name)))
            for name in wanted or names
        )
    )


def config_weights(config: ParsedConfig, topology: Topology) -> Weights:
    """The weights in the files, at most MAX_WEIGHT. Raises ConfigError when the servers have changed."""
    _check_servers(config, topology)
    values, down = np.zeros(topology.shape, np.int64), np.zeros(topology.shape, bool)
    for g, group in enumerate(topology.groups):
        for line in config.group(group.name):
            s = topology.server_index(line.server)
            values[g, s], down[g, s] = line.weight, line.down
    return Weights(topology, _scaled(values), down)


def _scaled(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Scales groups with a weight above 100 down to it."""
    largest = values.max(axis=1, keepdims=True)
    scaled = np.maximum(np.rint(values * MAX_WEIGHT / np.maximum(largest, 1)), 1)
    return np.where(largest > MAX_WEIGHT, scaled, values).astype(np.int64)


def config_changes(config: ParsedConfig, control: Weights) -> dict[Path, Change]:
    """The files that must change, old and new bytes. Raises ActuationError, ConfigError."""
    topology = control.topology
    _check_servers(config, topology)
    wanted: dict[tuple[Path, int, int], ServerEdit] = {}
    for g, group in enumerate(topology.groups):
        for line in config.group(group.name):
            s = topology.server_index(line.server)
            place = (line.file, line.line, line.position)
            edit = ServerEdit(line, int(control.values[g, s]), bool(control.down[g, s]))
            same = wanted.setdefault(place, edit)
            if (same.weight, same.down) != (edit.weight, edit.down):
                remedy = "give both the same weight, or each group its own lines"
                raise ActuationError("two groups share this line", where=f"{line.file}:{line.line}", remedy=remedy)
    changes: dict[Path, Change] = {}
    for path in dict.fromkeys(edit.line.file for edit in wanted.values()):
        old = path.read_bytes()
        new = edit_file(old, [edit for edit in wanted.values() if edit.line.file == path])
        if new != old:
            changes[path] = Change(old, new)
    return changes


def _check_servers(config: ParsedConfig, topology: Topology) -> None:
    for group in topology.groups:
        if tuple(line.server for line in config.group(group.name)) != group.servers:
            raise ConfigError(f"the servers of {group.name} have changed", where=str(config.main), remedy="start again")


def _copy(path: Path, config: ParsedConfig, changes: Mapping[Path, Change], copies: dict[Path, Path]) -> Path:
    """The path itself when neither the file nor its includes change, else that of a copy that includes copies."""
    if path in copies:
        return copies[path]
    change = changes.get(path.resolve())
    text = change.new if change else path.read_bytes()
    edited = change is not None or path == config.main
    for line, position, files in sorted(config.includers.get(path, []), reverse=True):
        replaced = [_copy(file, config, changes, copies) for file in files]
        if replaced != list(files):
            words = find_directive(text, line, position, b"include", where=str(path))
            new = " ".join(f'include "{file}";' for file in replaced).encode(errors="surrogateescape")
            text = text[: words[0].start] + new.removesuffix(b";") + text[words[-1].end :]
            edited = True
    if not edited:
        return path
    copy = path.with_name(f".{path.name}.{os.getpid()}.deepsched-test")
    copies[path] = copy
    write_atomically(copy, text)
    return copy


def _master_pid(pid_file: Path) -> int:
    try:
        pid = int(pid_file.read_text())
        title = " ".join(psutil.Process(pid).cmdline())
    except (OSError, ValueError, psutil.Error) as error:
        raise ActuationError("NGINX is not running", where=str(pid_file), remedy="start it, or set pid_file") from error
    if "nginx" not in title:
        raise ActuationError(f"process {pid} is not an NGINX", where=str(pid_file), remedy="set pid_file")
    return pid


def _shown_as(server: str) -> set[str]:
    """The names under which vts may show a server line: as written, with its port, and by its addresses."""
    if server.startswith("unix:"):
        return {server}
    host, colon, port = server.rpartition(":")
    if not colon or server.endswith("]"):
        host, port = server, "80"
    try:
        resolved = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        resolved = []  # NGINX resolved it when it started; it has no address now
    addresses = {str(address[0]) for *_, address in resolved}
    return {server, f"{host}:{port}", *(f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in addresses)}
