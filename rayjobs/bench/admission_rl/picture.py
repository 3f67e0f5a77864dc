"""The picture of docs/admission-learning.md: goodput of every arm, and what the worst type gets."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from envs.study.goodput import Goodput
from rayjobs.bench.admission_rl import figures
from rayjobs.bench.admission_rl.experiment import Found

WIDTH, ROW, TOP, LEFT, PANEL, GAP = 900, 34, 64, 300, 270, 40
LOW, HIGH = 0.4, 1.0
PLAIN, LEARNED = "#44546a", "#c2571a"


def picture(found: Found) -> str:
    """SVG: a row for each arm, with dots and intervals of two standard errors over the draws."""
    rows: list[tuple[str, Sequence[Goodput], str]] = [
        (name, [plays[1.0]], PLAIN) for name, plays in found.plain.items()
    ]
    rows += [(name, plays[1.0], LEARNED) for name, plays in found.learned.items()]
    rows += [(f"{name}, as proven", plays[1.0], LEARNED) for name, plays in found.kept.items()]
    rows.sort(key=lambda row: figures.goodput(row[1]).mean)
    height = TOP + ROW * len(rows) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" '
        f'font-size="13" role="img" aria-label="Goodput and worst type of each way to admit requests">',
        f'<rect width="{WIDTH}" height="{height}" rx="12" fill="#f7f9fc"/>',
    ]
    for panel, title in enumerate(("goodput U", "goodput of the worst type")):
        parts += _axis(panel, title, len(rows))
    for number, (name, plays, colour) in enumerate(rows):
        y = TOP + ROW * number + ROW // 2
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end" fill="#17202a">{escape(name)}</text>')
        for panel, value in enumerate((figures.goodput(plays), figures.worst_type(plays))):
            parts += _dot(panel, y, value, colour)
    note = f"{found.draws} draws of family H; lines: 2 standard errors over the draws; orange: learned"
    parts.append(f'<text x="20" y="{height - 12}" fill="#5b6672" font-size="12">{escape(note)}</text></svg>')
    return "\n".join(parts) + "\n"


def _x(panel: int, share: float) -> float:
    return LEFT + panel * (PANEL + GAP) + (min(max(share, LOW), HIGH) - LOW) / (HIGH - LOW) * PANEL


def _axis(panel: int, title: str, rows: int) -> list[str]:
    bottom = TOP + ROW * rows
    parts = [f'<text x="{_x(panel, LOW)}" y="24" font-weight="600" fill="#17202a">{title}</text>']
    for tenth in range(round(LOW * 10), round(HIGH * 10) + 1):
        x = _x(panel, tenth / 10)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="#d5dbe3"/>')
        parts.append(f'<text x="{x:.1f}" y="{TOP - 14}" text-anchor="middle" fill="#5b6672">{tenth / 10:g}</text>')
    return parts


def _dot(panel: int, y: int, value: figures.Interval, colour: str) -> list[str]:
    low, high = _x(panel, value.mean - value.half), _x(panel, value.mean + value.half)
    x = _x(panel, value.mean)
    return [
        f'<line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}" stroke="{colour}" stroke-width="2"/>',
        f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="{colour}"/>',
        f'<text x="{x:.1f}" y="{y - 8}" text-anchor="middle" font-size="11" fill="{colour}">{value.mean:.3f}</text>',
    ]
