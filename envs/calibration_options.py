"""Options of a calibration; apart from the fit, so that the command's help needs no compiler."""

from __future__ import annotations

from pydantic import Field

from actuators.control import BalancingMethod
from actuators.options import Options


class FitOptions(Options):
    """How the simulator is fitted."""

    method: BalancingMethod = "least_conn"
    """Balancing method that was in force; snapshots do not tell."""
    load_balancers: int = Field(default=1, ge=1)
    """NGINX workers that share nothing: 1 with `zone` in the upstreams."""
    workers: int | None = Field(default=None, ge=1)
    """Requests that a server serves at once, when you know it; learned when not given."""
    replicas: int = Field(default=3, ge=1)
    """Simulated systems per trial; more are smoother and slower."""
    bootstraps: int = Field(default=20, ge=2)
    """Fits to resampled windows, which tell the uncertainty."""
    rounds: int = Field(default=6, ge=1)
    """Corrections of the service times per trial."""


class CalibrateOptions(FitOptions):
    """How a live system becomes a simulated one."""

    held_out: float = Field(default=0.25, gt=0, lt=0.6)
    """Share of the windows that are compared and not fitted, in blocks of 5 spread over the whole time."""
    most_windows: int = Field(default=300, ge=20)
    """Of a longer recording, blocks of windows spread evenly over it are used."""
