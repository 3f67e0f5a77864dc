"""Finished blocks as JSON lines: each is kept as it ends, so that an interrupted evaluation can go on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from actuators.errors import DataError
from tuning.blocks import Block

REMEDY = "make room on the disk, then `deepsched evaluate --resume RUN` goes on"


class Journal:
    """Appends blocks to one file, each in a line of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, block: Block) -> None:
        """Keeps one block. Raises DataError when it cannot be written; the earlier lines are whole then."""
        line = json.dumps({**block.to_json(), "windows": list(block.windows)}, allow_nan=False) + "\n"
        try:
            with open(self.path, "ab") as file:
                before = file.tell()
                try:
                    file.write(line.encode())
                    file.flush()
                except OSError:
                    # What cannot be cut off here, `read` cuts off.
                    with contextlib.suppress(OSError):
                        file.truncate(before)
                    raise
        except OSError as error:
            raise DataError(
                f"a finished block cannot be kept: {error.strerror}", where=str(self.path), remedy=REMEDY
            ) from error

    def read(self) -> list[Block]:
        """The blocks of an earlier run; a torn last line is cut off, so that the next block starts a line.

        Raises DataError for anything else that is not a block, or an unreadable file.
        """
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"cannot read the blocks: {error.strerror}", where=str(self.path)) from error
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            with open(self.path, "ab") as file:
                file.truncate(whole)
        return [self._block(number, line) for number, line in enumerate(text[:whole].splitlines(), 1)]

    def _block(self, number: int, line: bytes) -> Block:
        try:
            data = json.loads(line)
            return Block.from_json(data, tuple(data["windows"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"not a finished block: {error}", where=f"{self.path}:{number}", remedy="remove the line and resume"
            ) from error
