"""`deepsched observe --check`: what the encoder has seen is not novel, a system that changed is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from problems import TOPOLOGY, demo_scenario, observed, problem
from windows import window

from actuators.errors import BundleError, ConfigError, DataError
from actuators.files import write_json
from actuators.topology import Topology, social_network
from actuators.window import Window
from envs.recalibration import check, load_known
from envs.simulation import SimulatedTestbed, SimulationOptions
from rayjobs.cli import main


def play(overhead_ms: float) -> list[Window]:
    with SimulatedTestbed(TOPOLOGY, options=SimulationOptions(overhead_ms=overhead_ms)) as testbed:
        testbed.reset(demo_scenario(), 5)
        return [testbed.advance(0.5) for _ in range(50)]


def observed_folder(folder: Path) -> Path:
    problem().encoder.save(folder / "encoder.npz")
    seconds = dict(zip(TOPOLOGY.request_types, (observed().deadlines.seconds * 1e3).tolist(), strict=True))
    write_json(folder / "deadlines.json", {"deadlines_ms": seconds})
    return folder


def test_the_same_system_is_known_and_a_slower_one_is_novel() -> None:
    encoder, deadlines_s = problem().encoder, problem().deadlines_s
    same = check(play(0.0), TOPOLOGY, encoder, deadlines_s)
    slower = check(play(40.0), TOPOLOGY, encoder, deadlines_s)
    assert same.windows == slower.windows == 40
    assert same.share < 0.2
    assert same.typical < 1.0
    assert slower.share > 0.9


def test_too_few_windows_are_no_answer() -> None:
    windows = [window(seed=i) for i in range(10)]
    with pytest.raises(DataError, match="10 usable windows"):
        check(windows, TOPOLOGY, problem().encoder, problem().deadlines_s)


def test_groups_are_put_into_the_encoders_order(tmp_path: Path) -> None:
    folder = observed_folder(tmp_path)
    turned = Topology(tuple(reversed(social_network(("a:1", "b:1")).groups)))
    topology, encoder, deadlines_s = load_known(folder, turned)
    assert topology.request_types == TOPOLOGY.request_types
    assert encoder.names == problem().encoder.names
    assert np.allclose(deadlines_s, problem().deadlines_s)


def test_other_request_types_and_empty_folders_are_refused(tmp_path: Path) -> None:
    folder = observed_folder(tmp_path)
    other = Topology((replace(TOPOLOGY.groups[0], request_type="search"), *TOPOLOGY.groups[1:]))
    with pytest.raises(ConfigError, match="search"):
        load_known(folder, other)
    (folder / "deadlines.json").unlink()
    with pytest.raises(BundleError, match="no deadlines"):
        load_known(folder, TOPOLOGY)


def test_a_check_needs_snapshots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", "--check", str(tmp_path)]) == 2
    assert "give --snapshots FILE" in capsys.readouterr().err
