"""Weights of an external NGINX: its files are edited in place, tested, reloaded, confirmed, rolled back.

The rights that this needs, without root too: docs/your-nginx.md#rights.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from actuators.contract.control import Control, MemoryMethod, Weights
from actuators.contract.testbed import Applied, Restored
from actuators.contract.topology import Topology
from actuators.errors import ActuationError, ConfigError, StatusError
from actuators.external.config_control import (
    changed_files,
    config_edits,
    config_topology,
    config_weights,
    says,
    unusable,
)
from actuators.external.config_editor import ServerEdit
from actuators.external.config_lexer import directives
from actuators.external.config_reader import ParsedConfig, read_config
from actuators.external.master import master_process
from actuators.external.restoring import names_of, restoration
from actuators.files import REMEDIES
from actuators.nginx.detect import detect
from actuators.nginx.reload import Change, Reloader, put_in_force, test_config, write_atomically
from actuators.options import Options
from actuators.statistics.names import server_names
from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import Snapshot

_PENDING, _DONE = "files changed, not yet confirmed in force\n", "in force\n"
"""Contents of the lock file: the state of the last change."""
_REMEDIES = {**REMEDIES, errno.ENOTSUP: "remove its extended attributes or its ACL: they cannot be kept there"}


class ExternalNginxOptions(Options):
    """How to reach and reload an external NGINX."""

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
    """Longest wait, in seconds, while workers of two earlier configurations are still busy; earlier weights are put
    back in force without it."""


class ExternalNginx:
    """Reads and sets the weights of one NGINX; changes only `weight=` and `down` of its server lines.

    Args:
        on_step: called with the name of each step before it.

    Attributes:
        left_out: groups whose weights cannot be set, and why; only without `groups`, which name what must be usable.

    Raises:
        ConfigError: the configuration cannot be read, or has no such group, or its weights cannot be set.
        MissingToolError: there is no NGINX program to test a configuration.
    """

    def __init__(self, options: ExternalNginxOptions, *, on_step: Callable[[str], None] = lambda _: None) -> None:
        self.options, self._on_step = options, on_step
        self._build = detect(options.binary)
        config = read_config(options.config)
        self.topology = config_topology(config, options.groups)
        self.left_out = {} if options.groups else unusable(config)

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
        with self._changing():
            changed = self._set(read_config(self.options.config), control)
        return Applied(changed, time.monotonic() - began_s)

    def restore(self, first: Control, method: MemoryMethod | None = None) -> Restored:
        """Puts earlier weights in force again, also when servers or groups came, went or were renamed meanwhile.

        Servers that are not in the files any more, or whose group cannot be set now (`left_out`), are `missing` and
        stay as they are; servers that the earlier weights do not know are `added` and keep what the files say. Without
        statistics that show these weights NGINX is reloaded even when the files hold them.

        Raises ActuationError; the old files are then on disk and in force.
        """
        began_s = time.monotonic()
        if not isinstance(first, Weights):
            raise ActuationError("this NGINX takes weights, not service times", remedy="give its first weights")
        with self._changing():
            config = read_config(self.options.config)
            reasons = unusable(config)
            groups = {group.name for group in first.topology.groups}
            usable = [name for name in config.groups if name in groups and name not in reasons]
            if not usable:
                return Restored(False, time.monotonic() - began_s, missing=tuple(names_of(first.topology)))
            found = restoration(first, config_weights(config, config_topology(config, usable)))
            assert isinstance(found.control, Weights)
            changed = self._set(config, found.control, restoring=True)
        return Restored(changed, time.monotonic() - began_s, found.restored, found.missing, found.added)

    def _set(self, config: ParsedConfig, control: Weights, *, restoring: bool = False) -> bool:
        """Whether the files had to change or to be loaded. The lock is held."""
        edits = config_edits(config, control, self._originals(config) or config)
        changes = changed_files(edits)
        # An actuator that was killed may have left new files that were never loaded, and so may somebody who has put
        # the first ones back by hand.
        needed = bool(changes) or self._lock_path.read_text() == _PENDING
        needed = needed or (restoring and not self._shows(edits, control.topology))
        if needed:
            self._put_in_force(config, changes, edits, control, patient=not restoring)
        return needed

    def _put_in_force(
        self, config: ParsedConfig, changes: Mapping[Path, Change], edits: Sequence[ServerEdit], control: Weights,
        *, patient: bool,
    ) -> None:  # fmt: skip
        _check_links(changes)
        self._remove_leftovers(changes)
        self._on_step("test")
        self._test(config, changes, edits, control)
        self._on_step("keep originals")
        self._keep_originals(changes)
        self._await_turn()
        put_in_force(
            changes,
            self._reloader(config),
            confirm=lambda: self._confirm(edits, control.topology),
            patient=patient,
            on_step=self._on_step,
        )
        self._on_step("done")
        self._lock_path.write_text(_DONE)

    def _remove_leftovers(self, changes: Mapping[Path, Change]) -> None:
        """Removes temporary files of killed processes. The lock is held, so that no other process uses them."""
        for folder in {self.options.config.absolute().parent, *(path.parent for path in changes)}:
            for pattern in (".*.deepsched", ".*.deepsched-test"):
                for leftover in folder.glob(pattern):
                    leftover.unlink(missing_ok=True)

    def _test(
        self, config: ParsedConfig, changes: Mapping[Path, Change], edits: Sequence[ServerEdit], control: Weights
    ) -> None:
        """Runs `nginx -t` on copies beside the originals, and checks that the copies hold the wanted weights."""
        copies: dict[Path, Path] = {}
        try:
            main = _copy(config.main, config, changes, copies)
            command = self.options.test_command or (str(self._build.binary), "-t", "-q", "-c")
            test_config([*command, str(main)])
            if not says(read_config(main), control, edits):
                remedy = "write the server lines in a simpler form"
                raise ActuationError(
                    "the edited files do not hold these weights", where=str(config.main), remedy=remedy
                )
        finally:
            for copy in copies.values():
                copy.unlink(missing_ok=True)

    def _keep_originals(self, changes: Mapping[Path, Change]) -> None:
        for path, change in changes.items():
            backup = _backup(path)
            if not backup.exists():
                write_atomically(backup, change.old)

    def _originals(self, config: ParsedConfig) -> ParsedConfig | None:
        """The configuration with the files as they were before any edit; None where there was none."""
        backups = {path: _backup(path) for path in dict.fromkeys(line.file for line in config.servers)}
        kept = {path: backup.read_bytes() for path, backup in backups.items() if backup.exists()}
        if not kept:
            return None
        try:
            return read_config(config.main, instead=kept)
        except ConfigError:
            return None  # they include what is no longer there; weights are then written as numbers

    def _reloader(self, config: ParsedConfig) -> Reloader:
        options = self.options
        return Reloader(
            master_process(options.pid_file or config.pid_file or Path("/run/nginx.pid"), options.config).pid,
            load_ms=self._load_ms if options.status_url else None,
            command=options.reload_command,
            timeout_s=options.reload_timeout_s,
            drain_timeout_s=options.drain_timeout_s,
        )

    def _load_ms(self) -> int:
        with StatusReader(self.options.status_url) as reader:
            return reader.snapshot().load_ms

    def _confirm(self, edits: Sequence[ServerEdit], topology: Topology) -> None:
        """Compares with the statistics, if there are any that answer."""
        if (snapshot := self._snapshot()) is not None:
            confirm_weights(edits, topology, snapshot, where=self.options.status_url)

    def _shows(self, edits: Sequence[ServerEdit], topology: Topology) -> bool:
        """Whether the statistics show that these are in force: somebody may have written files and not loaded them."""
        if (snapshot := self._snapshot()) is None:
            return False
        try:
            confirm_weights(edits, topology, snapshot, where=self.options.status_url)
        except (ActuationError, StatusError):
            return False
        return True

    def _snapshot(self) -> Snapshot | None:
        """None without statistics, or when they do not answer."""
        if not self.options.status_url:
            return None
        try:
            with StatusReader(self.options.status_url) as reader:
                return reader.snapshot()
        except StatusError:
            return None

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Holds the lock; raises ActuationError for files that cannot be read or written."""
        try:
            with self._locked():
                yield
        except OSError as error:
            where = str(error.filename or self.options.config)
            remedy = _REMEDIES.get(error.errno or 0, "run as root, or as the owner of the configuration")
            raise ActuationError(f"{error.strerror or error}", where=where, remedy=remedy) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock that keeps two processes from changing the files at once; it ends with its process."""
        _check_links([self.options.config])
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
        # Beside the file itself, so that all links to it have one lock.
        return _lock(self.options.config.resolve())

    def _await_turn(self) -> None:
        """Waits for the least interval between reloads: the lock file has the time of the last one."""
        if self._lock_path.read_text():
            rest_s = self._lock_path.stat().st_mtime + self.options.min_reload_interval_s - time.time()
            if 0 < rest_s <= self.options.min_reload_interval_s:
                select.select([], [], [], rest_s)
        self._lock_path.write_text(_PENDING)


def confirm_weights(edits: Sequence[ServerEdit], topology: Topology, snapshot: Snapshot, *, where: str) -> None:
    """Compares the weights that the files now have with those in the statistics of an NGINX.

    The statistics show a host name as each of its addresses; all of them are compared. Entries that two lines of a
    group share, and lines that the statistics do not show, are skipped.

    Args:
        where: of the statistics, for errors.

    Raises:
        StatusError: a group is missing.
        ActuationError: a weight is different.
    """
    names = server_names(topology, snapshot)
    owners = Counter((group, entry) for (group, _), entries in names.entries.items() for entry in entries)
    wanted = {(edit.line.group, edit.line.server): edit.weight for edit in edits}
    for (name, server), entries in names.entries.items():
        shown = names.groups[name]
        if shown not in snapshot.groups:
            raise StatusError(f"the statistics have no group {name}", where=where)
        for entry in entries:
            counters, alone = snapshot.groups[shown][entry], owners[name, entry] == 1
            if alone and (shown, entry) not in snapshot.duplicates and counters.weight != wanted[name, server]:
                raise ActuationError(f"{entry} has weight {counters.weight} in {name}", where=where)


def _check_links(paths: Iterable[Path]) -> None:
    """Raises ActuationError for a file with several hard links, which replacing would part, and OSError."""
    for path in paths:
        if (links := path.stat().st_nlink) > 1:
            raise ActuationError(
                f"the file has {links} hard links, which a change would part from each other", where=str(path),
                remedy="make it a file of its own, or a symbolic link",
            )  # fmt: skip


def _copy(path: Path, config: ParsedConfig, changes: Mapping[Path, Change], copies: dict[Path, Path]) -> Path:
    """The path itself when neither the file nor its includes change, else that of a copy that includes copies."""
    if path in copies:
        return copies[path]
    change = changes.get(path.resolve())
    text = change.new if change else path.read_bytes()
    edited = change is not None or path == config.main
    includes = [each for each in directives(text, str(path)) if each.name == "include"]
    for index, files in sorted(config.includers.get(path, {}).items(), reverse=True):
        replaced = [_copy(file, config, changes, copies) for file in files]
        if replaced != list(files):
            words = includes[index].words
            new = " ".join(f'include "{file}";' for file in replaced).encode(errors="surrogateescape")
            text = text[: words[0].start] + new.removesuffix(b";") + text[words[-1].end :]
            edited = True
    if not edited:
        return path
    copy = path.with_name(f".{path.name}.{os.getpid()}.deepsched-test")
    copies[path] = copy
    write_atomically(copy, text)
    return copy


def _backup(path: Path) -> Path:
    """Where a file is kept as it was before the first edit."""
    return path.with_name(f".{path.name}.deepsched-original")


def left_beside(path: Path) -> tuple[Path, Path]:
    """Files that a change of weights leaves beside a file of the configuration: a lock and its first content."""
    return _lock(path), _backup(path)


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.deepsched-lock")
