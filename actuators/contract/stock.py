"""A plan of weights for an NGINX without Lua: an upstream per request type or one for all, `weight` and `max_conns`.

`deepsched weights suggest` writes it as JSON; `stock:FILE` among policies balances by it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from actuators.contract.control import MAX_WEIGHT, CappedWeights, Weights
from actuators.contract.late_binding import UNLIMITED
from actuators.contract.topology import Topology
from actuators.errors import ConfigError
from actuators.files import read_regular
from actuators.options import MAX_DOCUMENT_BYTES, Options, first_fault

STOCK = "stock:"
"""Prefix of the path of a plan among policies: ``stock:/path/to/stock.json``."""


class StockPlan(Options):
    """Weights in the order of a topology's groups and servers; its addresses do not matter."""

    format_version: Literal[1] = 1
    """Version of the file format."""
    shared: bool
    """One upstream for all request types; it needs groups with the same servers."""
    weights: tuple[tuple[Annotated[int, Field(ge=0, le=MAX_WEIGHT)], ...], ...] = Field(min_length=1)
    """``[groups][servers]``; equal rows when shared, 0 where a group lacks the server or does not use it (`down`)."""
    max_conns: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """``[servers]``, only when shared: requests in flight that a server may have; 0 for any number. None when empty."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        size = len(self.weights[0])
        if any(len(row) != size for row in self.weights) or (self.max_conns and len(self.max_conns) != size):
            raise ValueError("rows have different lengths")
        if self.shared and len(set(self.weights)) != 1:
            raise ValueError("a shared upstream has one weight per server")
        if self.max_conns and not self.shared:
            raise ValueError("max_conns without a shared upstream")
        return self

    def control(self, topology: Topology) -> Weights:
        """As a control of the simulator.

        Raises ConfigError for a system of another shape, or when the plan uses no server of a group.
        """
        self.check(topology)
        down = topology.mask & (np.array(self.weights) == 0)
        values = np.where(down, 1, self.weights)
        if not self.max_conns:
            return Weights(topology, values, down)
        return CappedWeights(topology, values, down, most=np.array([most or UNLIMITED for most in self.max_conns]))

    def check(self, topology: Topology) -> None:
        """Raises ConfigError for a system of another shape, or with different servers behind a shared upstream."""
        groups, servers = topology.shape
        if (len(self.weights), len(self.weights[0])) != (groups, servers):
            what = f"the plan is of {len(self.weights)} groups and {len(self.weights[0])} servers"
            raise ConfigError(what, where="stock plan", remedy=f"make one for {groups} groups and {servers} servers")
        if self.shared and not topology.mask.all():
            remedy = "use an upstream per request type"
            raise ConfigError("the groups have different servers", where="stock plan", remedy=remedy)

    @classmethod
    def load(cls, path: Path) -> StockPlan:
        """Reads a plan. Raises ConfigError for a file that is unreadable or not one."""
        remedy = "make one with: deepsched weights suggest"
        try:
            return cls.model_validate_json(read_regular(path, MAX_DOCUMENT_BYTES))
        except OSError as error:
            raise ConfigError(f"cannot read: {error.strerror}", where=str(path), remedy=remedy) from error
        except ValidationError as error:
            raise ConfigError(f"not a plan: {first_fault(error)}", where=str(path), remedy=remedy) from error
