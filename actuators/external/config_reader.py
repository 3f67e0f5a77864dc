"""Finds the upstream groups and their `server` lines in the configuration of an external NGINX, as NGINX reads it."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from actuators.errors import ConfigError
from actuators.external.config_lexer import Directive, directives

_MOST_INCLUDES, _DEEPEST = 20_000, 64
_NOT_DIRECTIVES = (["split_clients"], ["charset_map"])
"""Blocks whose content is a table, in which NGINX does not look for `include`."""


_UPSTREAM = ["http", "upstream"]
_WEIGHT = re.compile("0*[1-9][0-9]{0,9}")
_LUA = re.compile("lua|^log_subrequest$")
_SUBREQUESTS = ("auth_request", "mirror", "ssi", "add_before_body", "add_after_body")
_PASSES = ("proxy_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "grpc_pass")
_CACHES = {f"{protocol}_cache": f"{protocol}_pass" for protocol in ("proxy", "fastcgi", "uwsgi", "scgi")}


@dataclass(frozen=True)
class ServerLine:
    """One `server` directive of an upstream block.

    Attributes:
        file: the file that holds it, links resolved.
        line: 1-based line on which the directive begins.
        start: offset of its first byte in the file.
        parameters: words after the address.
    """

    group: str
    server: str
    file: Path
    line: int
    start: int
    parameters: tuple[str, ...]

    @property
    def weight(self) -> int:
        """As in NGINX, the last `weight=` counts. Raises ConfigError when it is not a number above 0."""
        if not self.parameters:
            return 1
        value = next((p.removeprefix("weight=") for p in self.parameters[::-1] if p.startswith("weight=")), "1")
        if not _WEIGHT.fullmatch(value):
            where = f"{self.file}:{self.line}"
            raise ConfigError(f"weight '{value}' is not a number above 0", where=where, remedy="correct it")
        return int(value)

    @property
    def down(self) -> bool:
        return "down" in self.parameters


@dataclass(frozen=True)
class PassLine:
    """One directive of a location of `http` that passes requests on.

    Attributes:
        name: `proxy_pass` or another.
        target: where to, as it stands there.
        location: arguments of the innermost location around it.
        around: numbers of the blocks around it; the last location's is `place`.
        file: the file that holds it, links resolved.
        line: 1-based line on which the directive begins.
        start, end: offsets of its first byte and after its last one.
    """

    name: str
    target: str
    location: str
    place: int
    around: tuple[int, ...]
    file: Path
    line: int
    start: int
    end: int

    @property
    def host(self) -> str:
        """The upstream or the address, without scheme and path."""
        return self.target.partition("://")[2].partition("/")[0] if "://" in self.target else self.target


class NestedLocation(NamedTuple):
    """A location inside another one, from which it inherits.

    Attributes:
        outer, place: numbers of both blocks.
        name: its arguments.
        where: file:line.
    """

    outer: int
    place: int
    name: str
    where: str


class CacheLine(NamedTuple):
    """A directive such as `proxy_cache`; `passes` is the one that it belongs to, `around` as in `PassLine`."""

    passes: str
    on: bool
    around: tuple[int, ...]
    where: str


@dataclass
class UpstreamBlock:
    """One `upstream` block of `http`.

    Attributes:
        line: 1-based line on which it begins.
        start, end: offsets of its first byte and after its last one.
        settings: its directives but for `server`.
    """

    name: str
    file: Path
    line: int
    start: int
    end: int = 0
    settings: list[Directive] = field(default_factory=list)

    @property
    def lua(self) -> Directive | None:
        """By which Lua balances it; weights of its server lines have no effect then."""
        return next((each for each in self.settings if each.name.startswith("balancer_by_lua")), None)


@dataclass
class ParsedConfig:
    """A parsed configuration.

    Attributes:
        main: the main file.
        groups: names of the upstreams of `http`, in NGINX's order, and where each begins (file:line). Those of `stream`
            balance connections, not requests, and are left out.
        servers: every server line of these upstreams, in NGINX's order.
        includers: file → the files of its first, second, … include directive.
        pid_file: of the `pid` directive; None without one.
        workers: worker processes; as many as this machine has cores for `auto`.
        blocks: name → upstream block.
        passes: directives of locations that pass requests on.
        nested: locations inside others.
        caches: directives that let NGINX answer from a cache, or not.
        satisfy_any: where `satisfy any` stands (file:line).
        subrequests: directives of `http` that make subrequests, and where they stand (file:line).
        lua: directives that load modules or run Lua outside of upstream blocks, and their files.
    """

    main: Path
    groups: dict[str, str] = field(default_factory=dict)
    servers: list[ServerLine] = field(default_factory=list)
    includers: dict[Path, dict[int, tuple[Path, ...]]] = field(default_factory=dict)
    pid_file: Path | None = None
    workers: int = 1
    blocks: dict[str, UpstreamBlock] = field(default_factory=dict)
    passes: list[PassLine] = field(default_factory=list)
    nested: list[NestedLocation] = field(default_factory=list)
    caches: list[CacheLine] = field(default_factory=list)
    satisfy_any: list[str] = field(default_factory=list)
    subrequests: list[tuple[str, str]] = field(default_factory=list)
    lua: list[tuple[Directive, Path]] = field(default_factory=list)

    def group(self, name: str) -> list[ServerLine]:
        return self._by_group.get(name, [])

    def has_zone(self, name: str) -> bool:
        """Whether all workers share what they know of this group; without `zone` each counts by itself."""
        return any(setting.name == "zone" for setting in self.blocks[name].settings)

    def cache_of(self, passes: PassLine) -> str:
        """Where the cache stands that may answer requests which this directive would pass on; empty for none."""
        found = [
            each
            for each in self.caches
            if each.passes == passes.name and passes.around[: len(each.around)] == each.around
        ]
        innermost = max(found, key=lambda each: len(each.around), default=None)
        return innermost.where if innermost is not None and innermost.on else ""

    @cached_property
    def _by_group(self) -> dict[str, list[ServerLine]]:
        lines: dict[str, list[ServerLine]] = {}
        for line in self.servers:
            lines.setdefault(line.group, []).append(line)
        return lines


def read_config(main: Path, *, instead: Mapping[Path, bytes] | None = None) -> ParsedConfig:
    """Reads the main file and everything it includes.

    Args:
        instead: content of files, links resolved, in place of what is on disk.

    Raises:
        ConfigError: a file cannot be read or is not NGINX configuration.
    """
    main = main.absolute()
    reading = _Reading(ParsedConfig(main), instead or {})
    reading.file(main, (), depth=0)
    return reading.config


@dataclass
class _Reading:
    """Visits blocks and includes in the order in which NGINX reads them."""

    config: ParsedConfig
    instead: Mapping[Path, bytes]
    visits: int = 0
    group: str = ""
    opened: int = 0
    around: list[int] = field(default_factory=list)
    locations: list[tuple[int, str]] = field(default_factory=list)
    files: dict[Path, list[Directive]] = field(default_factory=dict)
    real: dict[Path, Path] = field(default_factory=dict)

    def file(self, path: Path, outer: tuple[str, ...], *, depth: int) -> None:
        """`outer`: names of the blocks around the file's content."""
        self.visits += 1
        if depth > _DEEPEST or self.visits > _MOST_INCLUDES:
            raise ConfigError("files include each other in a loop", where=str(path), remedy="see its include lines")
        blocks, included = list(outer), 0
        for directive in self._directives(path):
            if directive.mark == "}":
                if len(blocks) == len(outer):
                    raise ConfigError('unexpected "}"', where=f"{path}:{directive.line}", remedy="remove it")
                self._close(directive, blocks)
            elif directive.mark == "{":
                self._open(path, directive, blocks)
            elif directive.name == "include":
                if blocks[-1:] not in _NOT_DIRECTIVES:
                    self._include(path, included, directive, tuple(blocks), depth)
                included += 1
            else:
                self._directive(path, directive, blocks)
        if len(blocks) > len(outer):
            raise ConfigError(
                'unexpected end of file, expecting "}"', where=str(path), remedy="check it with: nginx -t"
            )

    def _open(self, path: Path, directive: Directive, blocks: list[str]) -> None:
        blocks.append(directive.name)
        self.opened += 1
        self.around.append(self.opened)
        if directive.name == "location":
            name = " ".join(directive.arguments)
            if self.locations:
                outer = self.locations[-1][0]
                self.config.nested.append(NestedLocation(outer, self.opened, name, f"{path}:{directive.line}"))
            self.locations.append((self.opened, name))
        if blocks == _UPSTREAM:
            self.group = next(iter(directive.arguments), "")
            block = UpstreamBlock(self.group, self._real(path), directive.line, directive.start)
            self.config.blocks.setdefault(self.group, block)
            self.config.groups.setdefault(self.group, f"{path}:{directive.line}")

    def _close(self, directive: Directive, blocks: list[str]) -> None:
        if blocks == _UPSTREAM:
            self.config.blocks[self.group].end = directive.end
        self.around.pop()
        if blocks.pop() == "location":
            self.locations.pop()

    def _directive(self, path: Path, directive: Directive, blocks: list[str]) -> None:
        name, words = directive.name, directive.arguments
        if blocks == _UPSTREAM:
            if name != "server":
                self.config.blocks[self.group].settings.append(directive)
            elif words:
                line = ServerLine(self.group, words[0], self._real(path), directive.line, directive.start, words[1:])
                self.config.servers.append(line)
        elif name in _PASSES and words and self.locations:
            place, location = self.locations[-1]
            span = directive.line, directive.start, directive.end
            self.config.passes.append(
                PassLine(name, words[0], location, place, tuple(self.around), self._real(path), *span)
            )
        elif name in _CACHES and words and blocks[:1] == ["http"]:
            cache = CacheLine(_CACHES[name], words != ("off",), tuple(self.around), f"{path}:{directive.line}")
            self.config.caches.append(cache)
        elif name == "satisfy" and words == ("any",):
            self.config.satisfy_any.append(f"{path}:{directive.line}")
        elif name in _SUBREQUESTS and words not in ((), ("off",)) and blocks[:1] == ["http"]:
            self.config.subrequests.append((name, f"{path}:{directive.line}"))
        elif name == "load_module" or (blocks[:1] == ["http"] and _LUA.search(name)):
            self.config.lua.append((directive, path))
        elif not blocks and words:
            self._main_directive(name, words[0])

    def _main_directive(self, name: str, value: str) -> None:
        if name == "pid":
            self.config.pid_file = Path(value)
        elif name == "worker_processes":
            self.config.workers = int(value) if value.isdecimal() else os.cpu_count() or 1

    def _real(self, path: Path) -> Path:
        """The path with links resolved, which is read from disk once."""
        return self.real.get(path) or self.real.setdefault(path, path.resolve())

    def _include(self, path: Path, index: int, directive: Directive, blocks: tuple[str, ...], depth: int) -> None:
        # Relative paths begin at the folder of the main file, in every file.
        pattern = os.path.join(self.config.main.parent, *directive.arguments[:1])
        names = sorted(glob.glob(pattern), key=os.fsencode) if glob.has_magic(pattern) else [pattern]
        files = tuple(map(Path, names))
        self.config.includers.setdefault(path, {})[index] = files
        for each in files:
            self.file(each, blocks, depth=depth + 1)

    def _directives(self, path: Path) -> list[Directive]:
        if path not in self.files:
            try:
                text = self.instead.get(path.resolve()) or path.read_bytes()
            except (OSError, ValueError, RuntimeError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise ConfigError(f"cannot be read: {reason}", where=str(path), remedy="see who may read it") from error
            self.files[path] = list(directives(text, str(path)))
        return self.files[path]
