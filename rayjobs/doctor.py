"""`deepsched doctor`: what this machine has and lacks, with remedies. The demo asks it first."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from actuators.errors import MissingToolError
from actuators.options import Options
from rayjobs import checks
from rayjobs.checks import Finding
from rayjobs.cli import EXIT_USER_ERROR, Verb, run_verb
from rayjobs.console import results

_MARKS = {"ok": ("✓", "green"), "poor": ("!", "yellow"), "missing": ("✗", "bold red")}


class DoctorOptions(Options):
    """What is examined."""

    nginx: str = "nginx"
    """NGINX program, by name or path."""


def diagnose(nginx: str = "nginx") -> list[Finding]:
    """All findings, in about 3 s; nothing on the machine is changed."""
    return [
        checks.python(),
        checks.packages(),
        checks.ray(),
        checks.compiler(),
        checks.engine_cache(),
        *checks.nginx(nginx),
        checks.ports(),
        checks.cores(),
        checks.memory(),
        checks.shared_memory(),
        checks.disk(),
        checks.open_files(),
    ]


def require(findings: Sequence[Finding]) -> None:
    """Raises MissingToolError, with every remedy, when something keeps the demo from running."""
    missing = [finding for finding in findings if finding.level == "missing"]
    if missing:
        what = "; ".join(f"{finding.name}: {finding.found}" for finding in missing)
        remedy = "; ".join(dict.fromkeys(finding.remedy for finding in missing if finding.remedy))
        raise MissingToolError(what, remedy=remedy)


def table(findings: Sequence[Finding]) -> Table:
    """The findings as people read them."""
    drawn = Table(title="deepsched doctor", title_justify="left")
    for column in ("", "part", "found", "remedy"):
        drawn.add_column(column, overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.level]
        drawn.add_row(Text(mark, style=style), Text(finding.name), Text(finding.found), Text(finding.remedy))
    return drawn


def run(options: DoctorOptions) -> int:
    """Prints the table; 0 when the demo can run, 2 when it cannot."""
    findings = diagnose(options.nginx)
    out = results()
    out.print(table(findings))
    missing = [finding.name for finding in findings if finding.level == "missing"]
    out.print("The demo can run: make demo" if not missing else f"The demo cannot run yet: {', '.join(missing)}.")
    return EXIT_USER_ERROR if missing else 0


VERB = Verb(
    name="doctor",
    summary="what this machine has and lacks, each with its remedy",
    example="deepsched doctor --nginx /usr/sbin/nginx",
    options=DoctorOptions,
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
