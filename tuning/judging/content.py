"""What readers of `evaluation.json` and of `blocks.jsonl` rely on: types, shapes and ranges, checked before use.

A file that somebody changed is refused by the name of its field.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from actuators.contract import histogram
from tuning.judging.statistics import METRICS

Count = Annotated[int, Field(ge=-(2**53), le=2**53)]
Ratio = Annotated[float, Field(ge=0)]
_Counts = list[Count]


class WindowRecord(TypedDict):
    """One window of a measured block as it stands in `evaluation.json`; lists are ``[groups][servers]``."""

    start_s: float
    end_s: float
    drain: bool
    requests: list[list[int]]
    mean_ms: list[list[float | None]]
    errors: list[list[int]]
    weights: list[list[int]]
    shares: list[list[float]]
    true_shares: list[list[float]]
    client: dict[str, Any] | None
    faults: list[str]


class _Part(BaseModel):
    # Numbers stay what they are; what later versions add is kept.
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class _Policy(_Part):
    """A policy of `evaluation.json`; its values stand beside these, by the name of the metric."""

    ratios: dict[str, Ratio | None]
    median_ratios: dict[str, Ratio | None]
    intervals: dict[str, tuple[Ratio, Ratio] | None]
    paired_rounds: Count
    accounting: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_all_metrics(self) -> Self:
        values = self.model_extra or {}
        for metric in METRICS:
            if any(metric not in table for table in (values, self.ratios, self.median_ratios, self.intervals)):
                raise ValueError(f"{metric} is missing")
            if not isinstance(values[metric], int | float | None):
                raise ValueError(f"{metric} is not a number")
        return self


class _Accounting(_Part):
    sent: Count
    discarded_blocks: Count


class _Judged(_Part):
    policy: str
    core_wait_ms: float | None = None


class _Best(_Part):
    policy: str


class EvaluationContent(_Part):
    """An `evaluation.json`, as `compare` and `reproduce` read it."""

    scenario: str
    testbed: str = ""
    created: str
    reference: str
    learned: str | None
    seed: Count
    seeds: Count = 1
    rounds: Count
    warm_up_s: float
    measure_s: float
    accounting: _Accounting | None
    policies: dict[str, _Policy]
    best_heuristic: _Best | None
    blocks: list[_Judged]


class _Tally(_Part):
    planned: _Counts
    sent: _Counts
    answered: _Counts
    late: _Counts
    retried: _Counts
    nginx_requests: _Counts
    nginx_errors: _Counts
    uncounted: _Counts | None = None
    errors: dict[str, _Counts]
    latency_counts: list[list[tuple[Annotated[int, Field(ge=0, lt=histogram.SIZE)], Count]]]
    latency_s_sum: list[float]

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        counts = (self.planned, self.answered, self.late, self.retried, self.nginx_requests, self.nginx_errors)
        lengths = {*map(len, counts), *map(len, self.errors.values()), len(self.latency_counts)}
        if lengths | {len(self.latency_s_sum), len(self.uncounted or self.sent)} != {len(self.sent)}:
            raise ValueError("lists of different lengths")
        return self


class _Event(_Part):
    at_s: float
    server: str
    text: str


class BlockLine(_Part):
    """A line of `blocks.jsonl`."""

    round: Count
    position: Count
    policy: str
    # Also oracles of the simulator and other balancers have one.
    method: Annotated[str, Field(min_length=1, max_length=200)]
    seed: Count
    warm_up_seed: Count
    run_seed: Count = 0
    created: str
    duration_s: Annotated[float, Field(ge=0)]
    changes: Count
    flags: list[str]
    events: list[_Event]
    utilisation: list[float] = []
    core_wait_ms: float | None = None
    proxy_cpu_s: float | None = None
    tally: _Tally
    windows: list[WindowRecord]

    @model_validator(mode="after")
    def _has_one_shape(self) -> Self:
        shapes = {
            tuple(map(len, table))
            for window in self.windows
            for table in (
                window["requests"], window["mean_ms"], window["errors"],
                window["weights"], window["shares"], window["true_shares"],
            )
        }  # fmt: skip
        if len(shapes) > 1 or any(len(shape) != len(self.tally.sent) for shape in shapes):
            raise ValueError("windows of different groups or servers")
        return self
