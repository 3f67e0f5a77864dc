"""The policy network is as its options say."""

from __future__ import annotations

from envs.environment.actions import ActionOptions
from tests.support.option_reads import OptionReads
from tuning.options import ModelOptions
from tuning.policy.model import EquivariantNet


def test_the_network_reads_all_of_its_options() -> None:
    with OptionReads(ModelOptions()) as reads:
        EquivariantNet(7, 3, reads.options, ActionOptions())
    assert reads.unread() == []
