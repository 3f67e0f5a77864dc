"""Leases: every testbed has one holder, and who comes back gets its own again."""

from __future__ import annotations

import pytest

from actuators.errors import CapacityError
from tuning.live.leases import LeaseBook


def test_a_restarted_holder_gets_its_own_testbeds_again() -> None:
    book = LeaseBook(["a", "b", "c"])
    assert book.lease("one", 2) == ["a", "b"]
    assert book.lease("two", 1) == ["c"]
    assert book.lease("one", 2) == ["a", "b"]
    assert book.table() == {"a": "one", "b": "one", "c": "two"}


def test_released_testbeds_are_free_for_others() -> None:
    book = LeaseBook(["a", "b"])
    book.lease("one", 2)
    with pytest.raises(CapacityError, match=r"two needs 1 testbed\(s\), 0 of 2 are free .*a by one, b by one"):
        book.lease("two", 1)
    book.release("one")
    book.release("nobody")
    assert book.lease("two", 1) == ["a"]
