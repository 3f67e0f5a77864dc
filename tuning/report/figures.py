"""Figures of an evaluation: latency by percentile, p99 over time, shares over time."""

from __future__ import annotations

import math
from typing import Any

from tuning.report.axes import (
    Figure,
    Trace,
    broken,
    end_label,
    held,
    log_range,
    log_ticks,
    measured,
    ratio_ticks,
    spread,
)

_NINES = (50.0, 90.0, 99.0, 99.9)
_FIRST = 10.0
_LATENCY_HEIGHT_PX = 380
_RATIO_LIMITS = (0.5, 1.6)
_SERIES = 6
_DASHES = ("solid", "dash", "dashdot", "longdash", "longdashdot", "dot")


def policy_style(evaluation: dict[str, Any], policy: str) -> dict[str, Any]:
    """Line of a policy: one colour by its role everywhere on the page, and a dash for readers who see no colours."""
    if policy == evaluation["learned"]:
        return {"color": "--learned", "width": 3}
    if policy == evaluation["reference"]:
        return {"color": "--reference", "width": 2}
    others = [p for p in evaluation["policies"] if p not in (evaluation["learned"], evaluation["reference"])]
    number = others.index(policy)
    return {"color": f"--series-{number % _SERIES + 1}", "width": 1.6, "dash": _DASHES[(number + 1) % len(_DASHES)]}


def latency_figure(evaluation: dict[str, Any], request_type: str | None) -> Figure:
    """Latency by percentile, all policies; the x axis stretches the tail (one step per nine)."""
    name, curves = f"latency-{request_type or 'all'}", _distributions(evaluation, request_type)
    if not curves:
        return Figure(name, empty="No request was answered in a block that could be judged.")
    limits = log_range([value for latency in curves.values() for value in latency.values()])
    y_axis = {"title": {"text": "latency, ms (log)"}, **log_ticks(limits)}
    shapes = _deadline(evaluation, request_type, limits)
    return _percentile_figure(name, evaluation, curves, limits, y_axis, "%{y:.3g} ms", shapes)


def ratio_figure(evaluation: dict[str, Any], request_type: str | None) -> Figure:
    """Latency divided by the reference's latency at the same percentile; what leaves the plot is far off."""
    name, curves = f"ratio-{request_type or 'all'}", _distributions(evaluation, request_type)
    reference = curves.get(evaluation["reference"])
    if reference is None:
        return Figure(name, empty=f"{evaluation['reference']} has no block that could be judged.")
    ratios = {
        policy: {p: value / reference[p] for p, value in latency.items() if p in reference}
        for policy, latency in curves.items()
    }
    low, high = log_range([1.0, *(value for ratio in ratios.values() for value in ratio.values())])
    limits = max(low, math.log10(_RATIO_LIMITS[0])), min(high, math.log10(_RATIO_LIMITS[1]))
    y_axis = {"title": {"text": f"latency / {evaluation['reference']}"}, **ratio_ticks(limits)}
    return _percentile_figure(name, evaluation, ratios, limits, y_axis, "%{y:.2f}×", [])


def _percentile_figure(
    name: str,
    evaluation: dict[str, Any],
    curves: dict[str, dict[float, float]],
    limits: tuple[float, float],
    y_axis: Trace,
    hover: str,
    shapes: list[Trace],
) -> Figure:
    """A line per policy over the percentiles; `curves` maps policy → percentile → value."""
    traces: list[Trace] = [
        {
            "x": [_nines(p) for p in curve], "y": list(curve.values()), "name": policy, "mode": "lines",
            "customdata": list(curve), "line": policy_style(evaluation, policy),
            "hovertemplate": hover + " at p%{customdata:.5g}",
        }
        for policy, curve in curves.items()
    ]  # fmt: skip
    ends = {policy: list(curve.values())[-1] for policy, curve in curves.items()}
    layout = {
        "xaxis": _percentile_axis(curves),
        "yaxis": y_axis,
        "annotations": _policy_labels(evaluation, ends, limits, _LATENCY_HEIGHT_PX),
        "shapes": shapes,
        "hovermode": "closest",
    }
    return Figure(name, traces, layout, _LATENCY_HEIGHT_PX)


