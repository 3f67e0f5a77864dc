"""Renders the pages: Jinja2 templates, one stylesheet, one script and one plotly template. A page works offline."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tuning.judging.verdicts import (
    METRIC_NAMES,
    describe_ratio,
    format_interval,
    format_ratio,
    format_value,
    ratio_of,
    verdicts,
)
from tuning.report import figures, learning, summary

TERMS = {
    "ART": "accumulative relative tardiness per request: the time beyond the deadline divided by the deadline; "
    "a failed request costs at least as much as an answer after 1 s",
    "J": "mean of latency / deadline plus ART, per request; it covers the usual speed and the lateness",
    "goodput": "share of all arrivals that were answered inside their deadline; refused and failed requests count as "
    "not answered",
    "deadline": "mean + (1 + 1/priority) standard deviations of a request type's response times in the observation "
    "phase",
}
"""The measures as docs/glossary.md defines them."""


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


def render(template: str, provenance: Provenance | None = None, lead: str = "", **context: Any) -> str:
    """A page as text.

    Args:
        template: file in `templates/` that extends `page.html.j2`.
        provenance: how to repeat the run; None leaves the section out.
        lead: text below the headline.
        context: what the template names.
    """
    return _environment().get_template(template).render(provenance=provenance, lead=lead, **context)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    # JSON has no NaN; a page that held one would not draw.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters |= {
        "describe": describe_ratio, "interval": format_interval, "part_name": summary.part_name,
        "ratio": format_ratio, "value": format_value,
    }  # fmt: skip
    environment.globals |= {
        "METRIC_NAMES": METRIC_NAMES, "TERMS": TERMS, "figures": figures, "learning": learning, "summary": summary,
        "plotly": Markup(get_plotlyjs()), "ratio_of": ratio_of, "verdicts": verdicts, "zip": zip,
    }  # fmt: skip
    return environment
