"""The shell of a page: figures as JSON, sections, plotly.js inlined once, how to repeat the run. Works offline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

from plotly.offline import get_plotlyjs

from tuning.report.axes import Figure

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


class Page:
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


def document(page: Page, title: str, body: str) -> str:
    """The whole page as text; `body` is HTML whose figures are the page's."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · Deep Scheduling</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<link rel="icon" href="data:,"><style>{(_HERE / "report.css").read_text()}</style></head>'
        f"<body><main>{body}</main>"
        f'<script type="application/json" id="figures">{page.json()}</script>'
        f"<script>{get_plotlyjs()}</script><script>{(_HERE / 'report.js').read_text()}</script></body></html>\n"
    )


def header(kind: str, head: str, lead: str, facts: Sequence[str]) -> str:
    """What the page is, in one sentence, with the facts behind it."""
    return (
        f'<header><p class="brand">Deep Scheduling <span>{escape(kind)}</span></p>'
        f"<h1>{escape(head)}</h1>"
        f'<p class="lead">{escape(lead)}</p>'
        f'<p class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</p></header>'
    )


def section(title: str, text: str, body: str) -> str:
    """One section; `text` is plain, `body` is HTML."""
    prose = f'<p class="prose">{escape(text)}</p>' if text else ""
    return f"<section><h2>{escape(title)}</h2>{prose}{body}</section>"


def repeat(provenance: Provenance, machine: dict[str, str]) -> str:
    """Command, configuration and versions."""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in {**machine, **provenance.versions}.items()
    )
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
    return section("Repeat it", "", f"{command}{config}<dl>{rows}</dl>")
