"""Options of a sweep; apart from `tuning.sweep` because that imports torch and Ray."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from actuators.options import Options
from tuning.judge import JudgeOptions
from tuning.space import DEFAULT_SPACE, Domain, TrialOptions

Search = Literal["random", "grid", "optuna"]
Scheduler = Literal["asha", "pbt", "none"]


class SearchOptions(Options):
    """What is tried, how it is drawn, and what ends early."""

    space: dict[str, Domain] = DEFAULT_SPACE
    """Option → list or range, for example {encoder.clusters: [2, 4], training.interval_s: {low: 0.5, high: 2}}."""
    base: TrialOptions = Field(default_factory=TrialOptions)
    """Options that all trials start from."""
    testbed: Literal["simulated", "live"] = "simulated"
    """What trials train on. A live one claims its testbeds with its first step and keeps them to its end."""
    testbeds: int = Field(default=1, ge=1)
    """Live testbeds of each trial, stepped together."""
    trials: int = Field(default=32, ge=1)
    """Trials; with `grid`, repetitions of the whole grid."""
    search: Search = "optuna"
    """`random`, `grid` (every combination of the lists) or `optuna` (tree-structured Parzen estimator)."""
    scheduler: Scheduler = "asha"
    """`asha` ends the worse trials early, `pbt` lets them copy better ones and vary, `none` trains all to the end."""
    grace_share: float = Field(default=0.25, gt=0, le=1)
    """ASHA: share of the steps that every trial gets at least."""
    reduction: int = Field(default=3, ge=2)
    """ASHA: one in so many goes on at each rung."""
    perturb_share: float = Field(default=0.2, gt=0, le=1)
    """PBT: share of the steps between two exchanges. Trials for which there is no room run in turn, one such share
    each."""
    concurrent: int = Field(default=0, ge=0)
    """Trials at once; 0 for as many as the cluster holds, and for one at a time on live testbeds of this machine. A
    population always runs as many as there is room for."""
    trial_cpus: float = Field(default=1.0, gt=0)
    """CPUs that each trial claims; with 0.5, four trials share two cores and none idles while one is replaced."""
    retries: int = Field(default=3, ge=0)
    """How often a trial whose process died is gone on with from its last checkpoint."""
    checkpoint_every: int = Field(default=4, ge=1)
    """Training iterations between two checkpoints."""
    validation_episodes: int = Field(default=8, ge=1)
    """Simulated episodes on which every policy is validated after each iteration."""
    validation_s: float = Field(default=40.0, gt=0)
    """Simulated seconds of each of them; on live testbeds, real seconds for which least_conn is watched first. Their
    score is what their own intervals say, exploration included."""


class ConfirmOptions(Options):
    """The best trials judged on live testbeds at the end."""

    best: int = Field(default=1, ge=0)
    """How many of the best trials; 0 leaves it out."""
    testbeds: int = Field(default=2, ge=1)
    """Live testbeds, each with arrivals of its own, on which every one of them is judged at the same time."""
    judge: JudgeOptions = JudgeOptions(rounds=3, warm_up_s=1.5, measure_s=5.0)
    """Blocks of the judgement."""
