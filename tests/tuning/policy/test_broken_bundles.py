"""Bundles from strangers: whatever is broken in one, it is refused in one line, or it decides.

Memory is bounded, and nothing passes the checks that would stop a running controller later.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import pytest

from actuators.contract.control import MAX_WEIGHT, Control, ServiceTimes, Weights
from actuators.contract.window import Window
from actuators.errors import BundleError
from envs.environment.actions import ActionOptions
from envs.environment.problem import DecisionOptions
from envs.simulator.testbed import SimulatedTestbed
from tests.support.broken_bundles import Spoil, cases, file_cases
from tests.support.paths import DATA
from tests.support.problems import TOPOLOGY, demo_scenario
from tests.support.steering_cases import times_bundle, trained_bundle
from tuning.options import ModelOptions
from tuning.policy.adviser import Adviser
from tuning.policy.bundle import Bundle, check_bundle, load_bundle
from tuning.policy.model import net_for

pytestmark = pytest.mark.thorough

MOST_MIB = 70
"""More than any case needs for itself; the one that is large when unpacked would take 100 twice."""
LONGEST_S = 1e6
"""NGINX takes no service time from here on."""
EVERY = 83
"""Of the broken values and arrays, the normal run takes one in so many; of broken files, all."""


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def ratios_bundle() -> Bundle:
    good = trained_bundle()
    own = replace(good.problem, options=DecisionOptions(action=ActionOptions(kind="ratios"), frames=2))
    return Bundle(net_for(own, ModelOptions()), own, ModelOptions(), {"command": "a test"})


@lru_cache
def recorded(count: int) -> list[Window]:
    """Windows of an NGINX that balances in memory, whose samples an estimator of service times needs."""
    with SimulatedTestbed(TOPOLOGY, "expected_delay") as testbed:
        testbed.reset(demo_scenario(), 1)
        return [testbed.advance(1.0) for _ in range(count)]


def outcome(folder: Path, *, checked: bool) -> str:
    """Empty when the bundle is refused as it should be or decides; what is wrong otherwise."""
    try:
        if checked:
            check_bundle(folder)
        bundle = load_bundle(folder)
        adviser = Adviser(bundle)
        if bundle.problem.topology.shape != (3, 3):
            return ""  # a good bundle of another system
        advice = adviser.advise(recorded(3)[-1:] * bundle.problem.options.frames)
    except BundleError as error:
        line = str(error)
        told = "\n" not in line and len(line) < 700 and str(folder) in error.where
        return "" if told else f"refused in a bad line: {line[:200]}"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"{type(error).__name__}: {error}"[:200]
    if advice.problem:
        return f"decides nothing: {advice.problem}"
    return odd(advice.policy) or odd(advice.baseline)


def odd(control: Control | None) -> str:
    """What no NGINX takes; empty for a control that it takes."""
    if isinstance(control, Weights) and not 0 <= control.values.min() <= control.values.max() <= MAX_WEIGHT:
        return f"weights {control.values.tolist()}"
    if isinstance(control, ServiceTimes) and not (control.tau_s < LONGEST_S).all():
        return f"service times {control.tau_s.tolist()}"
    return ""


def wrong(good: Path, chosen: Sequence[tuple[str, Spoil]]) -> list[str]:
    found, folder = [], good.parent / "broken"
    # Also imports what deciding needs, which must not count as memory that a broken bundle takes.
    assert not outcome(good, checked=True)
    for name, spoil in chosen:
        shutil.copytree(good, folder)
        spoil(folder)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
        before_mib = peak_mib()
        for checked in (True, False):
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                if why := outcome(folder, checked=checked):
                    found.append(f"{name}, {'checked' if checked else 'loaded at once'}: {why}")
        if peak_mib() - before_mib > MOST_MIB:
            found.append(f"{name}: takes {peak_mib() - before_mib:.0f} MiB")
        shutil.rmtree(folder)
    return found


@pytest.mark.parametrize("kind", ["weights", "service_times"])
def test_a_broken_bundle_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    shutil.copytree(DATA / "witness" / kind, tmp_path / "good")
    every = list(cases(tmp_path / "good"))
    assert len({name for name, _ in every}) == len(every) > 2000
    some = [*every[::EVERY], *file_cases()] if kind == "weights" else every[1::EVERY]
    assert not wrong(tmp_path / "good", some)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "ratios", "idle", "ratio"])
def test_every_broken_bundle_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    made = {"weights": trained_bundle, "ratios": ratios_bundle}.get(kind) or partial(times_bundle, kind)
    made().save(tmp_path / "good")
    assert not wrong(tmp_path / "good", list(cases(tmp_path / "good")))
