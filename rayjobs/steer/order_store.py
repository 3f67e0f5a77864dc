"""The operator's orders, in the order in which they were given; a revert wins over every order given meanwhile."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from actuators.errors import ConfigError, ConflictError
from actuators.processes.system import boot_id, process_start_s
from actuators.store import Store, Stored
from tuning.steering.options import Mode, Override


class Moment(BaseModel):
    """A point of time that no setting of the clock moves: seconds since a boot of this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    boot: str
    seconds: float

    @classmethod
    def now(cls) -> Moment:
        return cls(boot=boot_id(), seconds=time.clock_gettime(time.CLOCK_BOOTTIME))

    @classmethod
    def of_command(cls) -> Moment:
        """When the command of this process was given: when the process began, because Python needs longer to start
        than a controller to obey; now, when a program calls it.
        """
        main = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
        ours = main.name == "deepsched" or Path(__file__).parents[1] in main.parents
        return cls(boot=boot_id(), seconds=process_start_s()) if ours else cls.now()

    def is_after(self, other: Moment) -> bool:
        """A moment of another boot is an earlier one: orders are given by processes of this boot."""
        return self.boot != other.boot or self.seconds > other.seconds


class Orders(BaseModel):
    """An operator's orders; None leaves the value that the controller was started with.

    Attributes:
        answered: of a revert: when the first weights were in force, or its giver was told that they are not. Orders
            that were given before lose.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    override: Override = ""
    mode: Mode | None = None
    canary_percent: float | None = Field(
        default=None, ge=0, le=100, validation_alias=AliasChoices("canary_percent", "blend_percent")
    )
    bundle: str | None = None
    answered: Moment | None = None

    @property
    def pending(self) -> bool:
        """Whether a revert has not been answered."""
        return self.override == "reverted" and self.answered is None


class GivenOrders(Orders):
    """The orders as they are stored.

    Attributes:
        given: name of an order → when it was given last, in seconds since the epoch. So an order that is given again
            is a change as well, which the controller obeys.
    """

    given: dict[str, float] = {}


class OrderStore:
    """`orders.json` of a controller."""

    def __init__(self, path: Path) -> None:
        self._store = Store(path, GivenOrders, "an orders file")

    def read(self) -> Stored[GivenOrders]:
        """The orders; a value of None stands for none. Raises DataError when the file cannot be read."""
        return self._store.read()

    def give(self, changes: dict[str, Any], given: Moment) -> Stored[GivenOrders]:
        """Changes the orders; the controller applies them within one interval.

        Raises:
            ConfigError: a wrong value.
            ConflictError: a revert that was not answered when this order was given; it stays in force.
            DataError, OSError: the file cannot be read or written; nothing has changed.
        """

        def update(stored: Stored[GivenOrders]) -> GivenOrders:
            present = stored.value or GivenOrders()
            override = changes.get("override", present.override)
            if present.override == "reverted" and changes.get("override") != "reverted":
                _require_answered(present, given)
            answered = present.answered if override == present.override else None
            times = {**present.given, **dict.fromkeys(changes, time.time())}
            orders = {**present.model_dump(), **changes, "answered": answered, "given": times}
            try:
                return GivenOrders.model_validate(orders)
            except ValidationError as error:
                raise ConfigError(f"invalid order: {error.errors()[0]['msg']}", where="orders") from error

        return self._store.change(update)

    def answer(self, version: int) -> None:
        """The revert of this version is in force, or its giver knows that it is not: later orders count.

        Raises as `give`.
        """

        def update(stored: Stored[GivenOrders]) -> GivenOrders:
            present = stored.value or GivenOrders()
            # A revert that was given meanwhile is another one, and nobody has obeyed it.
            if stored.version != version or not present.pending:
                return present
            return present.model_copy(update={"answered": Moment.now()})

        self._store.change(update)


def _require_answered(present: Orders, given: Moment) -> None:
    if present.answered is None or not given.is_after(present.answered):
        raise ConflictError(
            "a revert was given at the same time and wins; nothing was changed", where="orders",
            remedy="repeat this order when the revert has said what is in force",
        )  # fmt: skip
