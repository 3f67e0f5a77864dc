"""Opens the testbed that a verb asks for; and `deepsched testbeds` lists what runs where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from actuators.contract.testbed import Testbed
from actuators.contract.topology import social_network
from actuators.testbed.options import LiveOptions

TestbedKind = Literal["simulated", "live"]


@contextlib.contextmanager
def open_testbed(kind: TestbedKind, work_dir: Path, seed: int, live: LiveOptions | None = None) -> Iterator[Testbed]:
    """A testbed for the block; a live one needs a connected Ray and keeps its logs in `work_dir`."""
    if kind == "simulated":
        from envs.simulator.testbed import SimulatedTestbed

        with SimulatedTestbed(social_network()) as simulated:
            yield simulated
        return
    from actuators.testbed.placement import start_remote_testbed

    with start_remote_testbed(social_network(), live or LiveOptions(), work_dir, seed) as testbed:
        yield testbed
