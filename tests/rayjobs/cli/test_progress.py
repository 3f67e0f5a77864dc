"""The progress display: on a terminal, in a log, and when a stage fails."""

import io
import re
from collections.abc import Sequence

import pytest
from rich.console import Console

from rayjobs.cli.progress import Progress, Stage
from tests.support.waiting import wait_until

STAGES = [Stage("observe", 20), Stage("train", 150), Stage("judge", 60)]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Screen:
    """A console that writes to a string."""

    def __init__(self, *, terminal: bool, drawn: bool = True, stages: Sequence[Stage] = STAGES) -> None:
        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=terminal, width=120, color_system=None)
        self.clock = Clock()
        self.progress = Progress(stages, console=self.console, clock=self.clock, drawn=drawn)

    def lines(self) -> list[str]:
        return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in self.file.getvalue().splitlines()]


def test_a_log_gets_a_line_per_start_and_end_and_few_between() -> None:
    screen = Screen(terminal=False)
    with screen.progress:
        with screen.progress.stage("observe") as stage:
            for _ in range(12):
                screen.clock.now_s += 1
                stage.update(f"window {screen.clock.now_s:.0f}")
        with screen.progress.stage("train"):
            screen.clock.now_s += 200
    assert screen.lines() == [
        "[1/3] observe: started, about 20 s; next: train",
        "[1/3] observe: 5.0 s of about 20 s: window 5",
        "[1/3] observe: 10.0 s of about 20 s: window 10",
        "[1/3] observe: done in 12.0 s",
        "[2/3] train: started, about 2.5 min; next: judge",
        "[2/3] train: done in 3 min 20 s",
    ]


def test_a_log_is_never_silent_for_ten_seconds() -> None:
    """During any stage the last update is repeated, or the time alone; `beat` is called every second."""
    screen = Screen(terminal=False)
    with screen.progress.stage("train") as stage:
        for second in range(30):
            screen.clock.now_s += 1
            screen.progress.beat()
            if second == 9:
                stage.update("iteration 1")
    screen.progress.beat()
    assert screen.lines() == [
        "[2/3] train: started, about 2.5 min; next: judge",
        "[2/3] train: 8.0 s of about 2.5 min",
        "[2/3] train: 16.0 s of about 2.5 min: iteration 1",
        "[2/3] train: 24.0 s of about 2.5 min: iteration 1",
        "[2/3] train: done in 30.0 s",
    ]


def test_the_last_line_repeats_by_itself() -> None:
    screen = Screen(terminal=False)
    with screen.progress, screen.progress.stage("judge"):
        screen.clock.now_s += 9
        wait_until(lambda: len(screen.lines()) == 2)
    assert screen.lines()[1] == "[3/3] judge: 9.0 s of about 60 s"


def test_a_line_that_is_said_is_printed_at_once_and_repeated_later() -> None:
    screen = Screen(terminal=False)
    with screen.progress.stage("train") as stage:
        for number in (1, 2):
            stage.say(f"result {number}")
        screen.clock.now_s += 8
        screen.progress.beat()
    assert screen.lines()[1:4] == [
        "[2/3] train: 0.0 s of about 2.5 min: result 1",
        "[2/3] train: 0.0 s of about 2.5 min: result 2",
        "[2/3] train: 8.0 s of about 2.5 min: result 2",
    ]


def test_what_is_said_stays_above_the_drawing() -> None:
    screen = Screen(terminal=True)
    with screen.progress, screen.progress.stage("train") as stage:
        stage.say("result [1]")
    assert "train: result [1]" in screen.file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stage_of_unknown_length_shows_its_time_alone_and_plain_lines_are_plain_anywhere(terminal: bool) -> None:
    screen = Screen(terminal=terminal, drawn=False, stages=[Stage("load", None), Stage("judge", 60)])
    with screen.progress, screen.progress.stage("load") as stage:
        screen.clock.now_s += 70
        stage.update("part 1")
    assert screen.lines() == [
        "[1/2] load: started; next: judge",
        "[1/2] load: 1 min 10 s: part 1",
        "[1/2] load: done in 1 min 10 s",
    ]


def test_a_drawing_knows_no_whole_time_when_a_stage_has_none() -> None:
    screen = Screen(terminal=True, stages=[Stage("load", None), Stage("judge", 60)])
    with screen.progress, screen.progress.stage("load"):
        screen.clock.now_s += 70
        screen.progress.refresh()
        drawn = screen.file.getvalue()
    assert "1 min 10 s in all · next: judge" in drawn


def test_lines_carry_the_time_of_day() -> None:
    screen = Screen(terminal=False)
    with screen.progress, screen.progress.stage("judge"):
        pass
    assert all(re.match(r"\d\d:\d\d:\d\d \[3/3\] judge: ", line) for line in screen.file.getvalue().splitlines())


@pytest.mark.parametrize(("error", "word"), [(KeyboardInterrupt(), "interrupted"), (ValueError("x"), "failed")])
def test_a_stage_that_ends_early_says_so_and_passes_the_error_on(error: BaseException, word: str) -> None:
    screen = Screen(terminal=False)

    def observe() -> None:
        with screen.progress, screen.progress.stage("observe"):
            screen.clock.now_s += 3
            raise error

    with pytest.raises(type(error)):
        observe()
    assert screen.lines()[-1] == f"[1/3] observe: {word} after 3.0 s"


def test_a_late_stage_is_called_late() -> None:
    screen = Screen(terminal=False)
    with screen.progress, screen.progress.stage("observe") as stage:
        screen.clock.now_s += 30
        stage.update("window 30")
    assert "30.0 s of about 20 s, longer than expected: window 30" in screen.lines()[1]


def test_a_terminal_shows_done_running_and_next() -> None:
    screen = Screen(terminal=True)
    with screen.progress:
        with screen.progress.stage("observe"):
            screen.clock.now_s += 21
        with screen.progress.stage("train") as stage:
            screen.clock.now_s += 15
            stage.update("iteration 3 [of 9]", 0.33)
            screen.progress.refresh()
            drawn = screen.file.getvalue()
    assert re.search(r"✓ observe +21\.0 s", drawn)
    assert re.search(r"train .*15\.0 s of about 2\.5 min .*iteration 3 \[of 9\]", drawn)
    assert re.search(r"· judge +about 60 s", drawn)
    assert "36.0 s of about 3.8 min in all · next: judge" in drawn


def test_a_terminal_shows_a_stage_that_was_passed_over() -> None:
    screen = Screen(terminal=True)
    with screen.progress, screen.progress.stage("judge"):
        screen.progress.refresh()
        drawn = screen.file.getvalue()
    assert drawn.count("skipped") == 2 * drawn.count("next: nothing")


def test_an_unannounced_stage_is_a_bug() -> None:
    screen = Screen(terminal=False)
    with screen.progress, pytest.raises(KeyError, match="no stage 'serve'"), screen.progress.stage("serve"):
        pass
