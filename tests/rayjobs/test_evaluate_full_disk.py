"""A disk that becomes full in the middle of an evaluation: one clear line, finished blocks kept, then it goes on."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.usefixtures("root_only"), pytest.mark.slow]
ROUNDS, POLICIES = 24, ("least_conn", "expected_delay")
WORDS = [
    "--scenario", "S1", "--policies", ",".join(POLICIES), "--set", f"judge.rounds={ROUNDS}",
    "--set", "judge.measure_s=60", "--set", "observe.duration_s=6", "--set", "observe.explore_s=4",
]  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 MB with nothing else on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def evaluate(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rayjobs.evaluate", *words]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def fill_up(path: Path) -> None:
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2


def lines_of(run: Path) -> list[str]:
    path = run / "blocks.jsonl"
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def test_a_full_disk_ends_it_in_one_line_and_resume_goes_on(disk: Path) -> None:
    process = evaluate(*WORDS, "--out", str(disk))
    deadline = time.monotonic() + 200
    while not (found := list(disk.glob("evaluate-*"))) or len(lines_of(found[0])) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (run,) = found
    fill_up(disk / "filler")
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    *_, how, what = errors.strip().splitlines()
    assert f"deepsched evaluate --resume {run}" in how
    assert "No space left on device" in what
    kept = [line for line in lines_of(run) if line.endswith("\n")]
    assert 2 <= len(kept) < ROUNDS * len(POLICIES)

    (disk / "filler").unlink()
    again = evaluate("--resume", str(run))
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    after = lines_of(run)
    assert after[: len(kept)] == kept
    repeated = sum(json.loads(line)["policy"] == "expected_delay" for line in kept)
    assert len(after) == ROUNDS * len(POLICIES) + repeated, "what is learned is learned anew"
    content = json.loads((run / "evaluation.json").read_text())
    assert [policy["paired_rounds"] for policy in content["policies"].values()] == [ROUNDS, ROUNDS]
    assert content["accounting"]["discarded_blocks"] == 0
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")], "no half-written file is left"
