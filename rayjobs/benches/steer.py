"""The controller in front of live traffic: how long a step takes, whether a client notices, whether memory grows."""

from __future__ import annotations

import numpy as np

from rayjobs.bench import Bar, BenchContext, at_most, figure
from rayjobs.steer_soak import Soak, soak


def measure(context: BenchContext) -> list[Bar]:
    """One change a second under 500 requests/s; 40 s when quick, else 10 minutes."""

    def say(result: Soak) -> None:
        context.log(f"{result.seconds:.0f} s, {result.answered} answered, {result.failed} failed")

    result = soak(40.0 if context.quick else 600.0, context.seed, context.work_dir, say)
    total_ms = np.array(result.total_ms)
    rate_rps = result.answered / result.seconds
    how = f"{len(total_ms)} changes in memory, one a second, under {rate_rps:.0f} requests/s on this machine"
    return [
        at_most("control step, collect to in force, p99", float(np.percentile(total_ms, 99)), 30, "ms", how=how),
        figure("control step, p50", float(np.median(total_ms)), "ms", how=how),
        at_most("failed client requests", result.failed, 0, "", how=how, reference=f"{result.answered} answered"),
        at_most("steps with illegal weights in force", result.illegal, 0, "", how="NGINX itself was asked"),
        at_most("memory growth after warm-up", max(result.growth_percent(result.controller_mb), 0.0), 5, "%",
                how="resident set of the controller"),
        at_most("memory growth of NGINX", max(result.growth_percent(result.nginx_mb), 0.0), 5, "%",
                how="resident sets of its processes"),
    ]  # fmt: skip
