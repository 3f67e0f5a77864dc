"""The folder of a controller: lock, orders, heartbeat and the first weights; shared with other processes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from actuators.contract.control import Control, MemoryMethod
from actuators.contract.topology import Topology
from actuators.errors import ConfigError, DataError
from actuators.files import writable_folder, write_atomic
from tuning.steering import control_json
from tuning.steering.options import Mode, Override

Original = tuple[Control, MemoryMethod | None]
"""A control and its balancing method; None where only a reload could change the method."""


class Orders(BaseModel):
    """An operator's orders; None leaves the value that the controller was started with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    override: Override = ""
    mode: Mode | None = None
    canary_percent: float | None = Field(
        default=None, ge=0, le=100, validation_alias=AliasChoices("canary_percent", "blend_percent")
    )
    bundle: str | None = None


class SteerFolder:
    """Files under `path`: `audit.jsonl`, `status.json`, `orders.json`, `original.json`, `lock`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def audit(self) -> Path:
        return self.path / "audit.jsonl"

    def make(self) -> None:
        """Raises ConfigError when files cannot be written there."""
        self.path = writable_folder(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One controller per folder. Raises ConfigError when there is another."""
        with open(self.path / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    "another controller is running", where=str(self.path), remedy="end it, or give another --folder"
                ) from None
            yield

    def is_locked(self) -> bool:
        """Whether a controller is running."""
        try:
            with self.locked():
                return False
        except ConfigError:
            return True

    def orders(self) -> Orders:
        """The orders in force. Raises DataError for a file of another format."""
        try:
            return Orders.model_validate_json((self.path / "orders.json").read_bytes())
        except FileNotFoundError:
            return Orders()
        except (OSError, ValidationError) as error:
            raise DataError("not an orders file", where=str(self.path / "orders.json"), remedy="remove it") from error

    def order(self, **changes: Any) -> Orders:
        """Changes the orders; the controller applies them within one interval. Raises ConfigError for a wrong value."""
        self.require()
        try:
            new = Orders.model_validate({**self.orders().model_dump(), **changes})
        except ValidationError as error:
            raise ConfigError(f"invalid order: {error.errors()[0]['msg']}", where="orders") from error
        write_atomic(self.path / "orders.json", new.model_dump_json())
        return new

    def require(self) -> None:
        """Raises ConfigError when no controller has used this folder."""
        if not (self.path / "original.json").exists():
            raise ConfigError("no controller has run here", where=str(self.path), remedy="give its --folder")

    def original(self, present: Control, method: MemoryMethod | None) -> Original:
        """The control from before the first controller in this folder; `present` and `method` when there was none."""
        kept = self.kept_original(present.topology)
        if kept is not None:
            return kept
        self.adopt(present, method)
        return present, method

    def adopt(self, present: Control, method: MemoryMethod | None) -> None:
        """Keeps these as what a revert restores. Raises OSError."""
        groups = {group.name: list(group.servers) for group in present.topology.groups}
        data = {"groups": groups, "method": method, **control_json.to_json(present)}
        write_atomic(self.path / "original.json", json.dumps(data))

    def kept_original(self, topology: Topology) -> Original | None:
        """What a revert restores; None when nothing is kept, or it is of other groups or servers."""
        try:
            data = json.loads((self.path / "original.json").read_bytes())
            if data["groups"] != {group.name: list(group.servers) for group in topology.groups}:
                return None
            return control_json.from_json(data, topology), data.get("method")
        except (OSError, ValueError, KeyError, TypeError, ConfigError):
            return None

    def write_status(self, status: dict[str, Any]) -> None:
        """The heartbeat, with the last decision. Raises OSError."""
        # Not synced to disk: it is written in every interval and has no use after a reboot.
        temporary = self.path / ".status.json.tmp"
        temporary.write_text(json.dumps({**status, "boot": _boot(), "pid": os.getpid()}))
        temporary.replace(self.path / "status.json")

    def status(self) -> dict[str, Any]:
        """The last heartbeat; empty when there is none since the last boot."""
        try:
            status = json.loads((self.path / "status.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) and status.get("boot") == _boot() else {}


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
