"""The parts of a live testbed read all of their options."""

from __future__ import annotations

from pathlib import Path

import pytest

from actuators.contract.control import Weights
from actuators.contract.topology import social_network
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from tests.support.contracts import ContractScenario
from tests.support.option_reads import OptionReads

pytestmark = pytest.mark.nginx


def test_every_option_of_the_parts_is_read(short_dir: Path) -> None:
    with OptionReads(LiveOptions()) as reads:
        options = reads.options
        with start_local_testbed(social_network(), options, short_dir, seed=1) as testbed:
            testbed.set_method("expected_delay")
            testbed.set_method("least_conn")
            testbed.reset(ContractScenario(duration_s=1.0), 1)
            testbed.apply(Weights.equal(testbed.topology))
            testbed.advance(0.5)
            testbed.drain()
    assert reads.unread() == []
