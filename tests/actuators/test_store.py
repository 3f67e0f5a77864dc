"""Small state that several processes change: nothing is lost, torn or made twice, and the loser learns it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from actuators.errors import ConflictError, DataError
from actuators.files import exclusive
from actuators.store import Store, Stored
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.thorough


class Count(BaseModel):
    """A document of these tests."""

    value: int = 0
    text: str = ""


def store(folder: Path) -> Store[Count]:
    return Store(folder / "count.json", Count, "a count")


def one_more(stored: Stored[Count]) -> Count:
    return Count(value=(stored.value or Count()).value + 1, text="x" * 20_000)


_ADD = """
import sys
from pathlib import Path
from tests.actuators.test_store import one_more, store
for _ in range(int(sys.argv[2])):
    print(store(Path(sys.argv[1])).change(one_more).version, flush=True)
"""


def adding(folder: Path, count: int) -> subprocess.Popen[str]:
    """A process that adds one so many times."""
    command = [sys.executable, "-c", _ADD, str(folder), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_changes_of_several_processes_are_all_kept(tmp_path: Path) -> None:
    writers = [adding(tmp_path, 25) for _ in range(3)]
    versions = [int(line) for writer in writers for line in writer.communicate(timeout=PATIENCE_S)[0].split()]
    assert sorted(versions) == list(range(1, 76))
    read = store(tmp_path).read()
    assert (read.version, read.value and read.value.value) == (75, 75)


def test_a_writer_that_is_killed_at_any_moment_leaves_a_store_that_can_be_read(tmp_path: Path) -> None:
    chance, least = random.Random(7), 0
    for _ in range(8):
        writer = adding(tmp_path, 10_000)
        assert writer.stdout is not None
        written = [writer.stdout.readline() for _ in range(chance.randint(1, 12))]
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate(timeout=PATIENCE_S)
        least = max(least, int(written[-1]))
        read = store(tmp_path).read()
        assert read.problem == ""
        assert read.version >= least
        assert read.value is not None
        assert read.value.value == read.version
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"count.json", ".count.json.good", ".count.json.lock", ".count.json.new"}
    assert store(tmp_path).change(one_more).version > least


def test_the_loser_of_a_race_learns_that_it_lost(tmp_path: Path) -> None:
    seen = store(tmp_path).change(lambda _: Count(value=1)).version
    store(tmp_path).change(lambda _: Count(value=2), expected=seen)
    with pytest.raises(ConflictError, match="somebody else changed it first"):
        store(tmp_path).change(lambda _: Count(value=3), expected=seen)
    assert store(tmp_path).read().value == Count(value=2)


def test_an_equal_document_keeps_its_version(tmp_path: Path) -> None:
    assert store(tmp_path).read() == Stored(0, None)
    assert store(tmp_path).change(lambda _: Count(value=1)).version == 1
    assert store(tmp_path).change(lambda _: Count(value=1)).version == 1


def test_what_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    store(tmp_path).change(one_more)
    with pytest.raises(ZeroDivisionError):
        store(tmp_path).change(lambda stored: Count(value=1 // 0))
    assert store(tmp_path).change(one_more).version == 2


@pytest.mark.parametrize("torn", [b"", b'{"version": 2, "val', b"[1]", b'{"value": "many"}', b"\xff\x00", b"[" * 10**5])
def test_a_torn_document_is_recovered_from_its_last_good_copy(tmp_path: Path, torn: bytes) -> None:
    store(tmp_path).change(one_more)
    kept = store(tmp_path).change(one_more)
    (tmp_path / "count.json").write_bytes(torn)
    read = store(tmp_path).read()
    assert (read.version, read.value) == (kept.version, kept.value)
    assert "not a count" in read.problem
    assert "last good copy" in read.problem
    assert store(tmp_path).change(one_more).version == 3
    assert store(tmp_path).read().problem == ""


def test_without_a_good_copy_it_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "count.json").write_text('{"value": "many"}')
    with pytest.raises(DataError, match=r"not a count: value: .*; correct it, or remove it") as error:
        store(tmp_path).read()
    assert "\n" not in str(error.value)


def test_a_fifo_is_refused_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "count.json")
    with pytest.raises(DataError, match="not a regular file"):
        store(tmp_path).read()


def test_versions_grow_also_when_the_document_was_removed(tmp_path: Path) -> None:
    store(tmp_path).change(one_more)
    (tmp_path / "count.json").unlink()
    assert store(tmp_path).read() == Stored(1, None)
    assert store(tmp_path).change(one_more).version == 2


def test_a_document_of_a_version_that_had_none_is_read(tmp_path: Path) -> None:
    (tmp_path / "count.json").write_text(json.dumps({"value": 5}))
    assert store(tmp_path).read() == Stored(0, Count(value=5))
    assert store(tmp_path).change(one_more) == Stored(1, Count(value=6, text="x" * 20_000))


def test_a_lock_that_is_held_for_too_long_is_named(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "lock", 0.0),
        pytest.raises(ConflictError, match="another process is changing"),
        exclusive(tmp_path / "lock", 0.05),
    ):
        pass
    with exclusive(tmp_path / "lock", 0.0):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from actuators.files import exclusive\n"
    code += "with exclusive(Path(sys.argv[1]), 0): print(flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(ConflictError), exclusive(tmp_path / "lock", 0.0):
        pass
    holder.kill()
    holder.communicate(timeout=PATIENCE_S)

    def free() -> bool:
        with exclusive(tmp_path / "lock", 0.0):
            return True

    wait_until(free)
