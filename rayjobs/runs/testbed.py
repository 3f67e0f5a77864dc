"""Opens the testbed that a verb asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from actuators.contract.testbed import Testbed
from actuators.contract.topology import Topology
from actuators.errors import ConfigError
from actuators.options import Options, value_at
from actuators.testbed.options import LiveOptions

TestbedKind = Literal["simulated", "live"]


@contextlib.contextmanager
def open_testbed(
    kind: TestbedKind, topology: Topology, work_dir: Path, seed: int, live: LiveOptions | None = None
) -> Iterator[Testbed]:
    """A testbed of that system for the block; a live one needs a connected Ray and keeps its logs in `work_dir`.

    Raises ConfigError for a live one of another system than the demo's (`check_live`).
    """
    if kind == "simulated":
        from envs.simulator.testbed import SimulatedTestbed

        with SimulatedTestbed(topology) as simulated:
            yield simulated
        return
    from actuators.testbed.placement import start_remote_testbed

    check_live(topology)
    with start_remote_testbed(topology, live or LiveOptions(), work_dir, seed) as testbed:
        yield testbed


def check_live(topology: Topology) -> None:
    """Raises ConfigError unless the servers of a live testbed, which are the demo's, can answer all request types."""
    from envs.scenarios.catalogue import TYPES

    unknown = [kind for kind in topology.request_types if kind not in TYPES]
    if unknown:
        what, remedy = f"live testbeds cannot serve '{unknown[0]}'", "simulate the recorded system: testbed simulated"
        raise ConfigError(what, where="testbed", remedy=remedy)


def of_one_system(options: Options, trained_on: str) -> dict[str, Any]:
    """What the options of a training leave open when one of them names a recorded system (`calibration.json`).

    It is then observed, trained on and judged on. `trained_on` is the path of the option that lists scenarios.
    """
    listed: tuple[str, ...] = value_at(options, trained_on)
    own = [name for name in (value_at(options, "scenario"), *listed) if name.endswith(".json")]
    if not own:
        return {}
    open_ones = {"scenario": own[0], trained_on: (own[0],)}
    return {path: value for path, value in open_ones.items() if not options.given(path)}
