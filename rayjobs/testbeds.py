"""Opens the testbed that a verb asks for; and `deepsched testbeds` lists what runs where."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from actuators.options import Options
from actuators.parts import LiveOptions
from actuators.testbed import Testbed
from actuators.topology import social_network
from rayjobs.cli import Verb, run_verb

TestbedKind = Literal["simulated", "live"]


@contextlib.contextmanager
def open_testbed(kind: TestbedKind, work_dir: Path, seed: int, live: LiveOptions | None = None) -> Iterator[Testbed]:
    """A testbed for the block; a live one needs a connected Ray and keeps its logs in `work_dir`."""
    if kind == "simulated":
        from envs.simulation import SimulatedTestbed

        with SimulatedTestbed(social_network()) as simulated:
            yield simulated
        return
    from actuators.placement import start_remote_testbed

    with start_remote_testbed(social_network(), live or LiveOptions(), work_dir, seed) as testbed:
        yield testbed


class TestbedsOptions(Options):
    """What to look at."""

    address: str | None = None
    """Ray to ask, HOST:PORT or `auto`; all heads of ours on this machine when not given, and the cluster's own
    in a submitted job."""


def run(options: TestbedsOptions) -> int:
    """Prints a table of testbeds with what they do, their faults and the nodes of their parts."""
    from rayjobs.console import results

    rows = []
    for ray, found in _everywhere(options.address):
        rows += [(ray, row) for row in found]
    if not rows:
        results().print("no testbed of ours runs here")
        return 0
    from rich.table import Table

    table = Table()
    for column in ("Ray", "testbed", "does", "method", "windows", "faults", "builds", "where"):
        table.add_column(column)
    for ray, row in rows:
        places = "\n".join(f"{part}: {node}" for part, node in row["places"].items())
        figures = (str(row[name]) for name in ("windows", "faults", "builds"))
        table.add_row(ray, row["name"], row["doing"], row["method"], *figures, places)
    results().print(table)
    return 0


def _everywhere(address: str | None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Ray's address and its testbeds, one Ray after the other."""
    from rayjobs.local_ray import connected, in_job, joined, running_heads
    from tuning.live_testbeds import running_testbeds

    if address is None and in_job():
        address = "auto"
    if address is not None:
        with connected(address):
            yield address, running_testbeds()
        return
    for folder in running_heads():
        with joined(folder):
            yield folder.name, running_testbeds()


VERB = Verb(
    name="testbeds",
    summary="what testbeds run on this machine or cluster, and where",
    example="deepsched testbeds",
    options=TestbedsOptions,
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
