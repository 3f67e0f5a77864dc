"""Grafana's JSON, as small functions: a dashboard, its rows, panels, variables and thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = 24
"""Width of a dashboard in Grafana's grid."""
GREEN, YELLOW, RED = "green", "orange", "red"

Json = dict[str, Any]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard(uid: str, title: str, items: Sequence[Json], variables: Sequence[Json], about: str) -> Json:
    """A dashboard with its panels and rows placed from left to right and from top to bottom."""
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["deepsched"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource(), *variables]},
        "annotations": {"list": []},
        "links": [],
        "panels": placed(items),
    }


def placed(items: Sequence[Json]) -> list[Json]:
    """The items with ids and places; each has a `gridPos` of its width and height already."""
    x = y = tallest = 0
    for number, item in enumerate(items):
        size = item["gridPos"]
        if x + size["w"] > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        item["id"], size["x"], size["y"] = number + 1, x, y
        x, tallest = x + size["w"], max(tallest, size["h"])
    return list(items)


def row(title: str, repeat: str | None = None) -> Json:
    """A heading; with `repeat` the row and its panels appear once per value of that variable."""
    item: Json = {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"h": 1, "w": COLUMNS}}
    return item if repeat is None else {**item, "repeat": repeat}


def stat(title: str, text: str, query: tuple[str, str], unit: str, steps: Sequence[Json], **more: Any) -> Json:
    """One figure of now; `query` is an expression and the legend of its series."""
    item = _panel("stat", title, text, [query], unit, width=4, height=4)
    item["fieldConfig"]["defaults"] |= {"thresholds": {"mode": "absolute", "steps": list(steps)}, **more}
    item["options"] = {
        "colorMode": "value", "graphMode": "none", "textMode": "auto", "justifyMode": "auto", "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }  # fmt: skip
    return item


def lines(
    title: str,
    text: str,
    queries: Sequence[tuple[str, str]],
    unit: str,
    *,
    limit: float | None = None,
    highest: float | None = None,
    stacked: bool = False,
    width: int = 8,
) -> Json:
    """Values over time, from 0.

    Args:
        queries: expressions, each with the legend of its series.
        limit: value above which the background turns red.
        highest: end of the axis; found by Grafana when None.
    """
    item = _panel("timeseries", title, text, queries, unit, width=width, height=8)
    defaults = item["fieldConfig"]["defaults"]
    defaults["min"] = 0
    if highest is not None:
        defaults["max"] = highest
    if limit is not None:
        defaults["thresholds"] = {"mode": "absolute", "steps": steps((limit, RED))}
    defaults["custom"] = {
        "drawStyle": "line", "lineWidth": 1, "fillOpacity": 30 if stacked else 0, "showPoints": "never",
        "spanNulls": False, "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "off" if limit is None else "line+area"},
    }  # fmt: skip
    item["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return item


def steps(*above: tuple[float, str]) -> list[Json]:
    """Thresholds: green, and each colour from its value on."""
    return [{"color": GREEN, "value": None}, *({"color": colour, "value": value} for value, colour in above)]


def variable(name: str, label: str, query: str, *, several: bool = True) -> Json:
    """A choice at the top of the dashboard, filled by `label_values(…)`."""
    return {
        "type": "query", "name": name, "label": label, "datasource": SOURCE, "definition": query,
        "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1, "hide": 0, "options": [],
        "multi": several, "includeAll": several, "current": {"text": "All", "value": ["$__all"]} if several else {},
    }  # fmt: skip


def _datasource() -> Json:
    return {
        "type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "hide": 0,
        "refresh": 1, "options": [], "multi": False, "includeAll": False,
        "current": {"text": "Prometheus", "value": "prometheus"},
    }  # fmt: skip


def _panel(
    kind: str, title: str, text: str, queries: Sequence[tuple[str, str]], unit: str, *, width: int, height: int
) -> Json:
    targets = [
        {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
        for index, (expression, legend) in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": SOURCE,
        "gridPos": {"h": height, "w": width},
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
    }
