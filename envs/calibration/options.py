"""Options of a calibration and of admission by it; apart because `--help` must not import the compiled simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from actuators.contract.admission import AdmissionNumbers, AdmissionRule
from actuators.contract.control import DirectMethod
from actuators.options import NOT_GIVEN, Only, Options

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FitOptions(Options):
    """How the simulator is fitted."""

    method: DirectMethod = "least_conn"
    """Balancing method that was in force; a recording does not contain it."""
    load_balancers: int = Field(default=1, ge=1)
    """Number of NGINX workers that share no balancing state; 1 when the upstreams have a `zone`."""
    workers: int | None = Field(default=None, ge=1)
    """Requests that a server serves at once; estimated when not given."""
    replicas: int = Field(default=3, ge=1)
    """Simulated systems per trial; more reduce noise and cost time."""
    bootstraps: int = Field(default=20, ge=2)
    """Number of fits to resampled windows, from which the intervals are taken."""
    rounds: int = Field(default=6, ge=1)
    """Maximum number of corrections of the service times per trial."""


class CalibrateOptions(FitOptions):
    """How the simulator is fitted and compared."""

    held_out: float = Field(default=0.25, gt=0, lt=0.6)
    """Share of the windows that are held out for the comparison, in blocks of 5 spread over the recording."""
    priorities: dict[str, Annotated[float, Field(gt=1)]] = Field(default={})
    """Priority of a group, greater than 1: the higher, the tighter its deadline; 2 when not given."""
    deadlines_ms: dict[str, Annotated[float, Field(gt=0, le=1e7)]] = Field(default={})
    """Deadline of a group; mean + (1 + 1 / priority) standard deviations of its response times when not given."""
    most_windows: int = Field(default=900, ge=20)
    """Maximum number of windows; of a longer recording, blocks spread evenly over it are used."""


class AdmissionPlan(Options):
    """How the groups of a calibration are admitted."""

    rule: AdmissionRule = "aimd_thresh"
    """How the limits follow the system (docs/admission.md#the-tick)."""
    importance: dict[str, Positive] = Field({})
    """Group → what an answer in time is worth; 1 when not given."""
    never_refused: tuple[str, ...] = ()
    """Groups of which no request is refused: they fill the room of the others. All may be refused when not given."""
    deadlines_ms: dict[str, Positive] = Field({})
    """Group → deadline in milliseconds; when not given, that of `calibrate.deadlines_ms`, or else the mean and six
    standard deviations of the recorded response times."""
    load_balancers: int = Field(1, ge=1, le=10_000)
    """NGINX machines that share the traffic evenly, of which one was recorded."""
    numbers: Annotated[AdmissionNumbers, Only(numbers_file=NOT_GIVEN)] = AdmissionNumbers()
    """Numbers of the rule."""
    numbers_file: Path | None = None
    """What `deepsched admission tune` has found: `admission.json`, or the folder of a search or of a bundle with it;
    `numbers` when not given."""
