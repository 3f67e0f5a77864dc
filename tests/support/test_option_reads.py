"""The recorder of reads: what is used counts, what is only parsed, copied, saved or announced does not."""

from __future__ import annotations

from typing import Annotated, Self

import pytest
from pydantic import model_validator

from actuators.options import GIVEN, Only, Options
from rayjobs.cli.config import dump_yaml
from tests.support.option_reads import OptionReads


class WheelOptions(Options):
    """Of the wheels."""

    size: int = 20
    """Size."""
    spare: Annotated[bool, Only(size=GIVEN)] = False
    """Spare."""


class SpinOptions(WheelOptions):
    """One spin."""

    seed: int = 1
    """Seed."""


class CarOptions(Options):
    """Of the car."""

    doors: int = 4
    """Doors."""
    front: WheelOptions = WheelOptions()
    """In front."""
    back: WheelOptions = WheelOptions()
    """Behind."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        assert self.doors >= 0
        return self


def _stages(options: CarOptions) -> int:
    return options.doors


def test_parsing_saving_copying_and_announcing_are_no_use() -> None:
    with OptionReads(CarOptions(front=WheelOptions(size=0))) as reads:
        options: CarOptions = reads.options
        dump_yaml(options)
        _stages(options)
        options.model_dump()
        options.changed({"back.size": 3}).model_copy()
        assert options == CarOptions(front=WheelOptions(size=0))
        assert not options.given("doors")
    assert reads.unread() == ["back.size", "back.spare", "doors", "front.size"]


def test_use_counts_at_its_place_also_through_copies() -> None:
    with OptionReads(CarOptions()) as reads:
        options: CarOptions = reads.options
        spin = options.changed({"doors": 2}).back.extended(SpinOptions, seed=5)
        assert (options.doors, spin.size) == (4, 20)
    assert reads.unread() == ["back.seed", "back.spare", "front.size", "front.spare"]
    with reads:
        assert spin.seed == 5
    assert reads.unread() == ["back.spare", "front.size", "front.spare"]


def test_what_is_handed_over_needs_a_test_that_exists() -> None:
    reads = OptionReads(CarOptions())
    with pytest.raises(AssertionError, match="does not exist"):
        reads.hand_over(reads.options.back, "tests/support/test_option_reads.py::test_of_nothing")
    reads.hand_over(
        reads.options.back, "tests/support/test_option_reads.py::test_what_is_handed_over_needs_a_test_that_exists"
    )
    assert reads.unread() == ["doors", "front.size", "front.spare"]


def test_nothing_is_recorded_afterwards() -> None:
    with OptionReads(CarOptions()) as reads:
        pass
    assert reads.options.doors == 4
    assert "doors" in reads.unread()
    assert CarOptions().changed({"doors": 1}).doors == 1
