"""Bundles from strangers: whatever is broken in one, it is refused in one line, or it decides.

Memory is bounded, and nothing passes the checks that would stop a running controller later.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from actuators.contract.control import Weights
from actuators.errors import BundleError
from envs.environment.actions import ActionOptions
from envs.environment.problem import DecisionOptions
from tests.support.broken_bundles import Spoil, cases, file_cases
from tests.support.paths import DATA
from tests.support.steering_cases import trained_bundle
from tests.support.windows import window
from tuning.options import ModelOptions
from tuning.policy.adviser import Adviser
from tuning.policy.bundle import Bundle, check_bundle, load_bundle
from tuning.policy.model import net_for

MOST_MIB = 70
"""More than any case needs for itself; the one that is large when unpacked would take 100 twice."""
EVERY = 83
"""Of the broken values and arrays, the normal run takes one in so many; of broken files, all."""


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def ratios_bundle() -> Bundle:
    good = trained_bundle()
    own = replace(good.problem, options=DecisionOptions(action=ActionOptions(kind="ratios"), frames=2))
    return Bundle(net_for(own, ModelOptions()), own, ModelOptions(), {"command": "a test"})


def outcome(folder: Path, *, checked: bool) -> str:
    """Empty when the bundle is refused as it should be or decides; what is wrong otherwise."""
    try:
        if checked:
            check_bundle(folder)
        bundle = load_bundle(folder)
        adviser = Adviser(bundle)
        if bundle.problem.topology.shape != (3, 3):
            return ""  # a good bundle of another system
        advice = adviser.advise([window()] * bundle.problem.options.frames)
    except BundleError as error:
        line = str(error)
        told = "\n" not in line and len(line) < 700 and str(folder) in error.where
        return "" if told else f"refused in a bad line: {line[:200]}"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"{type(error).__name__}: {error}"[:200]
    if advice.problem:
        return f"decides nothing: {advice.problem}"
    if isinstance(advice.policy, Weights) and not 0 <= advice.policy.values.min() <= advice.policy.values.max() <= 100:
        return f"weights {advice.policy.values.tolist()}"
    return ""


def wrong(good: Path, chosen: Sequence[tuple[str, Spoil]]) -> list[str]:
    found, folder = [], good.parent / "broken"
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


def test_a_broken_bundle_is_refused_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(DATA / "witness" / "weights", tmp_path / "good")
    every = list(cases(tmp_path / "good"))
    assert len({name for name, _ in every}) == len(every) > 2000
    assert not wrong(tmp_path / "good", [*every[::EVERY], *file_cases()])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "ratios"])
def test_every_broken_bundle_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    {"weights": trained_bundle, "ratios": ratios_bundle}[kind]().save(tmp_path / "good")
    assert not wrong(tmp_path / "good", list(cases(tmp_path / "good")))
