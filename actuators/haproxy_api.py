"""HAProxy's runtime API over its Unix socket, and how an option names it."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from actuators.errors import ActuationError

SCHEME = "haproxy:"
"""Before the path of the socket where a URL of statistics or of a control is expected."""

_TIMEOUT_S = 5.0
_MOST_BYTES = 2**24


def socket_of(url: str) -> Path | None:
    """The path in ``haproxy:/run/haproxy/admin.sock``; None for any other URL."""
    return Path(url.removeprefix(SCHEME)) if url.startswith(SCHEME) else None


class RuntimeApi:
    """HAProxy's runtime API on a Unix socket (`stats socket PATH level admin`); a connection per call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, command: str) -> str:
        """The answer to one command, without blanks around it; after an empty line the answer to a next one that stands
        after ``;``. Raises ActuationError when none comes.
        """
        until_s = time.monotonic() + _TIMEOUT_S
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_TIMEOUT_S)
                connection.connect(str(self.path))
                connection.sendall(f"{command}\n".encode())
                parts, size = [], 0
                while part := connection.recv(65536):
                    parts.append(part)
                    size += len(part)
                    if size > _MOST_BYTES:
                        what = f"the answer is longer than {_MOST_BYTES} bytes"
                        raise ActuationError(what, where=str(self.path))
                    connection.settimeout(max(until_s - time.monotonic(), 1e-3))
        except OSError as error:
            remedy = "give the path of its `stats socket`, which this user may open"
            what = f"HAProxy's runtime API does not answer: {error}"
            raise ActuationError(what, where=str(self.path), remedy=remedy) from error
        return b"".join(parts).decode(errors="replace").strip()

    def order(self, *commands: str) -> None:
        """Gives commands that answer nothing when they are obeyed. Raises ActuationError with another answer."""
        for command in commands:
            if answer := self.ask(command):
                remedy = "the socket needs `level admin`" if "ermission denied" in answer else ""
                what = f"HAProxy refused '{command}': {answer}"
                raise ActuationError(what, where=str(self.path), remedy=remedy)
