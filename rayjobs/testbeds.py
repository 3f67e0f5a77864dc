"""`deepsched testbeds`: the live testbeds and controllers that run on this machine or cluster."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actuators.options import Options
from rayjobs.cli.main import Verb, run_verb


class TestbedsOptions(Options):
    """Which Ray."""

    address: str | None = None
    """Ray to look at: HOST:PORT of its head, or `auto`; when not given, RAY_ADDRESS says it, and without that it is the
    cluster of a submitted job, or else all heads that `deepsched` started on this machine."""


def run(options: TestbedsOptions) -> int:
    """Prints a table of testbeds and controllers: their state, faults, and the nodes of their parts."""
    from rayjobs.cli.console import console_out

    rows = [(ray, row) for ray, testbeds in _of_each_ray(options.address) for row in testbeds]
    rows += [("", row) for row in ([] if options.address else controllers())]
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


def controllers() -> list[dict[str, Any]]:
    """This user's controllers on this machine that run without Ray, with the keys of `Conductor.describe`."""
    import psutil

    from rayjobs.steer.folder import SteerFolder
    from rayjobs.steer.status import described

    rows = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real != os.getuid() or (given := _folder_of(process.cmdline())) is None:
                continue
            folder = Path(process.cwd()) / given
            if folder.is_dir() and SteerFolder(folder).is_locked():
                rows.append(described(folder, SteerFolder(folder).status(), {"controller": f"process {process.pid}"}))
    return rows


def _folder_of(words: list[str]) -> str | None:
    """The folder of a command line `deepsched steer run …`; None for any other, and for a controller in an actor."""
    begins = [i for i in range(len(words) - 1) if _is_steer(words[i]) and words[i + 1] == "run"]
    if not begins or "--actor" in words:
        return None
    given = [after for word, after in itertools.pairwise(words) if word == "--folder"]
    given += [word.partition("=")[2] for word in words if word.startswith("--folder=")]
    return given[-1] if given else "runs/steer"


def _is_steer(word: str) -> bool:
    return word in ("steer", "rayjobs.steer") or word.endswith("rayjobs/steer/__main__.py")


def _of_each_ray(address: str | None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address and the testbeds of each Ray."""
    from rayjobs.cli.console import log_line
    from rayjobs.runs.joining import named_ray
    from rayjobs.runs.local_ray import connected, joined, running_heads
    from tuning.live.testbeds import running_testbeds

    if (named := named_ray(address)) is not None:
        with connected(named.address, named.source):
            yield named.address, running_testbeds()
        return
    for folder in running_heads():
        try:
            with joined(folder):
                found = running_testbeds()
        except (ConnectionError, RuntimeError, OSError) as error:
            # Its verb may end at any moment.
            log_line("testbeds", f"{folder.name} could not be asked: {str(error).splitlines()[0]}")
            continue
        yield folder.name, found


VERB = Verb("testbeds", "deepsched testbeds", TestbedsOptions, run)


if __name__ == "__main__":
    sys.exit(run_verb(VERB))
