"""Bench `fidelity`: live testbeds against the simulator that was calibrated on their own statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import BalancingMethod
from actuators.contract.topology import social_network
from actuators.contract.window import Window
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from envs.calibration.calibrate import calibrate
from envs.calibration.options import CalibrateOptions
from envs.calibration.result import MEAN_BAR, P99_BAR, Calibration, HeldOutComparison
from envs.environment.phase import ObserveOptions, watch
from envs.scenarios.catalogue import LIVE_WORK_SCALE
from envs.scenarios.lookup import scenario
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure

SCENARIOS = ("S1", "S2", "S3")
METHOD: BalancingMethod = "least_conn"
TOPOLOGY = social_network()


@dataclass(frozen=True)
class _Length:
    """How long a scenario is watched, and how it is fitted."""

    observe: ObserveOptions
    calibrate: CalibrateOptions


FULL = _Length(
    ObserveOptions(duration_s=80.0, explore_s=20.0, skip_s=3.0),
    # A p99 of a rare request type needs many requests: two fifths of the windows are compared and not fitted.
    CalibrateOptions(method=METHOD, held_out=0.4, bootstraps=2),
)
QUICK = _Length(
    ObserveOptions(duration_s=10.0, explore_s=0.0, skip_s=1.0),
    CalibrateOptions(method=METHOD, held_out=0.4, bootstraps=2, replicas=1, rounds=3, workers=4),
)


def measure(context: BenchContext) -> Sequence[Bar]:
    """Latencies of the simulator against a live testbed (docs/results.md#bench-fidelity)."""
    return list(_measure(context))


def _measure(context: BenchContext) -> Iterator[Bar]:
    length = QUICK if context.quick else FULL
    for name in SCENARIOS[-1:] if context.quick else SCENARIOS:
        windows = _watched(context, name, length.observe)
        context.log(f"{name}: calibrating on {len(windows)} windows")
        found = calibrate(windows, TOPOLOGY, length.calibrate, context.seed, f"live {name}")
        yield from _bars(name, found, windows)


def _watched(context: BenchContext, name: str, options: ObserveOptions) -> Sequence[Window]:
    """Windows of a live testbed under equal, then under exploring weights."""
    seconds = 2 * (options.skip_s + options.duration_s + options.explore_s)
    context.log(f"{name}: a live testbed for about {seconds / 2:.0f} s")
    played = scenario(name, duration_s=seconds + 10.0, work_scale=LIVE_WORK_SCALE)
    work_dir = context.work_dir / name
    with start_local_testbed(TOPOLOGY, LiveOptions(), work_dir, seed=context.seed) as testbed:
        seen = watch(testbed, played, METHOD, options, context.seed)
    return [*seen.equal, *seen.exploring]


def _bars(name: str, found: Calibration, windows: Sequence[Window]) -> Iterator[Bar]:
    seen = f"{found.observed.windows} windows ({found.observed.requests} requests), two fifths held out"
    how = f"{METHOD}, {seen}; send delay p99 {_late(windows)}"
    for row in found.held_out:
        if row.server:
            continue
        mean, _, p99 = row.errors()
        yield _bar(f"{name}, {row.group}: simulated mean off the live one", mean, MEAN_BAR, row, 0, how)
        yield _bar(f"{name}, {row.group}: simulated p99 off the live one", p99, P99_BAR, row, 2, how)
    truth = _true_service_ms(name)
    off = float(abs(np.log(found.parameters.service_array_ms / truth)).max())
    best = found.parameters
    reference = f"{best.workers} workers, cv {best.service_cv:.2f}, overhead {best.overhead_ms:.2f} ms"
    yield figure(f"{name}: largest error of a fitted service time", 100 * (np.exp(off) - 1), "%", how=how,
                 reference=reference)  # fmt: skip


def _bar(text: str, error: float, limit: float, row: HeldOutComparison, place: int, how: str) -> Bar:
    reference = f"live {row.live_ms[place]:.1f} ms, simulated {row.simulated_ms[place]:.1f} ms ({error:+.1%})"
    return at_most(text, 100 * abs(error), 100 * limit, "%", how=f"{row.requests} requests, {how}", reference=reference)


def _true_service_ms(name: str) -> FloatArray:
    """What the emulated servers were told, ``[groups, servers]``."""
    script = scenario(name, work_scale=LIVE_WORK_SCALE).script(TOPOLOGY, 1)
    speeds = np.array([profile.speeds for profile in script.servers]).T
    truth: FloatArray = np.array(script.mean_service_s)[:, None] * 1e3 / speeds
    return truth


def _late(windows: Sequence[Window]) -> str:
    """What the machine itself did to the client: median and worst window."""
    late_ms = [window.client.send_delay_p99_ms for window in windows if window.client is not None]
    return f"{np.median(late_ms):.2f} ms, at worst {max(late_ms):.1f} ms" if late_ms else "unknown"
