"""Requests and answers of the served policy as pydantic models; the OpenAPI page is made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from tuning.steering.options import Mode, Override
from tuning.steering.window_json import WindowModel

MAX_MOMENTS = 64
Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MemoryModel(_Model):
    """Averages from before the windows, copied from the last answer: rows per group, columns per server."""

    fast_s: list[list[Seconds | None]] = Field(max_length=100)
    """Recent response times in seconds; null where unknown."""
    slow_log: list[list[Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]]] = Field(max_length=100)
    """Slow averages of log(response time / deadline)."""
    learned: dict[Annotated[str, Field(max_length=100)], list[Any]] = Field(default={}, max_length=20)
    """State of an estimator of service times, copied from the last answer."""


class WeightsRequest(_Model):
    """vts documents of two or more moments, oldest first, or windows between such moments."""

    documents: list[dict[str, Any]] | None = Field(default=None, min_length=2, max_length=MAX_MOMENTS)
    """Whole vts JSON documents of one NGINX."""
    windows: list[WindowModel] | None = Field(default=None, min_length=1, max_length=MAX_MOMENTS)
    """Differences of such documents, all of the same servers."""
    memory: MemoryModel | None = None
    """`memory` of the answer that preceded the first of these windows; averages start empty without it."""

    @model_validator(mode="after")
    def _one_of_both(self) -> WeightsRequest:
        if (self.documents is None) == (self.windows is None):
            raise ValueError("give either documents or windows")
        return self


class StateModel(_Model):
    """The encoder's view of every server, in the order of `servers`."""

    cluster: list[int]
    """Most likely cluster."""
    posterior: list[list[float]]
    """Probability of every cluster."""
    novelty: list[float]
    """Distance to the nearest cluster; above 1: outside every cluster."""


class TimesModel(_Model):
    """Service times in seconds, rows per group, and workers per server, for a bundle that sets them."""

    policy: list[list[float]] | None
    baseline: list[list[float]]
    decided: list[list[float]] | None
    """After all limits; null when the decision is not about service times."""
    workers: list[float]


class WeightsAnswer(_Model):
    """The decision."""

    decision: Literal["policy", "baseline", "hold"]
    reason: str
    weights: dict[str, dict[str, int]] | None
    """Group → server → weight; null when nothing should change and the weights in force are unknown."""
    groups: list[str]
    servers: list[str]
    policy: list[list[int]] | None
    """The learned policy's weights before limits, rows per group; null when it failed (see `problem`)."""
    baseline: list[list[int]] | None
    """The inverse-latency heuristic's weights."""
    service_times: TimesModel | None
    """Null for a bundle that sets weights; otherwise all weights above are 1/τ."""
    problem: str
    state: StateModel | None
    memory: MemoryModel | None
    """To be sent with the next windows when they no longer include the first of these."""
    bundle: str
    """Digest of the bundle that answered."""


class TakenBackModel(_Model):
    """A bundle that was swapped in, failed, and was replaced by the one before."""

    folder: str
    """Below the folder of bundles."""
    why: str
    """Its last failure."""
    at: str
    """ISO 8601 in UTC."""


class HealthAnswer(_Model):
    """Whether it serves, and what."""

    status: Literal["ok"]
    bundle: str
    """Digest of the served bundle."""
    taken_back: TakenBackModel | None
    """The latest swap, when it was taken back."""


class PolicyAnswer(_Model):
    """The served bundle."""

    bundle: str
    folder: str
    previous: str | None
    """Folder of the bundle that a rollback would serve."""
    taken_back: TakenBackModel | None
    """The latest swap, when it was taken back."""
    request_types: list[str]
    groups: list[str]
    deadlines_s: list[float]
    clusters: int
    frames: int
    decision: dict[str, Any]
    provenance: dict[str, Any]
    """Seed, command, versions, training curve and evaluation, as the bundle says."""


class BundleRequest(_Model):
    """Which bundle to serve: another, or the previous one."""

    path: str | None = Field(default=None, min_length=1, max_length=1000)
    """Folder of the bundle, below the folder of bundles."""
    rollback: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> BundleRequest:
        if (self.path is None) != self.rollback:
            raise ValueError("give either a path or rollback")
        return self


class OrdersRequest(_Model):
    """Orders to the controller; what is not given stays unchanged."""

    override: Override | None = None
    mode: Mode | None = None
    canary_percent: float | None = Field(
        default=None, ge=0, le=100, validation_alias=AliasChoices("canary_percent", "blend_percent")
    )


class OrdersAnswer(_Model):
    """The orders, and whether a controller runs that applies them within one interval."""

    override: Override
    mode: Mode | None
    canary_percent: float | None
    bundle: str | None
    controller: bool


class Problem(_Model):
    """Why a request was refused."""

    detail: str
