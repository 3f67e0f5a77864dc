"""The two consoles that verbs print to: results on stdout, everything said on the way on stderr."""

from __future__ import annotations

import sys

from rich.console import Console

_PLAIN_WIDTH = 160


def results() -> Console:
    """For tables and paths; wide when it is not a terminal, so that a pipe gets no wrapped cells."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)


def remarks() -> Console:
    """For progress and remarks."""
    return Console(file=sys.stderr, width=None if sys.stderr.isatty() else _PLAIN_WIDTH, highlight=False)
