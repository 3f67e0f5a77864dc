"""Every alarm names the command that answers it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayjobs.cli.main import load_verb
from rayjobs.steer import controller
from rayjobs.steer.heartbeat import answer, with_answer
from tuning.steering import audit, decide, harm, silence

FOLDER = Path("/var/lib/deepsched")
HARM = "back to the baseline for 60 s"


@pytest.mark.parametrize(
    ("alarm", "command"),
    [
        (f"4.0% of the requests fail, 0.1% under the baseline: {HARM}", "steer revert"),
        (f"relative tardiness 0.40 per request, 0.10 under the baseline: {HARM}", "steer revert"),
        ("not applied: nginx -t refuses the configuration", "nginx -t, then deepsched steer status"),
        ("not applied, as the first weights could not be marked as such: No space left on device", "nginx -t"),
        (f"no advice: ({HARM})"[:10], "steer status"),
        ("recalibrate", "steer recalibrate"),
        ("statistics missing", "steer revert"),
        ("10.0.0.1:80 of app answers nothing", "curl -i"),
        ("the revert is in force and not recorded: No space left on device", "df -h"),
        ("not recorded: Permission denied", "ls -l"),
        ("audit log not rotated: Permission denied", "ls -l"),
        (controller.LEFT, "df -h"),
        ("an alarm of tomorrow", "steer status"),
    ],
)
def test_the_command_that_answers_it(alarm: str, command: str) -> None:
    assert command in answer(alarm, FOLDER)
    assert with_answer(alarm, FOLDER).startswith(f"{alarm}; answer: ")
    for words in answer(alarm, FOLDER).split("deepsched ")[1:]:
        verb = " ".join(words.split()[: 1 + words.startswith("steer")])
        assert load_verb(verb).name == verb
    assert "{" not in answer(alarm, FOLDER)


def literals(module: object) -> Iterator[str]:
    tree = ast.parse(Path(str(module.__file__)).read_text())  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_what_the_answers_look_for_is_what_the_code_says() -> None:
    from rayjobs.holding import site as holding
    from rayjobs.steer import admission, heartbeat, order_store
    from tuning.steering import admission as decided
    from tuning.steering import holding as may_hold
    from tuning.steering import meanings

    modules = (controller, audit, decide, harm, silence, meanings, order_store, admission, decided, holding, may_hold)
    said = "\n".join(text for each in modules for text in literals(each))
    said += "\nnot an orders file"  # put together by the store
    words = [words for words, _ in heartbeat.ANSWERS]
    assert [each for each in words if each not in said] == []
