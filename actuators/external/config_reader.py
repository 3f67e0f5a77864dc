"""Finds the `server` lines of upstream groups in the configuration of an external NGINX; crossplane parses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import crossplane

from actuators.errors import ConfigError

_MOST_INCLUDES = 20_000


@dataclass(frozen=True)
class ServerLine:
    """One `server` directive of an upstream block.

    Attributes:
        file: the file that holds it, links resolved.
        line: 1-based line on which the directive begins.
        position: number of `server` directives that begin on that line before it.
        parameters: words after the address.
    """

    group: str
    server: str
    file: Path
    line: int
    position: int
    parameters: tuple[str, ...]

    @property
    def weight(self) -> int:
        value = next((p.removeprefix("weight=") for p in self.parameters if p.startswith("weight=")), "1")
        if not value.isdecimal():
            raise ConfigError(f"weight '{value}' is not a number", where=f"{self.file}:{self.line}")
        return int(value)

    @property
    def down(self) -> bool:
        return "down" in self.parameters


@dataclass
class ParsedConfig:
    """A parsed configuration.

    Attributes:
        main: the main file.
        servers: every server line of every upstream block, in NGINX's order.
        includers: file → its include directives (line, position, included files).
        pid_file: of the `pid` directive; None without one.
    """

    main: Path
    servers: list[ServerLine] = field(default_factory=list)
    includers: dict[Path, list[tuple[int, int, tuple[Path, ...]]]] = field(default_factory=dict)
    pid_file: Path | None = None

    def group(self, name: str) -> list[ServerLine]:
        return [line for line in self.servers if line.group == name]


def read_config(main: Path) -> ParsedConfig:
    """Parses the main file and everything it includes.

    Raises ConfigError when a file cannot be read or is not NGINX configuration.
    """
    main = main.absolute()
    config = ParsedConfig(main)
    _Walk(_parse(main), config).file(0, "", depth=0)
    return config


def read_directives(path: Path) -> list[dict[str, Any]]:
    """The directives of one file as crossplane returns them, with comments; includes are not followed.

    Raises ConfigError as `read_config` does.
    """
    parsed: list[dict[str, Any]] = _parse(path, single=True, comments=True)[0]["parsed"]
    return parsed


def _parse(path: Path, **how: bool) -> Sequence[dict[str, Any]]:
    """The files that crossplane has parsed; the first one is `path`."""
    try:
        payload = crossplane.parse(str(path), check_ctx=False, check_args=False, strict=False, **how)
    except (OSError, RecursionError, ValueError, crossplane.errors.NgxParserBaseException) as error:
        raise ConfigError(
            f"cannot be parsed: {error}"[:300], where=str(path), remedy="does nginx -t accept it?"
        ) from error
    if payload["errors"]:
        first = payload["errors"][0]
        raise ConfigError(str(first["error"])[:300], where=str(first["file"]), remedy="does nginx -t accept it?")
    files: list[dict[str, Any]] = payload["config"]
    return files


@dataclass
class _Walk:
    """Visits blocks and includes in the order in which NGINX reads them."""

    payload: Sequence[dict[str, Any]]
    config: ParsedConfig
    visits: int = 0

    def file(self, index: int, group: str, *, depth: int) -> None:
        self.visits += 1
        if depth > 64 or self.visits > _MOST_INCLUDES:
            raise ConfigError("files include each other in a loop", where=self.payload[index]["file"])
        self._block(index, self.payload[index]["parsed"], group, {}, depth=depth)

    def _block(
        self, index: int, block: list[dict[str, Any]], group: str, seen: dict[tuple[str, int], int], *, depth: int
    ) -> None:
        path = Path(self.payload[index]["file"])
        for directive in block:
            name, arguments, line = directive["directive"], directive["args"], directive["line"]
            if "block" in directive:
                inner = arguments[0] if name == "upstream" and arguments else ""
                self._block(index, directive["block"], inner, seen, depth=depth)
                continue
            position = seen.get((name, line), 0)
            seen[name, line] = position + 1
            if name == "server" and group and arguments:
                words = tuple(arguments)
                self.config.servers.append(ServerLine(group, words[0], path.resolve(), line, position, words[1:]))
            elif name == "pid" and arguments:
                self.config.pid_file = Path(arguments[0])
            elif name == "include":
                included = directive.get("includes", [])
                files = tuple(Path(self.payload[each]["file"]) for each in included)
                self.config.includers.setdefault(path, []).append((line, position, files))
                for each in included:
                    self.file(each, group, depth=depth + 1)
