"""Credentials in URLs: calls use them, and no message, file or log shows them."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)(?:[^\s/?#]*|[^\s/?#:@\[]*:(?!\d+[/?#])[^\s@]*)@|\b[\w.%+-]+:[^\s/?#@]+@")
"""In a URL also with a password of characters that ought to be encoded, unless a port and a path stand there."""


def without_credentials(text: str) -> str:
    """The text with `USER:PASSWORD@` taken out of every URL, and of every address that lacks only `http://`."""
    return _USER.sub("", text)
