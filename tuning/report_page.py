"""Puts the report's page together: sections in reading order, figures as JSON, plotly.js inlined once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from tuning import report_overview as overview
from tuning import report_summary as summary
from tuning.report_figures import latency_figure, ratio_figure, steering_policies, tail_figure, weight_figure
from tuning.report_learning import (
    EncoderSummary,
    TrainingPoint,
    bic_figure,
    states_figure,
    timeline_figure,
    training_figures,
)  # fmt: skip
from tuning.report_series import Figure

_HERE = Path(__file__).parent
# Nothing may be fetched: the page proves by itself that it works offline.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class Provenance:
    """What is needed to repeat the run.

    Attributes:
        command: the exact command line.
        config_yaml: the resolved configuration.
        versions: package or program → version.
    """

    command: str = ""
    config_yaml: str = ""
    versions: dict[str, str] = field(default_factory=dict)


class _Page:
    """Collects figures while the sections are written."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.prefix = ""

    def place(self, figure: Figure) -> str:
        """The element that the figure will be drawn in, or the reason why there is none."""
        figure = replace(figure, name=self.prefix + figure.name)
        if figure.empty:
            return f'<p class="empty" data-figure="{escape(figure.name)}">{escape(figure.empty)}</p>'
        self.figures.append(figure)
        return f'<div class="figure" id="{escape(figure.name)}" style="height:{figure.height_px}px"></div>'

    def tabs(self, label: str, panels: dict[str, str]) -> str:
        """Panels of which one is shown; without buttons when there is only one."""
        if len(panels) == 1:
            return next(iter(panels.values()))
        buttons = "".join(
            f'<button role="tab" aria-selected="{str(i == 0).lower()}">{escape(name)}</button>'
            for i, name in enumerate(panels)
        )
        bodies = "".join(
            f'<div role="tabpanel"{"" if i == 0 else " hidden"}>{body}</div>' for i, body in enumerate(panels.values())
        )
        return f'<div class="tabs"><div role="tablist" aria-label="{escape(label)}">{buttons}</div>{bodies}</div>'

    def json(self) -> str:
        """All figures for the page's script; no text in it can end the script element."""
        content = [{"name": f.name, "traces": f.traces, "layout": f.layout} for f in self.figures]
        return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


def render_page(
    evaluations: Sequence[dict[str, Any]],
    training: Sequence[TrainingPoint],
    encoder: EncoderSummary | None,
    provenance: Provenance,
) -> str:
    """The whole page as text; the first evaluation gives the headline, further ones have a tab each."""
    page = _Page()
    first = evaluations[0]
    if len(evaluations) == 1:
        results = _results(first) + _judged(page, first)
        numbers = _method(first)
    else:
        results = _overview(page, evaluations)
        numbers = ""
    learned = _states(page, encoder) + _training(page, training)
    sections = f"{results}{learned}{numbers}{_repeat(provenance, first)}"
    title = f"{summary.in_words([evaluation['scenario'] for evaluation in evaluations])} · Deep Scheduling"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<link rel="icon" href="data:,"><style>{(_HERE / "report.css").read_text()}</style></head>'
        f"<body><main>{_header(evaluations)}{sections}</main>"
        f'<script type="application/json" id="figures">{page.json()}</script>'
        f"<script>{get_plotlyjs()}</script><script>{(_HERE / 'report.js').read_text()}</script></body></html>\n"
    )


def _judged(page: _Page, evaluation: dict[str, Any]) -> str:
    return _latency(page, evaluation) + _tail(page, evaluation) + _weights(page, evaluation)


def _overview(page: _Page, evaluations: Sequence[dict[str, Any]]) -> str:
    """Ratios of every policy on every scenario, then everything about each scenario under a tab of its own."""
    text = (
        "Each cell: mean and p99 of a policy over the reference's, with the 95 % interval below. "
        "Coloured only where the interval does not touch 1×; a dash where the policy was not judged."
    )
    table = f'<div class="scroll">{overview.scenario_table(evaluations)}</div>'
    panels = {}
    for number, evaluation in enumerate(evaluations):
        page.prefix = f"part-{number}-"
        head, lead = escape(summary.headline(evaluation)), escape(summary.subline(evaluation))
        body = _results(evaluation) + _judged(page, evaluation) + _method(evaluation)
        panels[overview.part_name(evaluation)] = f'<h3>{head}</h3><p class="prose">{lead}</p>{body}'
    page.prefix = ""
    return _section("Every scenario", text, table) + page.tabs("scenario", panels)


def _header(evaluations: Sequence[dict[str, Any]]) -> str:
    evaluation = evaluations[0]
    machine = evaluation["machine"]
    requests = sum(e["accounting"]["requests"] for e in evaluations if e["accounting"])
    facts = [
        evaluation["created"].replace("T", " ").removesuffix("+00:00") + " UTC",
        f"{evaluation['rounds']} rounds of {evaluation['measure_s']:g} s per policy",
        f"{requests:,} requests" if requests else "no requests",
        overview.seeds_text(evaluation),
        *([f"{machine['cores']} cores, {machine['cpu']}"] if "cores" in machine and "cpu" in machine else []),
    ]
    if len(evaluations) == 1:
        head, lead = summary.headline(evaluation), summary.subline(evaluation)
    else:
        head, lead = overview.overall(evaluations), ""
    return (
        f'<header><p class="brand">Deep Scheduling <span>run report</span></p>'
        f"<h1>{escape(head)}</h1>"
        f'<p class="lead">{escape(lead)}</p>'
        f'<p class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</p></header>'
    )


def _section(title: str, text: str, body: str) -> str:
    prose = f'<p class="prose">{escape(text)}</p>' if text else ""
    return f"<section><h2>{escape(title)}</h2>{prose}{body}</section>"


