"""Puts the report's page together: its sections in reading order."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from tuning.report import overview, summary
from tuning.report.document import Page, Provenance, document, header, repeat, section
from tuning.report.figures import latency_figure, ratio_figure, steering_policies, tail_figure, weight_figure
from tuning.report.learning import (
    EncoderSummary,
    TrainingPoint,
    bic_figure,
    states_figure,
    timeline_figure,
    training_figures,
)


def render_page(
    evaluations: Sequence[dict[str, Any]],
    training: Sequence[TrainingPoint],
    encoder: EncoderSummary | None,
    provenance: Provenance,
) -> str:
    """The whole page as text; the first evaluation gives the headline, further ones have a tab each."""
    page = Page()
    first = evaluations[0]
    if len(evaluations) == 1:
        results = _results(first) + _judged(page, first)
        numbers = _method(first)
    else:
        results = _overview(page, evaluations)
        numbers = ""
    learned = _states(page, encoder) + _training(page, training)
    machine = {name.replace("_", " "): str(value) for name, value in first["machine"].items()}
    sections = f"{results}{learned}{numbers}{repeat(provenance, machine)}"
    title = summary.in_words([evaluation["scenario"] for evaluation in evaluations])
    return document(page, title, _header(evaluations) + sections)


def _judged(page: Page, evaluation: dict[str, Any]) -> str:
    return _latency(page, evaluation) + _tail(page, evaluation) + _weights(page, evaluation)


def _overview(page: Page, evaluations: Sequence[dict[str, Any]]) -> str:
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
    return section("Every scenario", text, table) + page.tabs("scenario", panels)


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
    return header("run report", head, lead, facts)


def _results(evaluation: dict[str, Any]) -> str:
    text = (
        f"A ratio below 1 is better. Each bar is the 95 % interval of a ratio over paired rounds; "
        f"where it touches the line at 1× nothing is claimed. {evaluation['reference']} is the reference."
    )
    return f'{summary.cards(evaluation)}<p class="prose note">{escape(text)}</p>' if evaluation["learned"] else ""


def _latency(page: Page, evaluation: dict[str, Any]) -> str:
    types = [group["request_type"] for group in evaluation["groups"]]
    reference = evaluation["reference"]
    panels = {
        name or "all requests": '<div class="row">'
        f"<div><h3>By percentile</h3>{page.place(latency_figure(evaluation, name))}</div>"
        f"<div><h3>Divided by {escape(reference)}’s</h3>{page.place(ratio_figure(evaluation, name))}</div></div>"
        for name in (None, *types)
    }
    text = "From the moment a request was due to its last byte; lower is better. Each mark to the right is a nine more."
    return section("How long requests took", text, page.tabs("request type", panels))


def _tail(page: Page, evaluation: dict[str, Any]) -> str:
    text = (
        "Within a round every policy meets the same arrivals, one policy after the other, in an order drawn by the "
        "seed. Thin vertical lines part the rounds."
    )
    if any(event["at_s"] < evaluation["measure_s"] for block in evaluation["blocks"] for event in block["events"]):
        text += " Triangles mark what the scenario did to the servers or the load."
    return section("The tail over time", text, page.place(tail_figure(evaluation)))


def _weights(page: Page, evaluation: dict[str, Any]) -> str:
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
    return section("What the policies asked for", text, body + _servers(evaluation))


def _servers(evaluation: dict[str, Any]) -> str:
    servers = dict.fromkeys(server for group in evaluation["groups"] for server in group["servers"])
    items = ", ".join(f"server {number} is {address}" for number, address in enumerate(servers, 1))
    return f'<p class="prose note">{escape(items)}</p>'


def _states(page: Page, encoder: EncoderSummary | None) -> str:
    text = "The mixture model sorts what it sees of a window into one of a few states. Pale bars: it was unsure."
    if encoder is not None and encoder.visits:
        novel = sum(visit.is_novel for visit in encoder.visits)
        text += f" {novel} of {len(encoder.visits)} times it saw something outside of every state."
    cells = (
        f"<div><h3>What tells the states apart</h3>{page.place(states_figure(encoder))}</div>"
        f"<div><h3>How many states</h3>{page.place(bic_figure(encoder))}</div>"
    )
    return section("The states it saw", text, page.place(timeline_figure(encoder)) + f'<div class="row">{cells}</div>')


def _training(page: Page, training: Sequence[TrainingPoint]) -> str:
    figures = training_figures(training)
    if not training:
        return section("How it learned", "", page.place(figures[""]))
    cells = "".join(
        f"<div><h3>On the {escape(phase)} testbed</h3>{page.place(figure)}</div>" for phase, figure in figures.items()
    )
    text = "A dot per iteration; the line is the mean of the last five. Returns of different testbeds do not compare."
    return section("How it learned", text, f'<div class="row">{cells}</div>')


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
    return section("All numbers", text, body)
