"""A server killed in the middle of a live evaluation: one clear line, finished blocks kept, then it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.orphans import processes_with, wait_gone

pytestmark = [pytest.mark.ray, pytest.mark.nginx, pytest.mark.slow]
WORDS = [
    "--testbed", "live", "--policies", "least_conn,round_robin", "--set", "judge.rounds=3",
    "--set", "judge.measure_s=3", "--set", "judge.warm_up_s=0.5", "--set", "judge.repeats=0",
    "--set", "observe.duration_s=12", "--set", "observe.explore_s=2",
    # However busy the machine is, only the kill spoils a block: light load, and nobody minds a wait.
    "--interval-s", "3", "--set", "judge.max_core_wait_ms=1000",
    "--set", "live.load.saturated_delay_ms=10000",
]  # fmt: skip


def evaluate(out: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rayjobs.evaluate", *words], cwd=out, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def blocks_of(run: Path) -> list[dict[str, object]]:
    path = run / "blocks.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_server_killed_in_the_middle_ends_it_in_one_line_and_resume_goes_on(tmp_path: Path) -> None:
    light = tmp_path / "light.yaml"
    light.write_text("name: light\nload: 0.5\nwork_scale: 4.0\n")
    process = evaluate(tmp_path, *WORDS, "--scenario", str(light), "--out", str(tmp_path))
    deadline = time.monotonic() + 300
    while not (found := list(tmp_path.glob("evaluate-*"))) or len(blocks_of(found[0])) < 2:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (run,) = found
    started = {pid: words for pid, words in processes_with(str(run)).items() if "guardian" not in words}
    server = min(pid for pid, words in started.items() if "actuators.social_network" in words)
    os.kill(server, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "died" in errors
    assert f"deepsched evaluate --resume {run}" in errors
    assert "Traceback" not in errors
    assert wait_gone(str(run)) == {}
    kept = blocks_of(run)
    spoiled = [block for block in kept if block["flags"]]
    assert 2 <= len(kept) - len(spoiled) < 6
    assert all("died: the server at" in str(block["flags"]) for block in spoiled)

    again = evaluate(tmp_path, "--resume", str(run))
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    after = blocks_of(run)
    assert after[: len(kept)] == kept
    assert sum(not block["flags"] for block in after) == 6
    content = json.loads((run / "evaluation.json").read_text())
    assert [policy["paired_rounds"] for policy in content["policies"].values()] == [3, 3]
    assert content["accounting"]["discarded_blocks"] == len(spoiled)