def _results(evaluation: dict[str, Any]) -> str:
    text = (
        f"A ratio below 1 is better. Each bar is the 95 % interval of a ratio over paired rounds; "
        f"where it touches the line at 1× nothing is claimed. {evaluation['reference']} is the reference."
    )
    return f'{summary.cards(evaluation)}<p class="prose note">{escape(text)}</p>' if evaluation["learned"] else ""


def _latency(page: _Page, evaluation: dict[str, Any]) -> str:
    types = [group["request_type"] for group in evaluation["groups"]]
    reference = evaluation["reference"]
    panels = {
        name or "all requests": '<div class="row">'
        f"<div><h3>By percentile</h3>{page.place(latency_figure(evaluation, name))}</div>"
        f"<div><h3>Divided by {escape(reference)}’s</h3>{page.place(ratio_figure(evaluation, name))}</div></div>"
        for name in (None, *types)
    }
    text = "From the moment a request was due to its last byte; lower is better. Each mark to the right is a nine more."
    return _section("How long requests took", text, page.tabs("request type", panels))


def _tail(page: _Page, evaluation: dict[str, Any]) -> str:
    text = (
        "Within a round every policy meets the same arrivals, one policy after the other, in an order drawn by the "
        "seed. Thin vertical lines part the rounds."
    )
    if any(event["at_s"] < evaluation["measure_s"] for block in evaluation["blocks"] for event in block["events"]):
        text += " Triangles mark what the scenario did to the servers or the load."
    return _section("The tail over time", text, page.place(tail_figure(evaluation)))


def _weights(page: _Page, evaluation: dict[str, Any]) -> str:
    steering = steering_policies(evaluation)
    still = [policy for policy in evaluation["policies"] if policy not in steering]
    panels = {}
    for policy in steering:
        cells = [
            f"<div><h3>{escape(group['request_type'])}</h3>{page.place(weight_figure(evaluation, policy, g))}</div>"
            for g, group in enumerate(evaluation["groups"])
        ]
        panels[policy] = f'<div class="row">{"".join(cells)}</div>'
    text = "Lines: the share that the control asks for. Dots: where the requests went. Dotted: the true speeds. "
    text += f"{summary.in_words(still)} never changed theirs." if still else ""
    body = page.tabs("policy", panels) if panels else '<p class="empty">No policy changed its control in this run.</p>'
    return _section("What the policies asked for", text, body + _servers(evaluation))


def _servers(evaluation: dict[str, Any]) -> str:
    servers = dict.fromkeys(server for group in evaluation["groups"] for server in group["servers"])
    items = ", ".join(f"server {number} is {address}" for number, address in enumerate(servers, 1))
    return f'<p class="prose note">{escape(items)}</p>'


def _states(page: _Page, encoder: EncoderSummary | None) -> str:
    text = "The mixture model sorts what it sees of a window into one of a few states. Pale bars: it was unsure."
    if encoder is not None and encoder.visits:
        novel = sum(visit.is_novel for visit in encoder.visits)
        text += f" {novel} of {len(encoder.visits)} times it saw something outside of every state."
    cells = (
        f"<div><h3>What tells the states apart</h3>{page.place(states_figure(encoder))}</div>"
        f"<div><h3>How many states</h3>{page.place(bic_figure(encoder))}</div>"
    )
    return _section("The states it saw", text, page.place(timeline_figure(encoder)) + f'<div class="row">{cells}</div>')


def _training(page: _Page, training: Sequence[TrainingPoint]) -> str:
    figures = training_figures(training)
    if not training:
        return _section("How it learned", "", page.place(figures[""]))
    cells = "".join(
        f"<div><h3>On the {escape(phase)} testbed</h3>{page.place(figure)}</div>" for phase, figure in figures.items()
    )
    text = "A dot per iteration; the line is the mean of the last five. Returns of different testbeds do not compare."
    return _section("How it learned", text, f'<div class="row">{cells}</div>')


def _method(evaluation: dict[str, Any]) -> str:
    types = [group["request_type"] for group in evaluation["groups"]]
    details = "".join(
        f'<details><summary>{escape(name)} only</summary><div class="scroll">'
        f"{summary.results_table(evaluation, name)}</div></details>"
        for name in types
    )
    deadlines = ", ".join(f"{name} {value:.1f} ms" for name, value in evaluation["deadlines_ms"].items())
    text = (
        f"Blocks of {evaluation['warm_up_s']:g} s warm-up, not counted, and {evaluation['measure_s']:g} s measured. "
        f"Intervals are bootstrapped over rounds and widened for few rounds. ART is the tardiness beyond the deadline "
        f"relative to it, per request; an error costs at least what an answer after 1 s costs. Deadlines: {deadlines}."
    )
    body = (
        f'<div class="scroll">{summary.results_table(evaluation)}</div>{details}{summary.verdict_list(evaluation)}'
        f'<div class="prose">{summary.accounting(evaluation)}</div>'
    )
    return _section("All numbers", text, body)


def _repeat(provenance: Provenance, evaluation: dict[str, Any]) -> str:
    facts = {
        **{name.replace("_", " "): str(value) for name, value in evaluation["machine"].items()},
        **provenance.versions,
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    command = (
        f'<div class="command"><pre>{escape(provenance.command)}</pre><button data-copy>Copy</button></div>'
        if provenance.command
        else '<p class="empty">The command was not recorded.</p>'
    )
    config = (
        f"<details><summary>Configuration</summary><pre>{escape(provenance.config_yaml)}</pre></details>"
        if provenance.config_yaml
        else '<p class="empty">The configuration was not recorded.</p>'
    )
    return _section("Repeat it", "", f"{command}{config}<dl>{rows}</dl>")
