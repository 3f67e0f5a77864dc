"""The two consoles of a verb: results go to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from actuators.credentials import without_credentials

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH = 160
"""Columns of output that is not a terminal: cells in a pipe are not wrapped."""


def console_out() -> Console:
    """For results: tables, and the paths of what was written."""
    return _console(sys.stdout)


def console_err() -> Console:
    """For progress, warnings and log lines."""
    return _console(sys.stderr)


def log_line(verb: str, line: str) -> None:
    """One line on stderr that names the verb, not wrapped, without credentials of URLs."""
    console_err().print(without_credentials(f"deepsched {verb}: {line}"), markup=False, soft_wrap=True)


def _console(file: TextIO) -> Console:
    from rich.console import Console

    return Console(file=file, width=None if file.isatty() else _PIPE_WIDTH, highlight=False)
