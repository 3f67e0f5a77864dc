"""Leases: every testbed has one holder, who comes back gets its own again, and the desk survives its own restart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import ray as ray_package

from actuators.errors import CapacityError
from tests.support.waiting import PATIENCE_S, wait_until
from tuning.live.leases import LEASE_DESK, LeaseBook


def test_a_restarted_holder_gets_its_own_testbeds_again(tmp_path: Path) -> None:
    book = LeaseBook(["a", "b", "c"], tmp_path / "leases.json")
    assert book.lease("one", 2) == ["a", "b"]
    assert book.lease("two", 1) == ["c"]
    assert book.lease("one", 2) == ["a", "b"]
    assert book.table() == {"a": "one", "b": "one", "c": "two"}


def test_released_testbeds_are_free_for_others(tmp_path: Path) -> None:
    book = LeaseBook(["a", "b"], tmp_path / "leases.json")
    book.lease("one", 2)
    with pytest.raises(CapacityError, match=r"two needs 1 testbed\(s\), 0 of 2 are free .*a by one, b by one"):
        book.lease("two", 1)
    book.release("one")
    book.release("nobody")
    assert book.lease("two", 1) == ["a"]


def test_a_book_that_is_opened_again_hands_nothing_out_twice(tmp_path: Path) -> None:
    LeaseBook(["a", "b"], tmp_path / "leases.json").lease("one", 1)
    again = LeaseBook(["a", "b", "c"], tmp_path / "leases.json")
    assert again.lease("two", 2) == ["b", "c"]
    assert again.table() == {"a": "one", "b": "two", "c": "two"}


_LEASE = """
import sys
from pathlib import Path
from actuators.errors import CapacityError
from tuning.live.leases import LeaseBook
book = LeaseBook([f"t{n}" for n in range(60)], Path(sys.argv[1]))
for turn in range(60):
    try:
        print(*book.lease(f"{sys.argv[2]}-{turn}", 1), flush=True)
    except CapacityError:
        break
    if turn == 0:
        sys.stdin.readline()
"""


def test_two_writers_share_sixty_testbeds_and_none_is_leased_twice(tmp_path: Path) -> None:
    desks = [
        subprocess.Popen(
            [sys.executable, "-c", _LEASE, str(tmp_path / "leases.json"), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in ("left", "right")
    ]  # fmt: skip
    granted = Counter[str]()
    for desk in desks:
        # It has leased one, and waits before the next until both have.
        assert desk.stdout is not None
        granted.update(desk.stdout.readline().split())
    assert len(granted) == 2
    for desk in desks:
        assert desk.stdin is not None
        desk.stdin.write("\n")
        desk.stdin.flush()
    for desk in desks:
        granted.update(desk.communicate(timeout=PATIENCE_S)[0].split())
    assert granted == Counter(f"t{n}" for n in range(60))
    table = LeaseBook([f"t{n}" for n in range(60)], tmp_path / "leases.json").table()
    assert len(set(table.values())) == 60


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_a_killed_desk_comes_back_with_its_leases(tmp_path: Path) -> None:
    desk = LEASE_DESK.remote(["a", "b"], tmp_path / "leases.json")
    assert ray_package.get(desk.lease.remote("one", 1)) == ["a"]

    def pid() -> int:
        return int(ray_package.get(desk.__ray_call__.remote(lambda book: os.getpid())))

    before = pid()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: pid() != before)
    assert ray_package.get(desk.table.remote()) == {"a": "one", "b": ""}
    assert ray_package.get(desk.lease.remote("two", 1)) == ["b"]
    ray_package.kill(desk)
