"""Find and edit the `server` lines of upstream groups in an NGINX configuration that is not ours.

crossplane finds them, includes followed; the edit touches nothing but the weight and `down` words of
those directives, every other byte stays. Pure but for reading files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import crossplane

from actuators.errors import ActuationError, ConfigError

_BLANK = b" \t\r\n"
_MOST_INCLUDES = 20_000


@dataclass(frozen=True)
class ServerLine:
    """One `server` directive of an upstream block.

    Attributes:
        file: the file that holds it, links resolved.
        line: 1-based line on which the directive begins.
        position: how many `server` directives begin on that line before it.
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
class ForeignConfig:
    """A parsed configuration.

    Attributes:
        main: the main file.
        servers: every server line of every upstream block, in NGINX's order.
        includers: file → the include directives (line, position, included files) that it has.
        pid_file: as the configuration says; None when it does not.
    """

    main: Path
    servers: list[ServerLine] = field(default_factory=list)
    includers: dict[Path, list[tuple[int, int, tuple[Path, ...]]]] = field(default_factory=dict)
    pid_file: Path | None = None

    def group(self, name: str) -> list[ServerLine]:
        return [line for line in self.servers if line.group == name]


def read_config(main: Path) -> ForeignConfig:
    """Parses the main file and everything it includes.

    Raises ConfigError when a file cannot be read or is not NGINX configuration.
    """
    main = main.absolute()
    try:
        payload = crossplane.parse(str(main), check_ctx=False, check_args=False, strict=False)
    except (OSError, RecursionError, ValueError, crossplane.errors.NgxParserBaseException) as error:
        raise ConfigError(
            f"cannot be parsed: {error}"[:300], where=str(main), remedy="does nginx -t accept it?"
        ) from error
    if payload["errors"]:
        first = payload["errors"][0]
        raise ConfigError(str(first["error"])[:300], where=str(first["file"]), remedy="does nginx -t accept it?")
    config = ForeignConfig(main)
    _Walk(payload["config"], config).file(0, "", depth=0)
    return config


@dataclass
class _Walk:
    """Through blocks and includes, in the order in which NGINX reads them."""

    payload: list[dict[str, Any]]
    config: ForeignConfig
    visits: int = 0

    def file(self, index: int, group: str, *, depth: int) -> None:
        self.visits += 1
        if depth > 64 or self.visits > _MOST_INCLUDES:
            raise ConfigError("files include each other without end", where=self.payload[index]["file"])
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


def edit_server(text: bytes, line: ServerLine, weight: int, *, down: bool) -> bytes:
    """The file's bytes with the weight and `down` of one server directive set; all other bytes are kept.

    Raises ActuationError when the directive is not where the parser saw it.
    """
    words = find_directive(text, line.line, line.position, b"server", where=str(line.file))
    if tuple(word.text for word in words[1:]) != (line.server, *line.parameters):
        raise _moved("server", str(line.file), line.line)
    edits: list[tuple[int, int, bytes]] = []
    weights = [word for word in words[2:] if word.text.startswith("weight=")]
    if weights:
        edits = [(word.start, word.end, b"weight=%d" % weight) for word in weights]
    elif weight != 1:
        edits.append((words[1].end, words[1].end, b" weight=%d" % weight))
    downs = [word for word in words[2:] if word.text == "down"]
    if down and not downs:
        edits.append((words[-1].end, words[-1].end, b" down"))
    if not down:
        edits += [(_blank_before(text, word.start), word.end, b"") for word in downs]
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


@dataclass(frozen=True)
class Word:
    """One word of a directive: its value without quotes, and the bytes it takes, quotes included."""

    text: str
    start: int
    end: int


def find_directive(text: bytes, line: int, position: int, name: bytes, *, where: str) -> list[Word]:
    """The words of the directive of that name which begins on this line after `position` others of its name.

    Raises ActuationError when there is none.
    """
    start = _line_start(text, line)
    for words in _directives(text, start):
        if text.count(b"\n", start, words[0].start) > 0:
            break
        if words[0].text.encode(errors="surrogateescape") == name:
            if position == 0:
                return words
            position -= 1
    raise _moved(name.decode(), where, line)


def _moved(name: str, where: str, line: int) -> ActuationError:
    return ActuationError(f"'{name}' is not where it was", where=f"{where}:{line}", remedy="edit it by hand")


def _line_start(text: bytes, line: int) -> int:
    start = 0
    for _ in range(line - 1):
        start = text.find(b"\n", start) + 1
        if start == 0:
            return len(text)
    return start


def _directives(text: bytes, position: int) -> Iterator[list[Word]]:
    """Directives from `position` on, ended by `;`; whatever opens a block is passed over."""
    words: list[Word] = []
    for token, start, end in _tokens(text, position):
        if token in (b";", b"{", b"}"):
            if token == b";" and words:
                yield words
            words = []
        else:
            words.append(Word(_unquoted(token), start, end))


def _tokens(text: bytes, position: int) -> Iterator[tuple[bytes, int, int]]:
    """NGINX's lexical rules: blanks separate, # comments to the line's end, quotes and backslashes protect."""
    size = len(text)
    while position < size:
        byte = text[position : position + 1]
        if byte in _BLANK:
            position += 1
        elif byte == b"#":
            position = (text.find(b"\n", position) + 1) or size
        elif byte in b";{}":
            yield byte, position, position + 1
            position += 1
        else:
            end = _quoted_end(text, position) if byte in b"\"'" else _word_end(text, position)
            yield text[position:end], position, end
            position = end


def _quoted_end(text: bytes, start: int) -> int:
    quote, position = text[start], start + 1
    while position < len(text) and text[position] != quote:
        position += 2 if text[position : position + 1] == b"\\" else 1
    if text[position + 1 : position + 2] not in (b" ", b"\t", b"\r", b"\n", b";", b"{", b")"):
        # NGINX refuses it; crossplane and we might disagree about it.
        line = text.count(b"\n", 0, start) + 1
        raise ActuationError("a quote does not end a word", where=f"line {line}", remedy="nginx -t tells more")
    return position + 1


def _word_end(text: bytes, position: int) -> int:
    while position < len(text) and text[position : position + 1] not in _BLANK and text[position] not in b";{":
        if text[position : position + 2] == b"${":
            position = (text.find(b"}", position) + 1) or len(text)
        else:
            position += 2 if text[position : position + 1] == b"\\" else 1
    return min(position, len(text))


def _unquoted(token: bytes) -> str:
    if token[:1] in (b'"', b"'") and token[-1:] == token[:1] and len(token) > 1:
        token = token[1:-1]
    return token.decode(errors="surrogateescape")


def _blank_before(text: bytes, position: int) -> int:
    while position > 0 and text[position - 1 : position] in (b" ", b"\t"):
        position -= 1
    return position
