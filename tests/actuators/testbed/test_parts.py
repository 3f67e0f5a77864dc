"""The parts of a live testbed read all of their options; each host has one database, until the testbed closes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from actuators.contract.control import Weights
from actuators.contract.topology import social_network
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import make_server, start_local_testbed
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


def test_hosts_that_share_a_folder_share_no_database(short_dir: Path) -> None:
    """SQLite's log needs memory that all processes share, and NFS has none."""
    with contextlib.ExitStack() as stack:
        servers = []
        for index, host in enumerate(("127.0.0.1", "127.0.0.2", "127.0.0.2")):
            servers.append(make_server(LiveOptions(), short_dir, index, seed=1, host=host))
            stack.callback(servers[-1].close)
        assert [server.address.partition(":")[0] for server in servers] == ["127.0.0.1", "127.0.0.2", "127.0.0.2"]
        found = {path.name for path in short_dir.iterdir()}
        assert {name for name in found if name.endswith(".sqlite")} == {
            "social_network.sqlite", "social_network-127.0.0.2.sqlite",
        }  # fmt: skip
        assert {name for name in found if name.endswith(".lock")} == {"database.lock", "database-127.0.0.2.lock"}


def test_a_server_that_died_finds_its_database_again(short_dir: Path) -> None:
    server = make_server(LiveOptions(), short_dir, 0, seed=1)
    try:
        server.kill()
        server.start()
        assert server.healthy()
        server.close()
        server.remove_database()
        server.remove_database()
        assert not list(short_dir.glob("*.sqlite*"))
    finally:
        server.close()
