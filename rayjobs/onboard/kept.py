"""What an onboarding has found so far: one file per step, so that a second call goes on where the first one ended.

`FOLDER/onboard/STEP.json` holds a step's options and its result and is written in one step. Other options than the kept
ones begin again at the first step that they concern; another system is refused.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from actuators.errors import ConfigError, DataError
from actuators.files import write_json

STEPS = ("preflight", "watch", "fit", "train", "judge")
PLACE = "onboard"
_OF_THE_SYSTEM = "preflight"
_REMEDY = "give another --folder, or remove this one"


class Kept:
    """The folder of one onboarding.

    Args:
        folder: made if it is missing, for its owner only.
        options: step → its options, plain JSON; those of `preflight` tell which system it is.

    Attributes:
        restarted: what a second call with other options says, once it is locked; empty when it goes on.

    Raises:
        ConfigError: the folder holds something else, or cannot be written.
    """

    def __init__(self, folder: Path, options: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder, self._options = _private(folder), options
        self.place = self.folder / PLACE
        self.place.mkdir(mode=0o700, exist_ok=True)
        self.restarted = ""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One onboarding at a time; forgets the steps that other options concern.

        Raises ConfigError when there is another onboarding, or this one is of another system.
        """
        with open(self.place / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    "another onboarding is running", where=str(self.folder), remedy="wait for it, or end it"
                ) from None
            self._compare()
            yield

    def result(self, step: str) -> dict[str, Any] | None:
        """What the step has found; None when it must run. Raises DataError for a file that is not ours."""
        kept = self._read(step)
        return None if kept is None else kept["result"]

    def keep(self, step: str, result: Mapping[str, Any]) -> None:
        """Keeps a step's result, in one step. Raises DataError when it cannot be written."""
        try:
            write_json(self._path(step), {"options": self._options[step], "result": result})
        except OSError as error:
            remedy = "free some space and repeat the command: it goes on here"
            raise DataError(f"cannot write: {error.strerror}", where=str(self._path(step)), remedy=remedy) from error

    def forget_from(self, step: str) -> None:
        """The step and all later ones must run again."""
        for later in reversed(STEPS[STEPS.index(step) :]):
            self._path(later).unlink(missing_ok=True)

    def _compare(self) -> None:
        first, changes = "", list[_Change]()
        for step in STEPS:
            kept = self._read(step)
            if kept is None:
                continue
            options = self._options[step]
            found = list(_changes({name: kept["options"].get(name) for name in options}, options))
            if found and step == _OF_THE_SYSTEM:
                what = "; ".join(f"{name} was {before}, now {now}" for name, before, now in found)
                raise ConfigError(
                    f"this onboarding is of another system: {what}", where=str(self.folder), remedy=_REMEDY
                )
            first = first or (step if found else "")
            changes += found
        if first:
            what = ", ".join(f"{name} was {before} and is {now}" for name, before, now in changes)
            self.restarted = f"{what}: begins again at '{first}'"
            self.forget_from(first)

    def _read(self, step: str) -> dict[str, Any] | None:
        path = self._path(step)
        try:
            kept = json.loads(path.read_bytes())
            if not isinstance(kept["options"], dict) or not isinstance(kept["result"], dict):
                raise TypeError("not an object")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError("not a step of an onboarding", where=str(path), remedy="remove the file") from error
        return dict(kept)

    def _path(self, step: str) -> Path:
        return self.place / f"{step}.json"


def _private(folder: Path) -> Path:
    """The folder, readable by its owner only. One that holds other things is refused: it is not ours to close."""
    path = folder.expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = [entry.name for entry in path.iterdir()]
        if found and PLACE not in found:
            raise ConfigError(f"the folder holds other files, as {sorted(found)[0]}", where=str(path), remedy=_REMEDY)
        path.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"cannot write in this folder: {error.strerror}", where=str(path), remedy="choose another with --folder"
        ) from error
    return path


class _Change(NamedTuple):
    """An option that differs: its dotted path, and its values in words."""

    name: str
    before: str
    now: str


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[_Change]:
    """Every option that differs, in groups too; one that is in one of them only counts as not given in the other."""
    for name in dict.fromkeys([*now, *before]):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{prefix}{name}.")
        else:
            yield _Change(prefix + name, _words(old), _words(new))


def _words(value: object) -> str:
    if value is None or value in ("", [], {}):
        return "not given"
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
