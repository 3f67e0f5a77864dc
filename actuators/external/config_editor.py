"""Edits the weights of `server` lines in the bytes of an NGINX configuration; every other byte stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from actuators.errors import ActuationError
from actuators.external.config_lexer import Directive, directives
from actuators.external.config_reader import ServerLine


@dataclass(frozen=True)
class ServerEdit:
    """The new weight and `down` of one server line.

    Attributes:
        bare: a weight of 1 is expressed by no `weight=`.
    """

    line: ServerLine
    weight: int
    down: bool
    bare: bool = False


def edit_file(text: bytes, edits: Sequence[ServerEdit]) -> bytes:
    """The file's bytes with these server lines changed. Raises ActuationError, ConfigError."""
    pieces, position = [], 0
    for start, end, new in sorted(change for edit in edits for change in _changes(text, edit)):
        pieces += [text[position:start], new]
        position = end
    edited = b"".join([*pieces, text[position:]])
    if edited != text:
        _check(text, edited, edits)
    return edited


def _changes(text: bytes, edit: ServerEdit) -> list[tuple[int, int, bytes]]:
    """Ranges of bytes and what replaces them."""
    words = _server_at(text, edit.line).words
    weights = [word for word in words[2:] if word.text.startswith("weight=")]
    downs = [word for word in words[2:] if word.text == "down"]
    changes: list[tuple[int, int, bytes]] = []
    if edit.bare and edit.weight == 1:
        changes += [(_blank_before(text, word.start), word.end, b"") for word in weights]
    elif edit.weight != edit.line.weight:
        # The last one counts.
        start, end, space = (weights[-1].start, weights[-1].end, b"") if weights else (words[1].end, words[1].end, b" ")
        changes.append((start, end, space + b"weight=%d" % edit.weight))
    if edit.down and not downs:
        changes.append((words[-1].end, words[-1].end, b" down"))
    if not edit.down:
        changes += [(_blank_before(text, word.start), word.end, b"") for word in downs]
    return changes


def _server_at(text: bytes, line: ServerLine) -> Directive:
    found = next(directives(text, str(line.file), line.start), None)
    if found is None or found.start != line.start or found.name != "server":
        raise _moved(line)
    if found.arguments != (line.server, *line.parameters):
        raise _moved(line)
    return found


def _moved(line: ServerLine) -> ActuationError:
    where = f"{line.file}:{line.line}"
    return ActuationError("the server line has moved", where=where, remedy="try again")


def _check(old: bytes, new: bytes, edits: Sequence[ServerEdit]) -> None:
    """Raises ActuationError unless the new text has exactly the wanted changes."""
    wanted = {edit.line.start: edit for edit in edits}
    file = str(edits[0].line.file)
    before, after = list(directives(old, file)), list(directives(new, file))
    same = len(before) == len(after) and all(map(partial(_as_wanted, wanted), before, after))
    if not same:
        places = ", ".join(f"{file}:{edit.line.line}" for edit in edits[:3])
        remedy = "write its server lines in a simpler form"
        raise ActuationError("an edit would change more than weights", where=places, remedy=remedy)


def _as_wanted(wanted: Mapping[int, ServerEdit], was: Directive, now: Directive) -> bool:
    """Whether the directive has not changed, or only as wanted."""
    edit = wanted.get(was.start) if was.words else None
    if (was.mark, was.name) != (now.mark, now.name) or edit is None:
        return (was.mark, was.name, was.arguments) == (now.mark, now.name, now.arguments)
    line = edit.line
    found = ServerLine(line.group, now.arguments[0], line.file, now.line, now.start, now.arguments[1:])
    same = found.server == line.server and _others(found) == _others(line)
    return same and (found.weight, found.down) == (edit.weight, edit.down)


def _others(line: ServerLine) -> list[str]:
    return [word for word in line.parameters if word != "down" and not word.startswith("weight=")]


def _blank_before(text: bytes, position: int) -> int:
    while position > 0 and text[position - 1 : position] in (b" ", b"\t"):
        position -= 1
    return position
