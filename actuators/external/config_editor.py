"""Edits the weights of `server` lines in the bytes of an NGINX configuration; every other byte stays.

The lines are found by NGINX's lexical rules. Then crossplane parses the result: an edit is refused when crossplane sees
any other change, because then the two parsers disagree about the text. Pure functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actuators.errors import ActuationError, ConfigError
from actuators.external.config_reader import ServerLine, read_directives

_BLANK = b" \t\r\n"


@dataclass(frozen=True)
class ServerEdit:
    """The new weight and `down` of one server line."""

    line: ServerLine
    weight: int
    down: bool


def edit_file(text: bytes, edits: Sequence[ServerEdit]) -> bytes:
    """The file's bytes with these server lines changed. Raises ActuationError, ConfigError."""
    new = text
    # From the end, so that an edit does not move the lines and positions of those still to come.
    for edit in sorted(edits, key=lambda edit: (edit.line.line, edit.line.position), reverse=True):
        new = _edit_server(new, edit)
    if new != text:
        _check(text, new, edits)
    return new


def _edit_server(text: bytes, edit: ServerEdit) -> bytes:
    line, weight = edit.line, edit.weight
    words = find_directive(text, line.line, line.position, b"server", where=str(line.file))
    if tuple(word.text for word in words[1:]) != (line.server, *line.parameters):
        raise _moved("server", str(line.file), line.line)
    changes: list[tuple[int, int, bytes]] = []
    weights = [word for word in words[2:] if word.text.startswith("weight=")]
    if weights:
        changes = [(word.start, word.end, b"weight=%d" % weight) for word in weights]
    elif weight != 1:
        changes.append((words[1].end, words[1].end, b" weight=%d" % weight))
    downs = [word for word in words[2:] if word.text == "down"]
    if edit.down and not downs:
        changes.append((words[-1].end, words[-1].end, b" down"))
    if not edit.down:
        changes += [(_blank_before(text, word.start), word.end, b"") for word in downs]
    for start, end, new in sorted(changes, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _check(old: bytes, new: bytes, edits: Sequence[ServerEdit]) -> None:
    """Raises ActuationError unless crossplane sees exactly the wanted changes, comments included."""
    wanted = {(edit.line.line, edit.line.position): edit for edit in edits}
    places = ", ".join(f"{edit.line.file}:{edit.line.line}" for edit in edits[:3])
    try:
        expected, changed = _directives_of(old, wanted)
        seen, _ = _directives_of(new, {})
        same = changed == len(wanted) and expected == seen
    except (ConfigError, RecursionError):
        same = False
    if not same:
        remedy = "write its server lines in a simpler form"
        raise ActuationError("an edit would change more than weights", where=places, remedy=remedy)


def _directives_of(text: bytes, wanted: dict[tuple[int, int], ServerEdit]) -> tuple[list[Any], int]:
    """The text as nested lists of words with the wanted edits applied, and the number of edits."""
    with tempfile.NamedTemporaryFile(prefix="deepsched-edit-") as file:
        file.write(text)
        file.flush()
        reading = _Reading(wanted)
        return reading.block(read_directives(Path(file.name))), reading.made


@dataclass
class _Reading:
    """Visits the blocks of one file and counts `server` directives per line, as `ServerLine.position` does."""

    wanted: dict[tuple[int, int], ServerEdit]
    made: int = 0
    seen: dict[int, int] = field(default_factory=dict)

    def block(self, block: Sequence[dict[str, Any]]) -> list[Any]:
        return [self._directive(directive) for directive in block]

    def _directive(self, directive: dict[str, Any]) -> list[Any]:
        name, words, line = directive["directive"], list(directive["args"]), directive["line"]
        if "block" in directive:
            return [name, *words, self.block(directive["block"])]
        if name == "server":
            position = self.seen.get(line, 0)
            self.seen[line] = position + 1
            if edit := self.wanted.get((line, position)):
                self.made += 1
                words = _edited(words, edit)
        return [name, *words, directive.get("comment")]


def _edited(words: Sequence[str], edit: ServerEdit) -> list[str]:
    """As `_edit_server`, for the words after the directive's name."""
    kept = [word for word in words if edit.down or word != "down"]
    new = [f"weight={edit.weight}" if word.startswith("weight=") else word for word in kept]
    if edit.weight != 1 and not any(word.startswith("weight=") for word in kept):
        new.insert(1, f"weight={edit.weight}")
    return [*new, "down"] if edit.down and "down" not in new else new


@dataclass(frozen=True)
class Word:
    """One word of a directive: its text without quotes, and its range of bytes, quotes included."""

    text: str
    start: int
    end: int


def find_directive(text: bytes, line: int, position: int, name: bytes, *, where: str) -> list[Word]:
    """The words of one directive: the one that begins on this line after `position` others of the same name.

    Args:
        line: 1-based.
        where: the file, for errors.

    Raises:
        ActuationError: there is no such directive.
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
    return ActuationError(f"'{name}' is no longer at this place", where=f"{where}:{line}", remedy="try again")


def _line_start(text: bytes, line: int) -> int:
    start = 0
    for _ in range(line - 1):
        start = text.find(b"\n", start) + 1
        if start == 0:
            return len(text)
    return start


def _directives(text: bytes, position: int) -> Iterator[list[Word]]:
    """Directives from `position` on that end with `;`; directives that open a block are skipped."""
    words: list[Word] = []
    for token, start, end in _tokens(text, position):
        if token in (b";", b"{", b"}"):
            if token == b";" and words:
                yield words
            words = []
        else:
            words.append(Word(_unquoted(token), start, end))


def _tokens(text: bytes, position: int) -> Iterator[tuple[bytes, int, int]]:
    """Tokens by NGINX's lexical rules: blanks separate, # begins a comment, quotes and backslashes protect."""
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
