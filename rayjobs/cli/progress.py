"""Shows what a long job does, for how long, and what is next: drawn live on a terminal, plain lines elsewhere.

On `rich.live`, not `rich.progress`: skipped, late and failed stages and the plain lines are most of the code, and the
same on `rich.progress` was not shorter.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rayjobs.cli.console import console_err

UPDATE_EVERY_S = 5.0
"""Plain lines: at most one update in this time."""
SILENT_S = 8.0
"""Plain lines: after this time without a line, the last update is said again, with the time so far."""


@dataclass(frozen=True)
class Stage:
    """One part of a job, announced before it starts."""

    name: str
    expected_s: float | None
    """None when nothing is known of its length."""


class Progress:
    """The stages of one job; a context manager. What is printed meanwhile appears above the live part.

    Args:
        stages: in the order they will run; one that is never entered is shown as skipped.
        console: stderr when None.
        clock: seconds, monotonic.
        drawn: False prints plain lines on a terminal as well: drawing takes CPU time from what is measured meanwhile.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        drawn: bool = True,
    ) -> None:
        self._rows = [_Row(stage) for stage in stages]
        self._console = console or console_err()
        self._clock = clock
        self._started_s = clock()
        self._lock, self._over = threading.RLock(), threading.Event()
        self._beating = threading.Thread(target=self._beat, name="progress", daemon=True)
        self._live = (
            Live(get_renderable=self._draw, console=self._console, refresh_per_second=5)
            if drawn and self._console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        self._started_s = self._clock()
        if self._live:
            self._live.start()
        else:
            self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        else:
            self._over.set()
            self._beating.join()

    def beat(self) -> None:
        """Plain lines: says what goes on when nothing was said for SILENT_S; a thread calls it every second."""
        with self._lock:
            now_s = self._clock()
            for index, row in enumerate(self._rows):
                if row.start_s is not None and row.end_s is None and now_s - row.printed_s >= SILENT_S:
                    self._say(index, now_s)

    def _beat(self) -> None:
        while not self._over.wait(1.0):
            self.beat()

    @contextmanager
    def stage(self, name: str) -> Iterator[StageProgress]:
        """Runs one announced stage; an exception marks it as ended early and is passed on.

        Raises:
            KeyError: no stage of that name was announced.
        """
        index = next((i for i, row in enumerate(self._rows) if row.stage.name == name), None)
        if index is None:
            raise KeyError(f"no stage '{name}' among {[row.stage.name for row in self._rows]}")
        row = self._rows[index]
        row.start_s = row.printed_s = self._clock()
        about = "" if row.stage.expected_s is None else f", {_about(row.stage.expected_s)}"
        self._print(index, f"started{about}; next: {self._next(index)}")
        try:
            yield StageProgress(self, index)
        except BaseException as error:
            outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self._end(index, outcome, "after")
            raise
        self._end(index, "done", "in")

    def _end(self, index: int, outcome: str, preposition: str) -> None:
        with self._lock:
            row, now_s = self._rows[index], self._clock()
            row.end_s, row.outcome = now_s, outcome
            took_s = now_s - (row.start_s or 0.0)
            self._print(index, f"{outcome} {preposition} {_span(took_s)}")

    def update(self, index: int, text: str, fraction: float | None = None) -> None:
        """What the running stage does now; plain lines are printed at most every UPDATE_EVERY_S."""
        row = self._rows[index]
        row.text = text
        row.fraction = None if fraction is None else min(max(fraction, 0.0), 1.0)
        with self._lock:
            now_s = self._clock()
            if now_s - row.printed_s >= UPDATE_EVERY_S:
                self._say(index, now_s)

    def say(self, index: int, text: str) -> None:
        """A line of the running stage that is printed at once and never left out; also what it does now."""
        with self._lock:
            self._rows[index].text = text
            if self._live is None:
                self._say(index, self._clock())
            else:
                self._console.print(f"{self._rows[index].stage.name}: {text}", markup=False, soft_wrap=True)

    def _say(self, index: int, now_s: float) -> None:
        row = self._rows[index]
        row.printed_s = now_s
        self._print(index, f"{self._timing(row)}: {row.text}" if row.text else self._timing(row))

    def refresh(self) -> None:
        """Draws the live part now instead of at its next turn."""
        if self._live is not None:
            self._live.refresh()

    def _print(self, index: int, text: str) -> None:
        if self._live is None:
            stamp = datetime.now().strftime("%H:%M:%S")
            name = self._rows[index].stage.name
            line = f"{stamp} [{index + 1}/{len(self._rows)}] {name}: {text}"
            self._console.print(line, markup=False, soft_wrap=True)

    def _next(self, index: int) -> str:
        return next((row.stage.name for row in self._rows[index + 1 :] if row.start_s is None), "nothing, then done")

    def _timing(self, row: _Row) -> str:
        start_s = self._started_s if row.start_s is None else row.start_s
        elapsed_s = (self._clock() if row.end_s is None else row.end_s) - start_s
        if row.stage.expected_s is None:
            return _span(elapsed_s)
        late = ", longer than expected" if row.end_s is None and elapsed_s > 1.2 * row.stage.expected_s else ""
        return f"{_span(elapsed_s)} of {_about(row.stage.expected_s)}{late}"

    def _draw(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        last_started = max((i for i, row in enumerate(self._rows) if row.start_s is not None), default=-1)
        for index, row in enumerate(self._rows):
            grid.add_row(*self._cells(row, passed=index < last_started))
        running = next((i for i, row in enumerate(self._rows) if row.start_s is not None and row.end_s is None), None)
        known_s = [row.stage.expected_s for row in self._rows if row.stage.expected_s is not None]
        whole = f" of {_about(sum(known_s))}" if len(known_s) == len(self._rows) else ""
        line = f"  {_span(self._clock() - self._started_s)}{whole} in all"
        if running is not None:
            line += f" · next: {self._next(running)}"
        return Group(grid, Text(line, style="dim"))

    def _cells(self, row: _Row, *, passed: bool) -> tuple[RenderableType, ...]:
        if row.start_s is None:
            note = "skipped" if passed else _about(row.stage.expected_s)
            return Text(" ·", style="dim"), Text(row.stage.name, style="dim"), "", Text(note, style="dim"), ""
        if row.end_s is None:
            share = row.fraction
            if share is None:
                # Without a report from the stage, time is the best guess; it never shows the end.
                share = _guessed(self._clock() - row.start_s, row.stage.expected_s)
            bar = ProgressBar(total=None if share is None else 1.0, completed=share or 0.0, width=24)
            return row.spinner, Text(row.stage.name, style="bold"), bar, self._timing(row), Text(row.text)
        mark = Text(" ✓", style="green") if row.outcome == "done" else Text(" ✗", style="red")
        outcome = "" if row.outcome == "done" else row.outcome
        return mark, row.stage.name, "", _span(row.end_s - row.start_s), Text(outcome or row.text, style="dim")


class StageProgress:
    """How the code of a stage reports where it is."""

    def __init__(self, progress: Progress, index: int) -> None:
        self._progress, self._index = progress, index

    def update(self, text: str, fraction: float | None = None) -> None:
        """What happens now, and the share of the stage that is over (0…1) when it is known."""
        self._progress.update(self._index, text, fraction)

    def say(self, text: str) -> None:
        """As `update`, and the line is printed at once, also on a terminal."""
        self._progress.say(self._index, text)


class _Row:
    """The state of one stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.start_s: float | None = None
        self.end_s: float | None = None
        self.printed_s = float("-inf")
        self.text, self.outcome = "", ""
        self.fraction: float | None = None
        self.spinner = Spinner("dots", style="cyan")


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def _about(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.1f} min"


def _guessed(elapsed_s: float, expected_s: float | None) -> float | None:
    return None if expected_s is None else min(elapsed_s / max(expected_s, 1e-9), 0.97)
