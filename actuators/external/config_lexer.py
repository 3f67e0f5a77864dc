"""NGINX's lexical rules: the directives of a configuration file with the place of every word. Pure functions.

As NGINX's own reader: blanks separate words, # begins a comment where a word could begin, quotes and backslashes
protect, `${` does not open a block, and a closing brace inside a word is a part of it. The body of a `…_by_lua_block`
is Lua, and is skipped by the rules of Lua.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from actuators.errors import ConfigError

Mark = Literal[";", "{", "}"]

_BLANK = rb"(?:[ \t\r\n]+|\#[^\n]*)*+"
_TOKEN = re.compile(
    _BLANK
    + rb"""(?: (?P<mark>[;{}])
    | (?P<quoted>"(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*')
    | (?P<word>(?:\\.|\$\{*|[^\\$\ \t\r\n;{}"'\#]) (?:\\.|\$\{*|[^\\$\ \t\r\n;{])*)
    | \Z )""",
    re.DOTALL | re.VERBOSE,
)
_SKIPPED = re.compile(_BLANK)
_PLAIN_WORD = rb"""[^\\$\s;{}"'#][^\\$\s;{]*+"""
_PLAIN = re.compile(rb"[ \t\r\n]*+(?P<words>" + _PLAIN_WORD + rb"(?:[ \t\r\n]++" + _PLAIN_WORD + rb")*+)[ \t\r\n]*+;")
"""A directive without quotes, escapes, variables, comments and block, as nearly all are: read at once."""
_ESCAPE = re.compile(rb"""\\(["'\\trn])""")
_MARKS: dict[bytes, Mark] = {b";": ";", b"{": "{", b"}": "}"}
_CONTROLS = {b"t": b"\t", b"r": b"\r", b"n": b"\n"}
_LUA_TOKEN = re.compile(
    rb"""--\[(?P<comment>=*)\[ | --[^\n]* | \[(?P<string>=*)\[ | (?P<brace>[{}])
    | "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*'""",
    re.DOTALL | re.VERBOSE,
)
_REMEDY = "check it with: nginx -t"


class Word(NamedTuple):
    """One word as NGINX understands it, and its range of bytes, quotes included."""

    text: str
    start: int
    end: int


class Directive(NamedTuple):
    """Words up to a semicolon or an opening brace; a closing brace alone has no words.

    Attributes:
        mark: what ends it; a Lua block is ended by a semicolon, because nothing of NGINX is inside.
        line: 1-based line on which it begins.
        end: offset after the mark, or after the body of a Lua block.
    """

    words: tuple[Word, ...]
    mark: Mark
    line: int
    end: int

    @property
    def name(self) -> str:
        return self.words[0].text if self.words else ""

    @property
    def start(self) -> int:
        return self.words[0].start

    @property
    def arguments(self) -> tuple[str, ...]:
        return tuple(word.text for word in self.words[1:])


def directives(text: bytes, where: str, position: int = 0) -> Iterator[Directive]:
    """The directives from `position` on, in the order of the file.

    Args:
        where: the file, for errors.
        position: of the first byte of a directive; lines count from there.

    Raises:
        ConfigError: NGINX cannot read this text.
    """
    words: list[Word] = []
    line, counted = 1, position
    while position < len(text):
        if not words and (plain := _PLAIN.match(text, position)):
            begin, position = plain.start("words"), plain.end()
            line, counted = line + text.count(b"\n", counted, begin), begin
            yield Directive(_plain_words(text, *plain.span("words")), ";", line, position)
            continue
        token = _TOKEN.match(text, position)
        if token is None:
            skipped = _SKIPPED.match(text, position)
            raise _error("a quote or backslash without an end", text, skipped.end() if skipped else position, where)
        kind, position = token.lastgroup, token.end()
        if kind == "mark":
            mark, start = _MARKS[token["mark"]], token.start("mark")
            if (mark == "}") == bool(words):
                raise _error(f'unexpected "{mark}"', text, start, where)
            begin = words[0].start if words else start
            line, counted = line + text.count(b"\n", counted, begin), begin
            if mark == "{" and words[0].text.endswith("_by_lua_block"):
                mark, position = ";", _lua_end(text, position, where)
            yield Directive(tuple(words), mark, line, position)
            words = []
        elif kind:
            words.append(_word(token, kind, text, where))
    if words:
        raise _error('unexpected end of file, expecting ";" or "}"', text, words[0].start, where)


def _plain_words(text: bytes, start: int, end: int) -> tuple[Word, ...]:
    words = []
    for raw in text[start:end].split():
        start = text.index(raw, start)
        words.append(Word(raw.decode(errors="surrogateescape"), start, start := start + len(raw)))
    return tuple(words)


def _word(token: re.Match[bytes], kind: str, text: bytes, where: str) -> Word:
    start, end = token.span(kind)
    raw = token[kind]
    if kind == "quoted":
        raw = raw[1:-1]
        if text[end : end + 1] not in (b" ", b"\t", b"\r", b"\n", b";", b"{", b")"):
            raise _error("a quote does not end a word", text, end, where)
    if b"\\" in raw:
        raw = _ESCAPE.sub(lambda found: _CONTROLS.get(found[1], found[1]), raw)
    return Word(raw.decode(errors="surrogateescape"), start, end)


def _lua_end(text: bytes, position: int, where: str) -> int:
    """Where the Lua block ends whose opening brace is before `position`."""
    begin, depth = position, 1
    while depth:
        token = _LUA_TOKEN.search(text, position)
        if token is None:
            raise _error("a Lua block without an end", text, begin, where)
        position = token.end()
        level = token["comment"] if token["string"] is None else token["string"]
        if level is not None:
            closing = b"]" + level + b"]"
            position = text.find(closing, position) + len(closing)
            if position < token.end():
                raise _error("a Lua string or comment without an end", text, token.start(), where)
        elif token["brace"]:
            depth += 1 if token["brace"] == b"{" else -1
    return position


def _error(what: str, text: bytes, position: int, where: str) -> ConfigError:
    line = text.count(b"\n", 0, position) + 1
    return ConfigError(what, where=f"{where}:{line}", remedy=_REMEDY)