def tail_figure(evaluation: dict[str, Any]) -> Figure:
    """p99 of each window over the measured seconds, round after round, with what the scenario did."""
    curves = {}
    for policy in evaluation["policies"]:
        points = [p for p in measured(evaluation, policy) if p.window["client"] and p.window["client"]["p99_ms"]]
        if points:
            curves[policy] = broken(points, [p.window["client"]["p99_ms"] for p in points])
    if not curves:
        return Figure("tail", empty="No window of a block that could be judged has an answer.")
    limits = log_range([v for _, y in curves.values() for v in y if v is not None])
    traces: list[Trace] = [
        {"x": x, "y": y, "name": policy, "mode": "lines", "line": policy_style(evaluation, policy),
         "hovertemplate": "%{y:.3g} ms"}
        for policy, (x, y) in curves.items()
    ]  # fmt: skip
    traces += _events(evaluation, 10 ** (limits[0] + 0.03 * (limits[1] - limits[0])))
    layout = {
        "xaxis": {"title": {"text": "measured seconds, round after round"}, "range": [0, _end_s(evaluation)]},
        "yaxis": {"title": {"text": "p99 per window, ms (log)"}, **log_ticks(limits)},
        "shapes": _rounds(evaluation),
        "annotations": _policy_labels(evaluation, {p: _last(y) for p, (_, y) in curves.items()}, limits, 360),
        "hovermode": "x unified",
    }
    return Figure("tail", traces, layout, 360)


def steering_policies(evaluation: dict[str, Any]) -> list[str]:
    """Policies that changed their control at least once, the learned one first."""
    changing = {block["policy"] for block in evaluation["blocks"] if block["changes"]}
    return sorted(changing, key=lambda policy: (policy != evaluation["learned"], policy))


def weight_figure(evaluation: dict[str, Any], policy: str, group: int) -> Figure:
    """Shares that the control sets (lines) and where the requests went (dots), one request type."""
    servers = evaluation["groups"][group]["servers"]
    order = list(dict.fromkeys(server for g in evaluation["groups"] for server in g["servers"]))
    name, points = f"weights-{policy}-{group}", measured(evaluation, policy)
    if not points:
        return Figure(name, empty="No block of this policy could be judged.")
    traces: list[Trace] = []
    ends: dict[str, float] = {}
    top = 0.0
    for server in servers:
        s = order.index(server)
        asked = [100 * p.window["shares"][group][s] for p in points]
        seen = [_traffic_share(p.window["requests"][group], s) for p in points]
        ends[f"server {s + 1}"] = asked[-1]
        top = max([top, *asked, *(v for v in seen if v is not None)])
        line = {"color": f"--server-{s % _SERIES + 1}", "width": 2, "shape": "vh",
                "dash": "solid" if s < _SERIES else "dash"}  # fmt: skip
        true = [p.window.get("true_shares") for p in points]
        if all(true):
            x, y = held(points, [100 * shares[group][s] for shares in true if shares], evaluation["interval_s"])
            top = max([top, *(v for v in y if v is not None)])
            traces.append({"x": x, "y": y, "mode": "lines", "showlegend": False, "name": f"server {s + 1}",
                           "line": {"color": f"--server-{s % _SERIES + 1}@0.7", "width": 1.2, "dash": "dot",
                                    "shape": "vh"},
                           "hovertemplate": "%{y:.0f} % of the true speed"})  # fmt: skip
        x, y = held(points, asked, evaluation["interval_s"])
        traces.append({"x": x, "y": y, "name": f"server {s + 1}", "mode": "lines", "line": line,
                       "hovertemplate": f"%{{y:.0f}} % set, {server}"})  # fmt: skip
        middles = [p.at_s - evaluation["interval_s"] / 2 for p in points]
        traces.append({"x": middles, "y": seen, "mode": "markers", "showlegend": False, "name": f"server {s + 1}",
                       "marker": {"size": 4, "color": f"--server-{s % _SERIES + 1}@0.45"},
                       "hovertemplate": "%{y:.0f} % of the requests"})  # fmt: skip
    high = min(100.0, 1.1 * top)
    places = spread(list(ends.values()), 16 / 200 * high, 0, high)
    layout = {
        "xaxis": {"title": {"text": "measured seconds"}, "range": [0, _end_s(evaluation)]},
        "yaxis": {"title": {"text": "share of requests, %"}, "range": [0, high]},
        "shapes": _rounds(evaluation),
        "annotations": [
            end_label(label, f"--server-{(int(label.split()[1]) - 1) % _SERIES + 1}", place)
            for label, place in zip(ends, places, strict=True)
        ],
    }
    return Figure(name, traces, layout, 280)


