"""`deepsched testbeds`: the live testbeds that run on this machine or cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from actuators.options import Options
from rayjobs.cli.main import Verb, run_verb


class TestbedsOptions(Options):
    """Which Ray."""

    address: str | None = None
    """Ray to look at: HOST:PORT of its head, or `auto`; when not given, RAY_ADDRESS says it, and without that it is the
    cluster of a submitted job, or else all heads that `deepsched` started on this machine."""


def run(options: TestbedsOptions) -> int:
    """Prints a table of testbeds: their state, faults, and the nodes of their parts."""
    from rayjobs.cli.console import console_out

    rows = []
    for ray, testbeds in _testbeds_of_each_ray(options.address):
        rows += [(ray, row) for row in testbeds]
    if not rows:
        console_out().print("no testbed is running")
        return 0
    from rich.table import Table

    table = Table()
    for column in ("Ray", "testbed", "state", "method", "windows", "faults", "builds", "where"):
        table.add_column(column)
    for ray, row in rows:
        places = "\n".join(f"{part}: {node}" for part, node in row["places"].items())
        figures = (str(row[name]) for name in ("windows", "faults", "builds"))
        table.add_row(ray, row["name"], row["doing"], row["method"], *figures, places)
    console_out().print(table)
    return 0


def _testbeds_of_each_ray(address: str | None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address and the testbeds of each Ray."""
    from rayjobs.runs.joining import named_ray
    from rayjobs.runs.local_ray import connected, joined, running_heads
    from tuning.live.testbeds import running_testbeds

    if (named := named_ray(address)) is not None:
        with connected(named.address, named.source):
            yield named.address, running_testbeds()
        return
    for folder in running_heads():
        with joined(folder):
            yield folder.name, running_testbeds()


VERB = Verb("testbeds", "deepsched testbeds", TestbedsOptions, run)


if __name__ == "__main__":
    sys.exit(run_verb(VERB))
