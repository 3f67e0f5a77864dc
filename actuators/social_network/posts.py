"""From a compose form to a stored post: mentions, shortened URLs, media, JSON. Pure functions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_plus

SHORT_URL = "http://short-url/"
POST_TYPES = 4
"""POST, REPOST, REPLY, DM, as DeathStarBench numbers them."""

_MENTION = re.compile(r"(?<!\S)@([\w-]+)")
_URL = re.compile(r"https?://\S+")


class BadRequestError(ValueError):
    """A parameter of the request is missing or wrong; the text is for the client (status 400)."""


@dataclass(frozen=True)
class Draft:
    """A validated compose request without an id.

    Attributes:
        mentions: user id → name of the known users that the text mentions, in order.
        urls: short URL → expanded URL.
        media: (id, type) pairs.
    """

    user_id: int
    username: str
    text: str
    mentions: Mapping[int, str]
    urls: Mapping[str, str]
    media: tuple[tuple[str, str], ...]
    post_type: int

    def body(self, post_id: int, time_ms: int) -> bytes:
        """The post as timelines show it: one JSON object with DeathStarBench's keys, ids as strings."""
        post = {
            "post_id": str(post_id),
            "creator": {"user_id": str(self.user_id), "username": self.username},
            "text": self.text,
            "user_mentions": [{"user_id": str(key), "username": name} for key, name in self.mentions.items()],
            "media": [{"media_id": key, "media_type": kind} for key, kind in self.media],
            "urls": [{"shortened_url": short, "expanded_url": url} for short, url in self.urls.items()],
            "timestamp": str(time_ms),
            "post_type": self.post_type,
        }
        return json.dumps(post, separators=(",", ":")).encode()


def parse_form(data: bytes) -> dict[str, str]:
    """Fields of a form or query; accepts values without percent-encoding, as DeathStarBench's scripts send them.

    Raises BadRequestError for text that is not UTF-8 or a repeated field.
    """
    fields: dict[str, str] = {}
    try:
        text = data.decode()
        for part in text.split("&"):
            name, _, value = part.partition("=")
            if name in fields:
                raise BadRequestError(f"parameter '{name}' is given twice")
            fields[name] = unquote_plus(value, errors="strict") if "%" in value or "+" in value else value
    except UnicodeDecodeError as error:
        raise BadRequestError("a parameter is not UTF-8") from error
    return fields


def draft(fields: Mapping[str, str], users: Mapping[int, str], ids: Mapping[str, int]) -> Draft:
    """The draft of a compose form. Raises BadRequestError."""
    user_id = whole_number(fields, "user_id")
    username = required(fields, "username")
    if users.get(user_id) != username:
        raise BadRequestError(f"no user '{username}' with user_id {user_id}")
    post_type = whole_number(fields, "post_type")
    if post_type >= POST_TYPES:
        raise BadRequestError(f"post_type must be less than {POST_TYPES}")
    text, urls = _shorten(required(fields, "text"))
    mentions = {ids[name]: name for name in _MENTION.findall(text) if name in ids}
    return Draft(user_id, username, text, mentions, urls, _media(fields), post_type)


def required(fields: Mapping[str, str], name: str) -> str:
    """A field's value. Raises BadRequestError when it is missing or empty."""
    value = fields.get(name, "")
    if not value:
        raise BadRequestError(f"parameter '{name}' is missing")
    return value


def whole_number(fields: Mapping[str, str], name: str) -> int:
    """A field's value as an integer >= 0 of at most 18 digits. Raises BadRequestError."""
    value = required(fields, name)
    if not (value.isascii() and value.isdecimal() and len(value) <= 18):
        raise BadRequestError(f"parameter '{name}' must be a whole number")
    return int(value)


def _shorten(text: str) -> tuple[str, dict[str, str]]:
    urls: dict[str, str] = {}

    def replace(match: re.Match[str]) -> str:
        url = match.group()
        short = SHORT_URL + hashlib.blake2b(url.encode(), digest_size=6).hexdigest()
        urls[short] = url
        return short

    return _URL.sub(replace, text), urls


def _media(fields: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    keys, kinds = _strings(fields, "media_ids"), _strings(fields, "media_types")
    if len(keys) != len(kinds):
        raise BadRequestError(f"{len(keys)} media_ids but {len(kinds)} media_types")
    return tuple(zip(keys, kinds, strict=True))


def _strings(fields: Mapping[str, str], name: str) -> list[str]:
    try:
        values = json.loads(fields.get(name) or "[]")
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"parameter '{name}' must be a JSON list") from error
    if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
        raise BadRequestError(f"parameter '{name}' must be a JSON list of strings")
    return values
