"""A window as a text or a picture, for `render`: what each server got, how many requests it has, and how it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.window import Window
from actuators.errors import ConfigError

RenderMode = Literal["ansi", "rgb_array"]

BAR_CHARACTERS = 20
WIDTH, ROW, MARGIN, TITLE, NAMES, VALUES = 960, 18, 12, 22, 98, 44
"""Pixels: of the picture, a row, the border, a title, the names before bars and the values behind them."""
BACKGROUND, INK, TRACK, LATE, LINE = (255, 255, 255), (40, 40, 40), (232, 232, 232), (200, 60, 50), (0, 0, 0)
COLOURS = ((66, 100, 180), (70, 150, 110), (190, 130, 50), (130, 90, 160), (90, 140, 160))
"""Of the groups, in turn."""


def check_render_mode(mode: str | None) -> RenderMode | None:
    """The mode. Raises ConfigError for one that there is not."""
    if mode is not None and mode not in get_args(RenderMode):
        known = " or ".join(get_args(RenderMode))
        raise ConfigError(f"no render mode '{mode}'", where="render_mode", remedy=f"use {known}")
    return cast(RenderMode | None, mode)


def rendered(window: Window, deadlines_s: FloatArray, mode: RenderMode) -> str | NDArray[np.uint8]:
    """The window in this mode; `deadlines_s`: ``[groups]``."""
    return text_of(window, deadlines_s) if mode == "ansi" else picture_of(window, deadlines_s)


def shares_of(window: Window) -> FloatArray:
    """``[groups, servers]``: share of the group's requests that each server answered; 0 in a silent group."""
    shares: FloatArray = window.requests / np.maximum(window.requests.sum(axis=1, keepdims=True), 1)
    return shares


def text_of(window: Window, deadlines_s: FloatArray) -> str:
    """A line per group and server, in ASCII; a response time beyond the deadline is marked with `!`."""
    shares, mean_s = shares_of(window), window.mean_response_s()
    lines = [f"{window.start_s:.1f} s to {window.end_s:.1f} s, {int(window.requests.sum())} requests"]
    for row, group in enumerate(window.topology.groups):
        lines.append(f"{group.request_type}: deadline {1e3 * deadlines_s[row]:.0f} ms")
        for column in np.flatnonzero(window.topology.mask[row]):
            bar = "#" * round(BAR_CHARACTERS * shares[row, column])
            late = "!" if mean_s[row, column] > deadlines_s[row] else " "
            lines.append(
                f"  server {column + 1:<2} {bar:<{BAR_CHARACTERS}} {shares[row, column]:4.0%}"
                f"  weight {window.weight[row, column]:3d}  in flight {_in_flight(window, row, int(column)):>3}"
                f"  {_milliseconds(mean_s[row, column]):>6} ms{late}"
            )
    return "\n".join(lines)


def picture_of(window: Window, deadlines_s: FloatArray) -> NDArray[np.uint8]:
    """RGB: three panels with a bar per group and server; bars of answers that are late in the mean are red."""
    cells = np.argwhere(window.topology.mask)
    rows, columns = cells.T
    mean_s, shares = window.mean_response_s()[rows, columns], shares_of(window)[rows, columns]
    active = np.zeros(len(cells)) if window.active is None else window.active[rows, columns].astype(float)
    counted = [_in_flight(window, int(row), int(column)) for row, column in cells]
    relative = np.nan_to_num(mean_s / deadlines_s[rows])
    names = [f"{window.topology.groups[row].request_type} {column + 1}" for row, column in cells]
    return drawn(
        names,
        rows,
        (
            Panel("share of the requests", shares, [f"{share:.0%}" for share in shares]),
            Panel("requests in flight", active / max(active.max(), 1.0), counted),
            Panel(
                "mean response time, ms; line: deadline", np.minimum(relative / 2.0, 1.0),
                [_milliseconds(each) for each in mean_s], late=relative > 1, line=0.5,
            ),
        ),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Panel:
    """Bars of one quantity, a row each.

    Attributes:
        lengths: ``[rows]``, 0 to 1.
        texts: what stands behind each bar.
        late: ``[rows]``, bars that are red.
        line: where a line goes through all rows, 0 to 1.
    """

    title: str
    lengths: FloatArray
    texts: Sequence[str]
    late: NDArray[np.bool_] | None = None
    line: float | None = None


def drawn(names: Sequence[str], kinds: Sequence[int] | IntArray, panels: Sequence[Panel]) -> NDArray[np.uint8]:
    """RGB ``[height, 960, 3]``, panels side by side; `kinds` gives each row its colour."""
    from PIL import Image, ImageDraw  # noqa: PLC0415 - needed for this only

    height = 2 * MARGIN + TITLE + ROW * len(names)
    image = Image.new("RGB", (WIDTH, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    width = (WIDTH - MARGIN) // len(panels)
    for number, panel in enumerate(panels):
        first = MARGIN + number * width
        left, right = first + NAMES, first + width - VALUES
        draw.text((first, MARGIN), panel.title, fill=INK)
        for row, name in enumerate(names):
            top = MARGIN + TITLE + ROW * row
            late = panel.late is not None and bool(panel.late[row])
            draw.text((first, top + 2), name[:16], fill=INK)
            draw.rectangle((left, top + 3, right, top + ROW - 3), fill=TRACK)
            length = round((right - left) * float(panel.lengths[row]))
            if length:
                colour = LATE if late else COLOURS[kinds[row] % len(COLOURS)]
                draw.rectangle((left, top + 3, left + length, top + ROW - 3), fill=colour)
            draw.text((right + 6, top + 2), panel.texts[row], fill=INK)
        if panel.line is not None:
            at = left + round((right - left) * panel.line)
            draw.line((at, MARGIN + TITLE, at, height - MARGIN), fill=LINE)
    return np.asarray(image, dtype=np.uint8).copy()


def _in_flight(window: Window, row: int, column: int) -> str:
    return "-" if window.active is None else str(int(window.active[row, column]))


def _milliseconds(seconds: float) -> str:
    return "-" if np.isnan(seconds) else f"{1e3 * seconds:.1f}"
