"""The dashboard of learning: one panel per figure of the live testbeds and of the trials that Ray exports."""

from __future__ import annotations

from rayjobs.dashboards.panels import Json, dashboard, lines, row, variable
from tuning.live.metric_names import COUNTERS, GAUGES, TRIAL_GAUGES, exported

_UNITS = {"mean_ms": "ms", "client_p99_ms": "ms"}


def training_dashboard() -> Json:
    """The whole dashboard."""
    windows = exported("windows", COUNTERS)
    panels = [row("Testbeds")]
    for name, text in COUNTERS.items():
        query = f'sum by (testbed) (rate({exported(name, COUNTERS)}{{testbed=~"$testbed"}}[$__rate_interval]))'
        panels.append(lines(f"{_title(name)} per second", text, [(query, "{{testbed}}")], "short"))
    for name, text in GAUGES.items():
        query = f'{exported(name, COUNTERS)}{{testbed=~"$testbed"}}'
        panels.append(lines(_title(name), text, [(query, "{{testbed}}")], _UNITS.get(name, "short")))
    panels.append(row("Trials of a sweep"))
    for name, text in TRIAL_GAUGES.items():
        panels.append(lines(_title(name), text, [(exported(name, COUNTERS), "{{trial}}")], "short"))
    for panel in panels:
        # A reward and a score are negative.
        panel.get("fieldConfig", {}).get("defaults", {}).pop("min", None)
    variables = [variable("testbed", "Testbed", f"label_values({windows}, testbed)")]
    return dashboard("deep-scheduling", "Deep Scheduling: learning", panels, variables, "Testbeds and trials on Ray.")


def _title(name: str) -> str:
    text = name.replace("_ms", "").replace("_", " ")
    return text[0].upper() + text[1:]
