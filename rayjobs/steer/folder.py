"""The folder of a controller: lock, orders, heartbeat, first weights and the way to its NGINX; others read it too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from actuators.errors import ConfigError, ConflictError
from actuators.files import exclusive, give_to_owner, open_private, read_regular, writable_folder, write_private
from actuators.processes.system import boot_id
from rayjobs.steer.admission import FirstRuleStore
from rayjobs.steer.first import FirstStore
from rayjobs.steer.order_store import Moment, Orders, OrderStore

_MAX_BYTES = 2**26
_PROBE_S = 0.5
"""A process that checks for a running controller holds its lock for a moment."""


class SteerFolder:
    """Files under `path`: `audit.jsonl`, `status.json`, `orders.json`, `original.json`, `admission.json`,
    `access.json`, `lock`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def audit(self) -> Path:
        return self.path / "audit.jsonl"

    @property
    def orders(self) -> OrderStore:
        return OrderStore(self.path / "orders.json")

    @property
    def first(self) -> FirstStore:
        return FirstStore(self.path / "original.json")

    @property
    def admission(self) -> FirstRuleStore:
        return FirstRuleStore(self.path / "admission.json")

    def make(self) -> None:
        """Raises ConfigError when files cannot be written there."""
        self.path = writable_folder(self.path, private=True, option="--folder")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One controller per folder. Raises ConfigError when there is another."""
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(self.path / "lock", _PROBE_S))
            except ConflictError:
                remedy = "end it, or give another --folder"
                raise ConfigError("another controller is running", where=str(self.path), remedy=remedy) from None
            yield

    def is_locked(self) -> bool:
        """Whether a controller is running."""
        try:
            with exclusive(self.path / "lock", 0.0):
                return False
        except ConflictError:
            return True

    def order(self, given: Moment | None = None, **changes: Any) -> Orders:
        """Changes the orders (`OrderStore.give`). Raises ConfigError when no controller has used this folder."""
        self.require()
        kept = self.orders.give(changes, given or Moment.now()).value
        return Orders() if kept is None else Orders.model_validate(kept.model_dump(exclude={"given"}))

    def require(self) -> None:
        """Raises ConfigError when no controller has used this folder, or when it is closed to this user."""
        try:
            used = (self.path / "original.json").exists()
        except PermissionError as error:
            # As the folder of a service is, which another user runs.
            owner = self.path.stat().st_uid
            remedy = f"run this as its owner: sudo -u '#{owner}' …"
            raise ConfigError("the folder belongs to another user", where=str(self.path), remedy=remedy) from error
        if not used:
            raise ConfigError("no controller has run here", where=str(self.path), remedy="give its --folder")

    def record_access(self, access: dict[str, Any] | None) -> None:
        """Keeps how to reach the NGINX, so that a revert needs no controller; None when it ends with the controller.

        Raises OSError.
        """
        # Not given to the folder's owner: it names programs, which root then would not run.
        write_private(self.path / "access.json", json.dumps(access))

    def access(self) -> dict[str, Any]:
        """What `record_access` kept. Raises ConfigError when there is none, or when another user may have written it:
        it names programs that are run.
        """
        path = self.path / "access.json"
        try:
            owner, access = path.stat(), json.loads(read_regular(path, _MAX_BYTES))
        except (OSError, ValueError) as error:
            raise ConfigError("how to reach its NGINX is not known", where=str(path), remedy=_START) from error
        if owner.st_uid not in (0, os.geteuid()) or owner.st_mode & 0o022:
            remedy = f"run this as its owner: sudo -u '#{owner.st_uid}' …"
            raise ConfigError("written by another user, so its commands are not run", where=str(path), remedy=remedy)
        if not isinstance(access, dict):
            raise ConfigError("its NGINX has ended with the controller", where=str(path), remedy=_START)
        return access

    def write_status(self, status: dict[str, Any]) -> None:
        """The heartbeat, with the last decision. Raises OSError."""
        # Not synced to disk: it is written in every interval and has no use after a reboot.
        temporary = self.path / ".status.json.tmp"
        with open(temporary, "w", opener=open_private) as file:
            give_to_owner(file.fileno(), self.path)
            file.write(json.dumps({**status, "boot": boot_id(), "pid": os.getpid()}))
        temporary.replace(self.path / "status.json")

    def status(self) -> dict[str, Any]:
        """The last heartbeat; empty when there is none since the last boot."""
        status = self._last_status()
        return status if status.get("boot") == boot_id() else {}

    def has_ended(self) -> bool:
        """Whether the last controller ended regularly, in this boot or an earlier one."""
        return bool(self._last_status().get("ended"))

    def _last_status(self) -> dict[str, Any]:
        try:
            status = json.loads(read_regular(self.path / "status.json", _MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return status if isinstance(status, dict) else {}


_START = "start a controller on it: deepsched steer run"
