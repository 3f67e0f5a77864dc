"""The controller in front of live traffic: how long a step takes, whether a client notices, whether memory grows."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from actuators.control import Weights
from actuators.nginx_options import NginxOptions
from actuators.parts import LiveOptions
from rayjobs.bench import Bar, BenchContext, at_most, figure
from rayjobs.serve_bench_parts import make_bundle
from rayjobs.steer_folder import SteerFolder
from rayjobs.steer_loop import Controller, starting_steering
from rayjobs.steer_site import Site, embedded_site
from tuning import audit
from tuning.advice import Advice
from tuning.adviser import Adviser
from tuning.bundle import load_bundle
from tuning.steering import Steering
from tuning.steering_options import SteeringOptions

INTERVAL_S = 1.0
WARM_UP = 10


class Restless(Adviser):
    """Answers with other weights every time, so that every step really changes something."""

    def advise(self, *arguments: object, **more: object) -> Advice:
        advice = super().advise(*arguments, **more)  # type: ignore[arg-type]
        self.count = getattr(self, "count", 0) + 1
        values = np.full(self.topology.shape, 60)
        values[:, self.count % 2] = 100
        return Advice(Weights(self.topology, values), advice.baseline, advice.state, advice.memory)


def measure(context: BenchContext) -> list[Bar]:
    """One change a second under the study's S1 load; 40 s when quick, else 10 minutes."""
    steps = 40 if context.quick else 600
    folder = make_bundle(context.work_dir / "bundle", context.seed)
    live = LiveOptions(nginx=NginxOptions(method="least_conn"))
    with embedded_site(live, "S1", context.work_dir / "testbed", context.seed, steps * 2 + 60.0) as site:
        controller = _controller(site, folder, context.work_dir / "steer")
        lines, memory_mb = [], []
        next_s = time.monotonic()
        for _ in range(steps):
            next_s += INTERVAL_S
            time.sleep(max(next_s - time.monotonic(), 0))
            lines.append(controller.step().line)
            memory_mb.append(_memory_mb())
        assert site.load is not None
        site.load.stop()
        summary = site.load.finish(20.0)
    failed = sum(int(counts.sum()) for counts in summary.errors.values())
    changed = [line["latency_ms"]["total"] for line in lines[WARM_UP:] if line["applied"]]
    rate_rps = float(summary.answered.sum() / max(summary.end_s - summary.start_s, 1e-3))
    how = f"{len(changed)} changes in memory, one a second, under {rate_rps:.0f} requests/s on this machine"
    growth = memory_mb[-1] / memory_mb[min(WARM_UP, len(memory_mb) - 1)] - 1
    return [
        at_most("control step, collect to in force, p99", float(np.percentile(changed, 99)), 30, "ms", how=how),
        figure("control step, p50", float(np.median(changed)), "ms", how=how),
        at_most("failed client requests", failed, 0, "", how=how, reference=f"{int(summary.answered.sum())} answered"),
        at_most("memory growth after warm-up", 100 * max(growth, 0.0), 5, "%", how="resident set of the controller"),
    ]


def _controller(site: Site, bundle: Path, where: Path) -> Controller:
    folder = SteerFolder(where)
    folder.make()
    adviser = Restless(load_bundle(bundle, site.topology))
    deadlines_s = adviser.bundle.problem.deadlines_s
    guards = {"reference_windows": 1, "novel_above": 1e9, "art_margin": 1e9, "min_between_changes_s": 0.5}
    options = SteeringOptions.model_validate({"mode": "active", "guards": guards})
    now_s = time.monotonic()
    steering = starting_steering(site, folder, lambda first: Steering(deadlines_s, first, options, now_s))
    log = audit.AuditLog(folder.audit, audit.header(steering, deadlines_s, now_s, {}))
    site.collector.begin()
    return Controller(site, steering, adviser, adviser.frames, folder, log.write)


def _memory_mb() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 2**20
