"""Structured logs of the served policy: one JSON object a line. Ray Serve writes the same records in its own format."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_LOG = logging.getLogger("deepsched.serve")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def event(name: str, level: int = logging.INFO, **about: Any) -> None:
    """Something that an operator may want to find again; `about` becomes fields of the line."""
    _LOG.log(level, name, extra={"event": name, **about})


class JsonLines(logging.Formatter):
    """Time in UTC, level, logger, message, and the fields of `event`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr() -> None:
    """For a process of ours; does nothing where logging is set up already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def log_with_serve() -> None:
    """In a replica: only what goes through Serve's logger reaches its files."""
    logger = logging.getLogger("deepsched")
    logger.parent = logging.getLogger("ray.serve")
    logger.setLevel(logging.INFO)
