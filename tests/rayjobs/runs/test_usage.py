"""How busy a run kept the cores: its own processes and their descendants count, others do not."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rayjobs.runs.usage import CpuUsage

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SESSION = "session_2026-11-22_1"


class Machine:
    """A made-up /proc, which psutil reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.idle(0.0)
        self.process(1, 0, "init", 0.0)

    def idle(self, seconds: float, stolen_s: float = 0.0) -> None:
        ticks, stolen = round(seconds * TICKS_PER_S), round(stolen_s * TICKS_PER_S)
        (self.root / "stat").write_text(f"cpu  1 2 3 {ticks} 0 6 7 {stolen} 9 10\nbtime 1000\n")

    def process(self, pid: int, parent: int, command: str, used_s: float, started: int = 1) -> None:
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        (folder / "cmdline").write_bytes(command.encode() + b"\0")
        ticks = round(used_s * TICKS_PER_S)
        fields = ["S", str(parent), *["0"] * 9, str(ticks), "0", *["0"] * 6, str(started), *["0"] * 30]
        (folder / "stat").write_text(f"{pid} (a (b) c) {' '.join(fields)}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    psutil.process_iter.cache_clear()
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    yield Machine(tmp_path)
    psutil.process_iter.cache_clear()


def test_own_processes_and_their_descendants_count_from_the_start_on(machine: Machine) -> None:
    machine.process(10, 1, f"raylet --session={SESSION}", 5.0)
    machine.process(11, 10, "ray::SweepTrial", 2.0)
    machine.process(20, 1, "somebody else", 1.0)
    machine.idle(100.0)
    with CpuUsage(SESSION) as usage:
        machine.idle(101.5)
        machine.process(11, 10, "ray::SweepTrial", 4.0)
        machine.process(12, 11, "began meanwhile", 1.5)
        machine.process(20, 1, "somebody else", 9.0)
    assert usage.cpu_s == pytest.approx(3.5)
    assert usage.share_of_free == pytest.approx(0.7)
    usage.elapsed_s = 3.5 / (os.cpu_count() or 1) / 0.5
    assert usage.share == pytest.approx(0.5)
    assert usage.summary()["busy_share"] == usage.share


def test_where_the_cores_time_went_adds_up(machine: Machine) -> None:
    machine.process(10, 1, f"raylet --session={SESSION}", 5.0)
    machine.idle(100.0, stolen_s=7.0)
    with CpuUsage(SESSION) as usage:
        machine.process(10, 1, f"raylet --session={SESSION}", 8.0)
        machine.idle(100.5, stolen_s=7.25)
    usage.elapsed_s = 10.0
    found = usage.summary()
    assert found["stolen_s"] == pytest.approx(0.25)
    kinds = ("cpu_s", "idle_s", "others_s", "stolen_s")
    assert sum(found[kind] for kind in kinds) == pytest.approx(10.0 * found["cores"])


def test_each_phase_has_its_own_idle_time(machine: Machine) -> None:
    machine.idle(100.0)
    with CpuUsage(SESSION) as usage:
        usage.phase("start")
        machine.idle(101.0)
        usage.phase("full")
        machine.idle(101.5)
        usage.phase("full")
        usage.phase("tail")
        machine.idle(104.0)
    phases = usage.summary()["phases"]
    assert {name: phase["idle_s"] for name, phase in phases.items()} == pytest.approx(
        {"start": 1.0, "full": 0.5, "tail": 2.5}
    )
    assert sum(phase["seconds"] for phase in phases.values()) <= usage.elapsed_s


def test_a_process_that_reuses_a_number_is_another_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayjobs.runs.usage.EVERY_S", 0.01)
    machine.process(10, 1, f"raylet --session={SESSION}", 5.0)
    with CpuUsage(SESSION) as usage:
        shutil.rmtree(machine.root / "10")
        machine.process(11, 1, f"raylet --session={SESSION}", 0.5)
        deadline_s = time.monotonic() + 30
        while usage.cpu_s == 0:
            assert time.monotonic() < deadline_s, "nobody looked"
            time.sleep(0.01)
        machine.process(10, 1, f"raylet --session={SESSION}", 1.0, started=2)
    assert usage.cpu_s == pytest.approx(1.5)
