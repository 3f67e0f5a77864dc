"""The dashboard of learning: one panel per figure of the live testbeds and of the trials that Ray exports."""

from __future__ import annotations

from rayjobs.dashboards.panels import Json, dashboard, lines, row, variable
from tuning.live.metric_names import BY_GROUP, COUNTERS, GAUGES, TRIAL_GAUGES, exported

_UNITS = {"mean_ms": "ms", "client_p99_ms": "ms"}


def training_dashboard() -> Json:
    """The whole dashboard."""
    windows = exported("windows", COUNTERS)
    panels = [row("Testbeds")]
    for name, text in COUNTERS.items():
        by, legend = _labels(name)
        query = f'sum by ({by}) (rate({exported(name, COUNTERS)}{{node=~"$node"}}[$__rate_interval]))'
        panels.append(lines(f"{_title(name)} per second", text, [(query, legend)], "short"))
    for name, text in GAUGES.items():
        by, legend = _labels(name)
        query = f'max by ({by}) ({exported(name, COUNTERS)}{{node=~"$node"}})'
        panels.append(lines(_title(name), text, [(query, legend)], _UNITS.get(name, "short")))
    panels.append(row("Trials of a sweep"))
    for name, text in TRIAL_GAUGES.items():
        panels.append(lines(_title(name), text, [(f"max by (node) ({exported(name, COUNTERS)})", "{{node}}")], "short"))
    for panel in panels:
        # A reward and a score are negative.
        panel.get("fieldConfig", {}).get("defaults", {}).pop("min", None)
    variables = [variable("node", "Node", f"label_values({windows}, node)")]
    return dashboard("deep-scheduling", "Deep Scheduling: learning", panels, variables, "Testbeds and trials on Ray.")


def _labels(name: str) -> tuple[str, str]:
    """What a metric's series are summed up by, and their legend."""
    return ("node, group", "{{node}} {{group}}") if name in BY_GROUP else ("node", "{{node}}")


def _title(name: str) -> str:
    text = name.replace("_ms", "").replace("_", " ")
    return text[0].upper() + text[1:]
