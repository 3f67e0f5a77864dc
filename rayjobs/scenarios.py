"""`deepsched scenarios list|show`: the scenarios, and load and server speeds of one over time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from actuators.options import OnlyIf, Options
from rayjobs.cli.console import console_out
from rayjobs.cli.main import Verb, main

if TYPE_CHECKING:
    from actuators.contract.script import Script

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 72


class ListOptions(Options):
    """None."""


def _of_catalogue(options: ShowOptions) -> bool:
    return not options.scenario.endswith(".json")


class ShowOptions(Options):
    """Which scenario, and of which seed."""

    scenario: str = "S3"
    """Name (`deepsched scenarios list`), a YAML file, or the `calibration.json` of a recorded system
    (docs/file-formats.md)."""
    seed: int = Field(default=101, ge=0)
    """Equal seeds give equal scripts."""
    servers: Annotated[
        int, OnlyIf(_of_catalogue, "as the recorded system has its own", "name a scenario of the catalogue")
    ] = Field(default=3, ge=1, le=300)
    """Servers in every group."""
    duration_s: float | None = Field(default=None, gt=0)
    """Length of the script; that of the scenario when not given."""
    json_out: Path | None = None
    """File that receives the resolved script as JSON; not written when not given."""
    page: Path | None = None
    """HTML file that receives plots of load and speeds over time; not written when not given."""


def list_all(_: ListOptions) -> int:
    """Prints a table, a row per scenario."""
    from rich.table import Table

    from envs.scenarios.lookup import NAMED

    table = Table(title="scenarios", title_justify="left")
    for column in ("name", "load", "duration s", "summary"):
        table.add_column(column, justify="right" if column in ("load", "duration s") else "left")
    for known in NAMED.values():
        table.add_row(known.name, f"{known.load:.0%}", f"{known.duration_s:g}", known.summary)
    console_out().print(table)
    return 0


def show(options: ShowOptions) -> int:
    """Prints one scenario over time; writes its JSON and page."""
    from actuators.contract.topology import social_network
    from actuators.files import write_json
    from envs.scenarios.lookup import scenario, topology_of
    from tuning.report.scenario import write_scenario_page

    chosen = scenario(options.scenario, options.duration_s)
    addresses = tuple(f"server-{number}:80" for number in range(1, options.servers + 1))
    topology = social_network(addresses) if _of_catalogue(options) else topology_of([chosen])
    script = chosen.script(topology, options.seed)
    console_out().print(f"{script.name}: {chosen.summary}; seed {options.seed}, {script.duration_s:g} s", markup=False)
    for line in describe(script):
        console_out().print(line, markup=False)
    if options.json_out is not None:
        write_json(options.json_out, script.to_json())
        console_out().print(f"written: {options.json_out}", markup=False)
    if options.page is not None:
        write_scenario_page(options.page, script, chosen.summary)
        console_out().print(f"written: {options.page}", markup=False)
    return 0


def describe(script: Script, width: int = _WIDTH) -> list[str]:
    """Lines for a terminal: load and speeds as bars over time, from left to right."""
    from envs.scenarios.timeline import load_ratio, server_speeds

    times = [script.duration_s * (column + 0.5) / width for column in range(width)]
    load = [load_ratio(script, t) for t in times]
    lines = [f"{'load':>10} {_bars(load, 1.2)}  {min(load):.0%} … {max(load):.0%} of the nominal capacity"]
    for server, profile in enumerate(script.servers):
        speeds = [server_speeds(script, t)[server] for t in times]
        own = ", ".join(f"{s:g}" for s in dict.fromkeys(round(s, 2) for s in profile.speeds))
        lines.append(f"{f'server {server}':>10} {_bars(speeds, 1.0)}  × speed {own}, {profile.workers} workers")
    total = sum(stream.steps[0].rate_rps for stream in script.streams)
    lines.append(
        f"begins at {total:.0f} requests/s; {len(script.behaviours)} changes of servers, "
        f"{script.load_balancers} context{'s' if script.load_balancers > 1 else ''}; blank: refused"
    )
    return lines


def _bars(values: list[float], top: float) -> str:
    return "".join(_BARS[max(0, min(8, round(8 * value / top)))] for value in values)


LIST = Verb("scenarios list", "deepsched scenarios list", ListOptions, list_all)
SHOW = Verb(
    "scenarios show", "deepsched scenarios show S7 --seed 101 --page /tmp/s7.html", ShowOptions, show, ("scenario",)
)

if __name__ == "__main__":
    sys.exit(main(["scenarios", *sys.argv[1:]]))
