"""The controller in front of live traffic: how long a step takes, whether a client notices, whether memory grows.

A controller that changes something every second in front of live traffic, for minutes or hours, and its record; the
shares of a canary; and how often steering switches between policy and baseline.

`python -m rayjobs.bench.steer --duration-s 3600 --out soak.json`; the bench `steer` does the same for ten minutes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from actuators.contract.control import MAX_WEIGHT, Weights
from actuators.contract.topology import social_network
from actuators.errors import DeepSchedError
from actuators.files import write_json
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.options import Options
from actuators.processes.system import family_cpu_s, resident_mb
from actuators.testbed.options import LiveOptions
from envs.scenarios.catalogue import StudyScenario
from envs.scenarios.lookup import scenario
from rayjobs.bench.parts import canary, steadiness
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from rayjobs.bench.parts.live_steering import half_hour
from rayjobs.bench.parts.memory import growth_percent
from rayjobs.bench.parts.own_systems import own_systems
from rayjobs.bench.parts.serve import make_bundle
from rayjobs.cli.console import console_err
from rayjobs.cli.main import Verb, run_verb
from rayjobs.runs.folder import commit, machine
from rayjobs.steer.controller import Match, SiteController, Step, starting_steering
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.site import Site, embedded_site
from tuning.policy.adviser import Advice, Adviser
from tuning.policy.bundle import load_bundle
from tuning.steering import audit
from tuning.steering.decide import Steering
from tuning.steering.options import SteeringOptions

INTERVAL_S = 1.0
WARM_UP = 60
"""Steps, one a second, after which memory is expected to stay as it is."""
RATE_RPS = 500.0
LOAD = 0.5
"""Share of what the servers can do: at more, a server of the testbed that is late would be blamed on the controller."""
SAY_EVERY_S = 60.0
LIVE_SYSTEM, LIVE_WATCH_S = 7, 300.0
"""Number of the system of the live half hours: unequal servers, balanced in memory."""


class SoakOptions(Options):
    """How long, and where the record goes."""

    duration_s: float = Field(3600.0, gt=0)
    """Length of the run, at one change a second."""
    seed: int = Field(1, ge=0)
    """Seed of the traffic and of the bundle."""
    out: Path = Path("runs/soak.json")
    """File of the record, written anew every minute."""


class Restless(Adviser):
    """Answers with other weights every time, so that every step really changes something."""

    count = 0

    def advise(self, *arguments: object, **more: object) -> Advice:
        advice = super().advise(*arguments, **more)  # type: ignore[arg-type]
        self.count += 1
        values = np.full(self.topology.shape, 60)
        values[:, self.count % len(self.topology.servers)] = MAX_WEIGHT
        return replace(advice, policy=Weights(self.topology, values))


@dataclass
class Soak:
    """What came of it so far.

    Attributes:
        total_ms: collect to in force, of every step that changed something.
        controller_mb, nginx_mb: resident memory after every step; NGINX's is the sum of its processes.
        answered: requests with an answer; failures: those without a good one, by kind.
        illegal, unread: steps after which NGINX had illegal weights in force, or did not say which.
    """

    total_ms: list[float] = field(default_factory=list)
    controller_mb: list[float] = field(default_factory=list)
    nginx_mb: list[float] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    illegal: int = 0
    unread: int = 0

    def see(self, step: Step, site: Site, began_s: float) -> None:
        self.steps += 1
        self.seconds = time.monotonic() - began_s
        if step.applied:
            self.total_ms.append(step.line["latency_ms"]["total"])
        self.controller_mb.append(resident_mb())
        assert isinstance(site.actuator, Nginx)
        self.nginx_mb.append(sum(resident_mb(pid) for pid in family_cpu_s(site.actuator.master_pid)))
        assert site.load is not None
        for window in site.load.poll():
            self.answered += int(window.answered.sum())
            for kind, counts in window.errors.items():
                self.failures[kind] += int(counts.sum())
        try:
            values = site.control().as_weights().values
        except DeepSchedError:
            # A machine that is starved for seconds does not end the record; the step itself was counted.
            self.unread += 1
            return
        self.illegal += not bool(((values >= 1) & (values <= MAX_WEIGHT)).all())

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def record(self) -> dict[str, Any]:
        """Plain JSON."""
        totals = np.array(self.total_ms or [np.nan])
        return {
            "commit": commit(), "machine": machine(), "seconds": round(self.seconds, 1), "steps": self.steps,
            "changes": len(self.total_ms), "answered": self.answered, "failed": self.failed,
            "failures": dict(self.failures), "unread": self.unread,
            "rate_rps": round(self.answered / max(self.seconds, 1e-3), 1), "illegal": self.illegal,
            "step_ms": {f"p{p:g}": round(float(np.percentile(totals, p)), 3) for p in (50, 99, 100)},
            "controller_mb": _ends(self.controller_mb), "nginx_mb": _ends(self.nginx_mb),
            "controller_growth_percent": round(growth_percent(self.controller_mb, WARM_UP), 2),
            "nginx_growth_percent": round(growth_percent(self.nginx_mb, WARM_UP), 2),
        }  # fmt: skip


def soak(duration_s: float, seed: int, work_dir: Path, say: Callable[[Soak], None]) -> Soak:
    """Steers an embedded testbed for `duration_s`; `say` hears of it once a minute.

    Raises DeepSchedError when the testbed cannot be started, LoadError when its load engine dies.
    """
    bundle = make_bundle(work_dir / "bundle", seed)
    live, result = LiveOptions(nginx=NginxOptions(method="least_conn")), Soak()
    with embedded_site(live, _traffic(duration_s), work_dir / "testbed", seed, 2 * duration_s + 60.0) as site:
        controller = _controller(site, bundle, work_dir / "steer")
        began_s = next_s = time.monotonic()
        said_s = began_s
        while time.monotonic() - began_s < duration_s:
            next_s = max(next_s + INTERVAL_S, time.monotonic())
            time.sleep(max(next_s - time.monotonic(), 0))
            result.see(controller.step(), site, began_s)
            if time.monotonic() - said_s >= SAY_EVERY_S:
                said_s = time.monotonic()
                say(result)
    return result


def _traffic(duration_s: float) -> StudyScenario:
    base = replace(scenario("S1"), load=LOAD, duration_s=2 * duration_s + 60.0)
    present_rps = sum(stream.steps[0].rate_rps for stream in base.script(social_network(), 0).streams)
    return replace(base, work_scale=base.work_scale * present_rps / RATE_RPS)


def _controller(site: Site, bundle: Path, where: Path) -> SiteController:
    folder = SteerFolder(where)
    folder.make()
    adviser = Restless(load_bundle(bundle, site.topology))
    deadlines_s = adviser.bundle.problem.deadlines_s
    guards = {"reference_windows": 1, "novel_above": 1e9, "art_margin": 1e9, "min_between_changes_s": 0.5}
    options = SteeringOptions.model_validate({"mode": "active", "guards": guards})
    now_s = time.monotonic()
    steering = starting_steering(
        site, folder, lambda first: Steering(deadlines_s, first, options, now_s, splits=site.splits)
    )
    log = audit.AuditLog(folder.audit, audit.header(steering, deadlines_s, now_s, {}))
    site.collector.begin()
    return SiteController(Match(site, steering, adviser, adviser.frames, log.write), folder)


def _ends(series: list[float]) -> dict[str, float]:
    return {"first": round(series[0], 1), "last": round(series[-1], 1), "most": round(max(series), 1)} if series else {}


def run(options: SoakOptions) -> int:
    """0 when no request failed and the weights in force were always legal."""
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def say(result: Soak) -> None:
        record = result.record()
        write_json(options.out, record)
        console_err().print(
            f"soak: {record['seconds']:.0f} s, {record['answered']} answered, {record['failed']} failed,"
            f" {record['changes']} changes, {record['controller_mb']['last']} MB", markup=False, soft_wrap=True,
        )  # fmt: skip

    with tempfile.TemporaryDirectory(prefix="ds-soak-") as folder:
        result = soak(options.duration_s, options.seed, Path(folder), say)
    say(result)
    return int(result.failed + result.illegal > 0)


SOAK = Verb(
    name="steer_soak",
    summary="the controller in front of live traffic for an hour: failures, legal weights, memory",
    example="python -m rayjobs.bench.steer --duration-s 3600 --out runs/soak.json",
    options=SoakOptions,
    run=run,
)


def measure(context: BenchContext) -> list[Bar]:
    """One change a second under 500 requests/s, for 18 s when quick, else 10 minutes; canary shares; and how often
    steering switches in simulated half hours, of one system when quick, else of ten; then also in two live ones.
    """
    return [
        *_soaked(context), _canary(context), *_steadiness(context), *([] if context.quick else _live(context)),
    ]  # fmt: skip


def _soaked(context: BenchContext) -> list[Bar]:
    def say(result: Soak) -> None:
        context.log(f"{result.seconds:.0f} s, {result.answered} answered, {result.failed} failed")

    result = soak(18.0 if context.quick else 600.0, context.seed, context.work_dir, say)
    total_ms = np.array(result.total_ms)
    rate_rps = result.answered / result.seconds
    how = f"{len(total_ms)} changes in memory, one a second, under {rate_rps:.0f} requests/s on this machine"
    return [
        at_most("control step, collect to in force, p99", float(np.percentile(total_ms, 99)), 30, "ms", how=how),
        figure("control step, p50", float(np.median(total_ms)), "ms", how=how),
        at_most("failed client requests", result.failed, 0, "", how=how, reference=f"{result.answered} answered"),
        at_most("steps with illegal weights in force", result.illegal, 0, "", how="NGINX itself was asked"),
        at_most("memory growth after warm-up", max(growth_percent(result.controller_mb, WARM_UP), 0.0), 5, "%",
                how="resident set of the controller"),
        at_most("memory growth of NGINX", max(growth_percent(result.nginx_mb, WARM_UP), 0.0), 5, "%",
                how="resident sets of its processes"),
    ]  # fmt: skip


def _canary(context: BenchContext) -> Bar:
    seconds = 2.0 if context.quick else 20.0
    found = canary.measured(_traffic(240.0), context.work_dir / "canary", context.seed, seconds)
    told = ", ".join(f"{away:.2f} at {percent:g} %" for percent, away in found.items())
    how = f"in memory, round robin, {seconds:g} s each: {told}"
    return at_most("canary: largest deviation of a share", max(found.values()), 3, "standard errors", how=how)


def _steadiness(context: BenchContext) -> list[Bar]:
    systems = own_systems(context.seed)[: 1 if context.quick else None]
    options = SteeringOptions(mode="active")
    found: dict[str, list[int]] = {"wave": [], "change": []}
    acted: list[float] = []
    for system in systems:
        adviser = steadiness.fitted(system, context.seed, context.work_dir / system.name)
        for name, slower_at_s in (("wave", None), ("change", steadiness.CHANGE_S)):
            scenario = steadiness.Waving(system, slower_at_s)
            decisions = list(steadiness.steer(adviser, scenario, context.seed + 100, steadiness.SECONDS, options))
            switched = steadiness.switches([(each.source, each.reason) for each in decisions])
            found[name].append(len(switched))
            if name == "wave":
                acted.append(sum(d.source == "policy" for d in decisions) / len(decisions))
            context.log(f"{system}, {name}: {'; '.join(f'{at} s {why}' for at, why in switched) or 'no switch'}")
    how = f"{len(systems)} systems of their own, 30 simulated minutes each, bundles fitted to them, guards as they come"
    return [
        at_most("switches under a daily wave, most of a system", max(found["wave"]), 2, "", how=how),
        at_most("switches when a server becomes twice as slow, most of a system", max(found["change"]), 2, "", how=how),
        figure("time in which the policy acts under the wave", 100 * float(np.mean(acted)), "%", how=how),
    ]


def _live(context: BenchContext) -> list[Bar]:
    system, bars = own_systems(context.seed)[LIVE_SYSTEM], list[Bar]()
    for name, slower in (("a daily wave", False), ("a daily wave and a server that becomes twice as slow", True)):
        seen = half_hour(
            system, context.work_dir / f"live-{slower}", context.seed, slower=slower, watch_s=LIVE_WATCH_S,
            seconds=steadiness.SECONDS,
        )  # fmt: skip
        told = "; ".join(f"{at} s {why}" for at, why in seen.switched) or "no switch"
        context.log(f"{system}, live, {name}: {told}")
        how = f"live: {system}; onboarded, then active for 30 minutes, {seen.decisions} decisions, {seen.acted:.0%} of"
        how += f" them the policy's; {seen.answered} requests answered"
        bars += [
            at_most(f"switches, live, {name}", len(seen.switched), 2, "", how=how),
            at_most(f"failed client requests, live, {name}", seen.failed, 0, "", how=how),
        ]
    return bars


if __name__ == "__main__":
    sys.exit(run_verb(SOAK))
