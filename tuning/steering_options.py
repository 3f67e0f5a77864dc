"""Options of the controller's decisions and of their record; apart from the code, so that `--help` needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from actuators.options import Options
from tuning.guards import GuardOptions

Mode = Literal["shadow", "blend", "active"]


class SteeringOptions(Options):
    """What the controller is allowed to do."""

    mode: Mode = "shadow"
    """`shadow` decides and changes nothing; `blend` goes a part of the way to the policy's weights; `active` all."""
    blend_percent: float = Field(default=10.0, ge=0, le=100)
    """In `blend`: how far from the baseline's weights to the policy's."""
    baseline: Literal["original", "equal", "inverse_latency", "estimator"] = "original"
    """What stands in for the policy: what was in force at the start, equal weights, or what the bundle's residual
    stands on, `inverse_latency` or its `estimator` of service times."""
    guards: GuardOptions = GuardOptions()
    """Limits of the guards."""


class AuditOptions(Options):
    """Where decisions are recorded, and how much of it is kept."""

    max_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Size at which the file is put aside and a new one begun."""
    keep: int = Field(default=8, ge=1)
    """How many files that were put aside are kept."""
