"""Series for the report's figures: windows of all rounds in a row, spread labels, log ticks. No drawing here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Trace = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One drawing. Colours are names of CSS variables (``--learned``, ``--learned@0.3`` with an opacity).

    Attributes:
        name: id of its element.
        traces, layout: as plotly.js takes them.
        height_px: on a wide screen.
        empty: why there is nothing to draw; "" when there is.
        min_width_px: a narrower page scrolls the drawing; 0 draws it in any width.
    """

    name: str
    traces: list[Trace] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)
    height_px: int = 360
    empty: str = ""
    min_width_px: int = 0


@dataclass(frozen=True)
class Point:
    """A measured window of one policy; `at_s` counts the measured seconds of all rounds in a row."""

    at_s: float
    round: int
    window: dict[str, Any]


def measured(evaluation: dict[str, Any], policy: str) -> list[Point]:
    """Windows of the policy's usable blocks in order, drains left out."""
    numbers: dict[int, int] = {}
    points = []
    for window in evaluation["windows"]:
        block = evaluation["blocks"][window["block"]]
        if block["policy"] != policy or not block["usable"] or window["drain"]:
            continue
        number = numbers[window["block"]] = numbers.get(window["block"], 0) + 1
        at_s = block["round"] * evaluation["measure_s"] + number * evaluation["interval_s"]
        points.append(Point(at_s, block["round"], window))
    return sorted(points, key=lambda point: point.at_s)


def broken(points: Sequence[Point], values: Sequence[float | None]) -> tuple[list[float], list[float | None]]:
    """x and y of a line that is broken between rounds, because nothing continues there."""
    x: list[float] = []
    y: list[float | None] = []
    for index, (point, value) in enumerate(zip(points, values, strict=True)):
        if index and points[index - 1].round != point.round:
            x.append(points[index - 1].at_s)
            y.append(None)
        x.append(point.at_s)
        y.append(value)
    return x, y


def held(points: Sequence[Point], values: Sequence[float], interval_s: float) -> tuple[list[float], list[float | None]]:
    """The same for values that hold for a whole window: each round's line begins where its first window does."""
    firsts = {p.round: Point(p.at_s - interval_s, p.round, p.window) for p in reversed(points)}
    begun: list[Point] = []
    kept: list[float] = []
    for point, value in zip(points, values, strict=True):
        if point.round in firsts:
            begun.append(firsts.pop(point.round))
            kept.append(value)
        begun.append(point)
        kept.append(value)
    return broken(begun, kept)


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions in [low, high] as near to `values` as possible, at least `gap` apart, in the same order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = [0.0] * len(values)
    floor = low
    for i in order:
        placed[i] = floor = max(values[i], floor)
        floor += gap
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def log_range(values: Sequence[float]) -> tuple[float, float]:
    """Limits of a log10 axis with a little room around the values; at least half a decade."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max((0.5 - (high - low)) / 2, 0.06 * (high - low), 0.02)
    return low - room, high + room


def log_ticks(limits: tuple[float, float]) -> dict[str, Any]:
    """Axis settings with ticks at 1, 2 and 5 of each decade, or at decades only when there are many."""
    steps = (1, 2, 5) if limits[1] - limits[0] < 3 else (1,)
    exponents = range(math.floor(limits[0]), math.ceil(limits[1]) + 1)
    ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
    shown = [tick for tick in ticks if limits[0] <= math.log10(tick) <= limits[1]]
    return {"type": "log", "range": list(limits), "tickvals": shown, "ticktext": [f"{tick:,g}" for tick in shown]}


def ratio_ticks(limits: tuple[float, float]) -> dict[str, Any]:
    """Axis settings for ratios on a log axis: 1× always, then as many round ratios as have room."""
    room = 0.1 * (limits[1] - limits[0])
    chosen: list[float] = []
    for tick in (1, 0.5, 2, 0.7, 1.5, 0.8, 1.25, 0.9, 1.1, 0.6, 0.95, 1.05):
        inside = limits[0] <= math.log10(tick) <= limits[1]
        if inside and all(abs(math.log10(tick / other)) >= room for other in chosen):
            chosen.append(tick)
    chosen.sort()
    return {"type": "log", "range": list(limits), "tickvals": chosen, "ticktext": [f"{tick:g}×" for tick in chosen]}


def end_label(text: str, colour: str, y: float, *, bold: bool = False) -> dict[str, Any]:
    """A label right of the plot at axis position `y`; the page drops it for a legend on narrow screens."""
    return {
        "name": "end-label", "text": f"<b>{text}</b>" if bold else text, "x": 1, "xref": "paper", "xanchor": "left",
        "xshift": 6, "y": y, "yref": "y", "yanchor": "middle", "showarrow": False, "font": {"color": colour},
    }  # fmt: skip