def _policy_labels(
    evaluation: dict[str, Any], ends: dict[str, float], limits: tuple[float, float], height_px: int
) -> list[dict[str, Any]]:
    """Names at the right ends of the lines, on a log10 axis, pushed apart where they would touch."""
    gap = 17 / (height_px - 80) * (limits[1] - limits[0])
    places = spread([math.log10(max(v, 1e-9)) for v in ends.values()], gap, *limits)
    return [
        end_label(
            policy + _beyond(ends[policy], limits),
            policy_style(evaluation, policy)["color"],
            place,
            bold=policy == evaluation["learned"],
        )
        for policy, place in zip(ends, places, strict=True)
    ]


def _beyond(value: float, limits: tuple[float, float]) -> str:
    if math.log10(max(value, 1e-9)) > limits[1]:
        return " ↑"
    return " ↓" if math.log10(max(value, 1e-9)) < limits[0] else ""


def _distributions(evaluation: dict[str, Any], request_type: str | None) -> dict[str, dict[float, float]]:
    """Policy → percentile → latency in ms, from the tenth percentile on."""
    found = {}
    for policy, result in evaluation["policies"].items():
        latency = (result["per_type"][request_type] if request_type else result)["latency"]
        points = zip(latency["percentile"], latency["latency_ms"], strict=True)
        kept = {p: value for p, value in points if p >= _FIRST and value > 0}
        if kept:
            found[policy] = kept
    return found


def _percentile_axis(curves: dict[str, dict[float, float]]) -> dict[str, Any]:
    last = max(max(latency) for latency in curves.values())
    ticks = [p for p in _NINES if p <= last]
    return {
        "title": {"text": "percentile of requests"}, "range": [_nines(_FIRST), _nines(last)], "tickangle": 0,
        "tickvals": [_nines(p) for p in ticks], "ticktext": [f"p{p:g}" for p in ticks],
    }  # fmt: skip


def _nines(percentile: float) -> float:
    return -math.log10(1 - percentile / 100)


def _deadline(evaluation: dict[str, Any], request_type: str | None, limits: tuple[float, float]) -> list[Trace]:
    if request_type is None:
        return []
    deadline_ms = evaluation["deadlines_ms"][request_type]
    if not limits[0] <= math.log10(deadline_ms) <= limits[1]:
        return []
    return [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": deadline_ms, "y1": deadline_ms,
             "line": {"color": "--muted", "width": 1, "dash": "dot"}, "layer": "below",
             "label": {"text": f"deadline {deadline_ms:.0f} ms", "textposition": "start", "yanchor": "bottom",
                       "font": {"color": "--muted", "size": 11}}}]  # fmt: skip


def _rounds(evaluation: dict[str, Any]) -> list[Trace]:
    return [
        {"type": "line", "x0": n * evaluation["measure_s"], "x1": n * evaluation["measure_s"], "yref": "paper",
         "y0": 0, "y1": 1, "line": {"color": "--line", "width": 1}, "layer": "below"}
        for n in range(1, evaluation["rounds"])
    ]  # fmt: skip


def _events(evaluation: dict[str, Any], y: float) -> list[Trace]:
    found = {
        (block["round"] * evaluation["measure_s"] + event["at_s"], event["server"], event["text"])
        for block in evaluation["blocks"]
        for event in block["events"]
        if event["at_s"] < evaluation["measure_s"]
    }
    if not found:
        return []
    events = sorted(found)
    return [{"x": [at for at, _, _ in events], "y": [y] * len(events), "mode": "markers", "name": "scenario events",
             "text": [f"{server} {text}".strip() for _, server, text in events], "hovertemplate": "%{text}",
             "marker": {"symbol": "triangle-up", "size": 8, "color": "--ink@0.7"}}]  # fmt: skip


def _end_s(evaluation: dict[str, Any]) -> float:
    return float(evaluation["rounds"] * evaluation["measure_s"])


def _last(values: list[float | None]) -> float:
    return next(value for value in reversed(values) if value is not None)


def _traffic_share(requests: list[int], server: int) -> float | None:
    return 100 * requests[server] / sum(requests) if sum(requests) else None
