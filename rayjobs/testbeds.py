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
    """Ray to look at: HOST:PORT of its head, or `auto`; when not given, RAY_ADDRESS names it; otherwise it is the
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
    """Controllers on this machine that run without Ray, with the keys of `Conductor.describe`.

    The folders of other users are closed: of their controllers, as of a service, only the process is shown.
    """
    import psutil

    from rayjobs.steer.folder import SteerFolder
    from rayjobs.steer.status import described

    rows = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if not _steers(process.cmdline()):
                continue
            place = {"controller": f"process {process.pid}"}
            if process.uids().real != os.getuid():
                rows.append(_of_another_user(process.username(), place))
                continue
            # Its options may be in a file that has changed since; the lock of its folder is open.
            locks = [Path(file.path) for file in process.open_files() if Path(file.path).name == "lock"]
            folders = [lock.parent for lock in locks if SteerFolder(lock.parent).is_locked()]
            rows += [described(folder, SteerFolder(folder).status(), place) for folder in folders]
    return rows


def _of_another_user(user: str, place: dict[str, str]) -> dict[str, Any]:
    unknown = dict.fromkeys(("method", "windows", "faults", "builds"), "")
    return {**unknown, "name": f"controller of {user}", "doing": f"shown to {user} only", "places": place}


def _steers(command: list[str]) -> bool:
    """Whether this is `python … deepsched steer run …`, and neither `sudo` before it nor a controller in an actor."""
    if not command or not Path(command[0]).name.startswith("python") or "--actor" in command:
        return False
    return any(_is_steer(word) and after == "run" for word, after in itertools.pairwise(command))


def _is_steer(word: str) -> bool:
    return word in ("steer", "rayjobs.steer") or word.endswith("rayjobs/steer/__main__.py")


def _of_each_ray(address: str | None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address and the testbeds of each Ray."""
    from rayjobs.cli.console import log_line
    from rayjobs.runs.joining import named_ray
    from rayjobs.runs.local_ray import connected, joined, running_heads

    named = named_ray(address)
    heads = [] if named else running_heads()
    if not named and not heads:
        # The small installation has no Ray, and may have controllers.
        return
    from ray.exceptions import RayError

    from tuning.live.testbeds import running_testbeds

    if named:
        with connected(named.address, named.source):
            yield named.address, running_testbeds()
        return
    for folder in heads:
        try:
            with joined(folder):
                found = running_testbeds()
        except (OSError, RuntimeError, RayError) as error:
            # Its verb may end at any moment.
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            log_line("testbeds", f"{folder.name} could not be asked: {what}")
            continue
        yield folder.name, found


VERB = Verb("testbeds", "deepsched testbeds", TestbedsOptions, run)


if __name__ == "__main__":
    sys.exit(run_verb(VERB))
