"""Writes the page of one scenario: load and speed of the servers over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from actuators.contract.script import Script
from actuators.files import write_atomic
from envs.scenarios.timeline import change_times, load_ratio, server_speeds
from tuning.report.axes import Figure, Trace
from tuning.report.page import render


def write_scenario_page(path: Path, script: Script, summary: str) -> None:
    """Writes the page atomically.

    Args:
        summary: what happens in the scenario, in one line.
    """
    servers = len(script.servers)
    page = render(
        "scenario.html.j2",
        title=script.name,
        headline=f"{script.name}: {summary}",
        facts=[f"seed {script.seed}", f"{script.duration_s:g} s", f"{servers} servers"],
        figures={
            "Load, share of the nominal capacity": load_figure(script),
            "Speed factor of each server": speed_figure(script),
        },
    )
    write_atomic(path, page)


def load_figure(script: Script) -> Figure:
    """Load over time."""
    times = change_times(script)
    lines = {"load": [load_ratio(script, at_s) for at_s in times]}
    return _steps("load", times, lines, {"tickformat": ".0%", "rangemode": "tozero"})


def speed_figure(script: Script) -> Figure:
    """Speed factor of every server over time; 0 while it refuses connections."""
    times = change_times(script)
    speeds = [server_speeds(script, at_s) for at_s in times]
    lines = {f"server {server}": [row[server] for row in speeds] for server in range(len(script.servers))}
    return _steps("speed", times, lines, {"rangemode": "tozero"})


def _steps(name: str, times: Sequence[float], lines: Mapping[str, Sequence[float]], y_axis: Trace) -> Figure:
    traces: list[Trace] = [
        {"type": "scatter", "mode": "lines", "name": label, "x": list(times), "y": [float(value) for value in values],
         "line": {"shape": "hv", "width": 2}}
        for label, values in lines.items()
    ]  # fmt: skip
    layout = {"xaxis": {"title": {"text": "seconds"}}, "yaxis": y_axis, "showlegend": len(lines) > 1}
    return Figure(name, traces, layout, 300)
