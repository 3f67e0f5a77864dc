"""The record: whole or counted as lost, rotating, and decided again alike by the same bundle."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actuators.contract.window import AdmissionWindow, Fault
from actuators.errors import DataError
from envs.simulator.testbed import SimulatedTestbed
from tests.support.paths import DATA
from tests.support.problems import TOPOLOGY, demo_scenario, problem
from tests.support.steering_cases import EQUAL, UNEVEN, advice, recorded, trained_bundle
from tests.support.windows import window
from tuning.options import ModelOptions
from tuning.policy.adviser import Adviser, Recent
from tuning.policy.bundle import Bundle
from tuning.policy.model import EquivariantNet
from tuning.steering import audit, window_json
from tuning.steering.audit import AuditLog
from tuning.steering.options import AuditOptions
from tuning.steering.window_json import WindowModel


def test_a_window_survives_json() -> None:
    seen = window(12.0, errors=3, faults=(Fault("reload", "reloaded"),))
    data = json.loads(json.dumps(window_json.to_json(seen)))
    back = window_json.from_json(WindowModel.model_validate(data), TOPOLOGY)
    for name in ("requests", "response_ms_sum", "latency_histogram", "weight", "down", "server_errors"):
        assert np.array_equal(getattr(back, name), getattr(seen, name)), name
    assert (back.faults, back.bounds_ms, back.start_s, back.end_s) == (
        seen.faults, seen.bounds_ms, seen.start_s, seen.end_s,
    )  # fmt: skip
    assert window_json.digest(window_json.to_json(back)) == window_json.digest(data)


def admitted() -> AdmissionWindow:
    rows = [np.array([row + 3, row, 0]) for row in range(7)]
    return AdmissionWindow(*rows, limits=np.array([4.5, np.inf, 9.0]), peak=8)


def test_counts_of_admission_survive_json() -> None:
    data = json.loads(json.dumps(window_json.to_json(replace(window(), admission=admitted()))))
    back = window_json.from_json(WindowModel.model_validate(data), TOPOLOGY).admission
    assert back is not None
    for name, values in vars(admitted()).items():
        assert np.array_equal(getattr(back, name), values), name
    data["admission"]["late"].pop()
    with pytest.raises(DataError, match=r"admission\.late"):
        window_json.from_json(WindowModel.model_validate(data), TOPOLOGY)


@pytest.mark.parametrize("table", ["requests", "histogram", "down", "weight"])
def test_tables_of_the_wrong_size_are_refused(table: str) -> None:
    data = window_json.to_json(window())
    data[table] = data[table][:-1]
    with pytest.raises(DataError, match="wrong size"):
        window_json.from_json(WindowModel.model_validate(data), TOPOLOGY)


def test_the_same_bundle_decides_the_same_again(tmp_path: Path) -> None:
    recorded(tmp_path / "audit.jsonl")
    again = list(audit.replay(tmp_path / "audit.jsonl", Adviser(trained_bundle())))
    assert len(again) == 25
    assert [r.line["reason"] for r in again if not r.same] == []
    assert all(r.intact for r in again)
    assert {r.line["source"] for r in again} >= {"policy", "baseline", "hold"}


@pytest.mark.parametrize("name", ["weights", "service_times"])
def test_logs_of_earlier_releases_are_decided_alike(name: str) -> None:
    """Written by commit 3889cd8, before the decision core was unified."""
    again = list(audit.replay(DATA / "audit" / f"{name}.jsonl"))
    assert len(again) >= 6
    assert [r.line["reason"] for r in again if not (r.same and r.intact)] == []
    assert {r.line["source"] for r in again} >= {"policy", "baseline"}


def test_another_bundle_decides_otherwise_and_the_record_alone_decides_alike(tmp_path: Path) -> None:
    recorded(tmp_path / "audit.jsonl")
    other = list(audit.replay(tmp_path / "audit.jsonl", Adviser(trained_bundle(seed=5))))
    assert any(not r.same for r in other)
    alone = list(audit.replay(tmp_path / "audit.jsonl"))
    assert all(r.same for r in alone)


def test_a_window_that_was_changed_later_shows(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    recorded(path, 5)
    lines = path.read_text().splitlines()
    forged = json.loads(lines[3])
    forged["window"]["requests"][0][0] += 1
    lines[3] = json.dumps(forged)
    path.write_text("\n".join(lines))
    assert [r.intact for r in audit.replay(path)] == [True, True, False, True, True]


def test_it_rotates_and_reads_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    recorded(path, 25, AuditOptions(max_bytes=20_000, keep=20))
    assert (tmp_path / "audit.jsonl.1").exists()
    lines = [line for line in audit.read_lines(path) if line["kind"] == "decision"]
    times = [line["now_s"] for line in lines]
    assert len(lines) == 25
    assert times == sorted(times)
    assert all(r.same for r in audit.replay(path, Adviser(trained_bundle())))


def test_only_so_many_files_are_kept(tmp_path: Path) -> None:
    recorded(tmp_path / "audit.jsonl", 25, AuditOptions(max_bytes=5_000, keep=2))
    assert sorted(p.name for p in tmp_path.glob("audit.*")) == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]


def test_a_torn_line_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, {"kind": "start"})
    log.write({"kind": "decision", "number": 1})
    with open(path, "ab") as file:
        file.write(b'{"kind": "deci')
    log.write({"kind": "decision", "number": 2})
    assert [line.get("number") for line in audit.read_lines(path)] == [None, 1, 2]


def test_a_full_disk_is_counted_and_survived(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, {"kind": "start"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        log.write({"kind": "decision", "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert log.lost == 1
    assert log.problem.startswith("not recorded: ")
    log.write({"kind": "decision", "number": 1})
    assert (log.lost, log.problem) == (1, "")
    assert [line.get("number") for line in audit.read_lines(path)][-1] == 1


def test_a_file_that_cannot_be_rotated_is_told_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, {"kind": "start"}, AuditOptions(max_bytes=1024, keep=1))
    (tmp_path / "audit.jsonl.1").mkdir()
    log.write({"kind": "decision", "text": "x" * 1024})
    assert log.problem == ""
    log.write({"kind": "decision", "number": 1})
    assert log.problem == "audit log not rotated: Is a directory"
    assert (log.lost, json.loads(path.read_bytes().splitlines()[-1])["number"]) == (0, 1)


def test_a_new_file_of_root_belongs_to_the_owner_of_the_folder(tmp_path: Path, root_only: None) -> None:
    """Whose service could not write it later."""
    os.chown(tmp_path, 65534, 65534)
    recorded(tmp_path / "audit.jsonl", 25, AuditOptions(max_bytes=20_000, keep=20))
    owners = {path.name: path.stat().st_uid for path in tmp_path.iterdir()}
    assert {"audit.jsonl", "audit.jsonl.1"} <= owners.keys()
    assert set(owners.values()) == {65534}


def test_a_missing_folder_is_survived(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "nowhere" / "audit.jsonl", {"kind": "start"})
    log.write({"kind": "decision"})
    assert log.lost == 2


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text('{"kind": "other"}\n')
    with pytest.raises(DataError, match="no decision"):
        list(audit.replay(path))
    with pytest.raises(DataError, match="cannot read"):
        list(audit.read_lines(tmp_path / "none"))


def test_advice_is_stateless() -> None:
    adviser = Adviser(trained_bundle())
    windows = [window(10.0 + index, seed=index) for index in range(4)]
    recent = Recent(1)
    for seen in windows:
        step = recent.ask(adviser, seen)
    whole = adviser.advise(windows)
    assert whole.policy == step.policy
    assert whole.policy is not None
    assert np.array_equal(whole.state.novelty, step.state.novelty)


def test_a_nan_of_the_network_is_a_problem_not_a_weight() -> None:
    bundle = trained_bundle()
    adviser = Adviser(bundle)
    bundle.net.action[-1].bias.data.fill_(float("nan"))
    given = adviser.advise([window()])
    assert given.policy is None
    assert "not finite" in given.problem
    assert (given.baseline.values >= 1).all()
    assert advice(EQUAL).policy != UNEVEN


def test_advice_over_several_frames_needs_only_those_windows() -> None:
    """A copy that gets only the last windows and what `Recent` remembers answers as one that saw everything."""
    whole = problem()
    framed = replace(whole, options=whole.options.model_copy(update={"frames": 3}))
    torch.manual_seed(1)
    net = EquivariantNet(framed.row_size, 3, ModelOptions(hidden=16))
    torch.nn.init.normal_(net.action[-1].weight)
    adviser = Adviser(Bundle(net, framed, ModelOptions(hidden=16), {}))
    windows = [window(10.0 + 5 * index, seed=index) for index in range(7)]
    recent = Recent(adviser.frames)
    answers = [recent.ask(adviser, seen) for seen in windows]
    assert adviser.advise(windows).policy == answers[-1].policy
    assert adviser.advise(windows[-3:]).policy != answers[-1].policy


def test_the_averages_go_on_when_a_bundle_is_swapped() -> None:
    """They took windows to settle: begun anew, all that follows would look novel for a while."""
    adviser, staying = Adviser(trained_bundle()), Recent(1)
    with SimulatedTestbed(TOPOLOGY) as testbed:
        testbed.reset(demo_scenario(), 1)
        for _ in range(20):
            staying.ask(adviser, testbed.advance(1.0))
        seen = testbed.advance(1.0)
        swapped, anew = staying.moved(1).ask(adviser, seen), Recent(1).ask(adviser, seen)
        stayed = staying.ask(adviser, seen)
    assert np.array_equal(swapped.state.novelty, stayed.state.novelty)
    assert not np.array_equal(anew.state.novelty, stayed.state.novelty)
