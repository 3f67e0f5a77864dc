"""Small state that several processes change: one JSON document, locked, versioned, replaced in one step.

Not sqlite3: people read and edit these few hundred bytes, earlier versions wrote them as plain JSON, and after a kill
a reader of a database would need the right to write. Not filelock: where the kernel's lock fails it leaves marker
files, which outlive a killed process; the lock of `flock` ends with its process.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from actuators.errors import ConflictError, DataError
from actuators.files import exclusive, give_to_owner, read_regular
from actuators.options import first_fault

Document = TypeVar("Document", bound=BaseModel)

LOCK_TIMEOUT_S = 5.0
"""A writer holds the lock for milliseconds; one that was stopped holds it until it goes on or ends."""
MAX_BYTES = 2**24


@dataclass(frozen=True)
class Stored(Generic[Document]):
    """What the store holds.

    Attributes:
        version: grows with every change; 0 when nothing was ever stored.
        value: None when there is no document.
        problem: why the document could not be read, when this is the last good copy of it.
    """

    version: int
    value: Document | None
    problem: str = ""


class Store(Generic[Document]):
    """One document at `path`; its lock and its last good copy lie beside it as hidden files.

    A reader needs no lock: it sees the document before or after a change, also when the writer is killed.

    Args:
        kind: the pydantic class of the document; `version` is not among its fields.
        what: what the document is, for messages: "an orders file".
    """

    def __init__(self, path: Path, kind: type[Document], what: str) -> None:
        self.path, self._kind, self._what = path, kind, what

    def read(self) -> Stored[Document]:
        """The document, or its last good copy when something foreign has torn it.

        Raises DataError when neither can be read.
        """
        try:
            return self._parse(self.path)
        except FileNotFoundError:
            return Stored(self._copied_version(), None)
        except (OSError, ValueError, RecursionError) as error:
            problem = f"not {self._what}: {_reason(error)}"
            try:
                copy = self._parse(self._beside("good"))
            except (OSError, ValueError, RecursionError):
                raise DataError(problem, where=str(self.path), remedy="correct it, or remove it") from error
            return Stored(copy.version, copy.value, f"{problem} ({self.path}); its last good copy counts")

    def change(
        self, update: Callable[[Stored[Document]], Document], *, expected: int | None = None
    ) -> Stored[Document]:
        """Replaces the document by what `update` makes of it, while no other process can change it.

        An equal document is not written again. What `update` raises leaves everything as it was.

        Args:
            expected: version that the change was made for; any when None.

        Raises:
            ConflictError: another version is stored, or another process holds the lock for too long.
            DataError: neither the document nor its copy can be read.
            OSError: it cannot be written; the old document is in place.
        """
        with exclusive(self._beside("lock"), LOCK_TIMEOUT_S):
            present = self.read()
            if expected is not None and present.version != expected:
                raise ConflictError(
                    "somebody else changed it first", where=str(self.path), remedy="check it, then repeat"
                )
            value = update(present)
            if value == present.value and not present.problem:
                return present
            version = max(present.version, self._copied_version()) + 1
            text = json.dumps({"version": version, **value.model_dump(mode="json")}, allow_nan=False) + "\n"
            self._replace(self.path, text)
            self._replace(self._beside("good"), text)
            return Stored(version, value)

    def _parse(self, path: Path) -> Stored[Document]:
        data = json.loads(read_regular(path, MAX_BYTES))
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")
        version = data.pop("version", 0)
        if type(version) is not int or version < 0:
            raise ValueError("version: not a whole number")
        return Stored(version, self._kind.model_validate(data))

    def _copied_version(self) -> int:
        try:
            return self._parse(self._beside("good")).version
        except (OSError, ValueError, RecursionError):
            return 0

    def _replace(self, path: Path, text: str) -> None:
        """In one step, and on the disk when it returns. The lock is held, so that one temporary name is enough."""
        temporary = path.with_name(f".{self.path.name}.new")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()  # a killed writer's
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            give_to_owner(file.fileno(), path.parent)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{suffix}")


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return first_fault(error)
    return str(getattr(error, "strerror", None) or error)[:200]
