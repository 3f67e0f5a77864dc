"""The commands that an onboarding prints: they give again what decides, and no password."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from envs.calibration.result import Calibration
from envs.environment.problem import DecisionProblem
from envs.study.promise import Conclusion, Promise
from rayjobs.cli.config import load_options
from rayjobs.onboard.__main__ import VERB
from rayjobs.onboard.fit import Fit
from rayjobs.onboard.judge import Judged
from rayjobs.onboard.options import OnboardOptions
from rayjobs.onboard.page import Found, found_again, next_command
from rayjobs.onboard.steps import handover_of, step_options
from rayjobs.onboard.system import Way

STATUS, CONTROL = "http://127.0.0.1:8081/status/format/json", "http://127.0.0.1:8090/control"
SECRET_STATUS, SECRET_CONTROL = (url.replace("://", "://me:secret@") for url in (STATUS, CONTROL))
CALIBRATION = Calibration.load(Path("tests/data/runs/calibration.json"))
FIT = Fit(CALIBRATION, cast(DecisionProblem, None), ())
"""Nobody looks at its problem here."""
DECIDING = (
    "calibrate.deadlines_ms={app: 50, 9.shop: 2.5}", "reload.reload_command=[sudo, -n, my reload, '1']",
    "reload.min_reload_interval_s=0", "watch.half_width=0.1", "promise.growth=2", "calibrate.workers=none",
)  # fmt: skip


def given(assignments: Sequence[str] = (), **flags: Any) -> OnboardOptions:
    return load_options(OnboardOptions, assignments=assignments, flags={"status_url": STATUS, **flags})


def typed(command: str) -> OnboardOptions:
    """The options of a printed `deepsched onboard …`."""
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("deepsched", "onboard")
    parsed = VERB.parser().parse(words)
    return load_options(OnboardOptions, assignments=parsed.pop("set", ()), flags=parsed)


def printed(options: OnboardOptions, conclusion: Conclusion, seconds: float = 300.0) -> str:
    promise = Promise(proposal="p", measure_s=600, pairs=10, errors={}, loads=(), conclusion=conclusion, reasons=())
    judged = Judged(promise=promise, alternatives=(), changes=(), learned=False, heuristic="h", busiest=(0.0, 0.0))
    way = Way("round_robin", False, True, "test")
    return next_command(Found(options, way, FIT, judged, (), {"seconds": seconds}, None))["command"]


def test_watch_longer_gives_every_option_again(tmp_path: Path) -> None:
    options = given(
        DECIDING, nginx_conf=tmp_path / "nginx.conf", folder=tmp_path / "on board", groups=("app", "9.shop", "7"),
        load_balancers=3, train_steps=0, seed=4, interval_s=0.5,
    )  # fmt: skip
    again = typed(printed(options, "watch_longer"))
    assert again == options.changed({"watch_s": 600.0})
    assert step_options(again)["fit"] == step_options(options)["fit"]
    assert step_options(again)["judge"] == step_options(options)["judge"]


def test_the_length_of_the_longer_watch_takes_the_place_of_the_rules() -> None:
    """Two of these have no effect beside an exact length, with which the first watch cannot have been given."""
    again = typed(printed(given(("watch.least_s=60", "watch.most_s=120", "watch.half_width=0.2")), "watch_longer"))
    assert (again.watch_s, again.watch.half_width) == (600.0, 0.2)
    assert typed(printed(given(watch_s=60.0), "watch_longer", 60.0)).watch_s == 120.0


def test_a_later_onboarding_is_the_same_in_another_folder() -> None:
    options = given(control_url=CONTROL, token_file=Path("token"), load_balancers=2, watch_s=60.0)
    again = typed(printed(options, "stay"))
    assert again == options.changed({"folder": Path("NEW")})


def test_what_was_not_given_is_not_typed() -> None:
    assert found_again(given()) == f"--status-url {STATUS} --folder runs/onboard"
    assert found_again(given(method="least_conn")) == f"--status-url {STATUS} --method least_conn --folder runs/onboard"


@pytest.mark.parametrize("conclusion", ["change", "stay", "no_promise", "watch_longer"])
def test_no_password_is_shown_and_its_place_is(conclusion: Conclusion) -> None:
    command = printed(given(status_url=SECRET_STATUS, control_url=SECRET_CONTROL), conclusion)
    assert "secret" not in command
    assert f"--control-url {CONTROL.replace('://', '://USER:PASSWORD@')}" in command
    assert f"--status-url {STATUS.replace('://', '://USER:PASSWORD@')}" in command


def test_urls_without_a_password_are_left_to_the_folder() -> None:
    command = printed(given(control_url=CONTROL), "change")
    assert command == "deepsched steer run --mode shadow --folder runs/onboard"


def test_the_folder_keeps_no_password() -> None:
    secret = given(status_url=SECRET_STATUS, control_url=SECRET_CONTROL)
    way = Way("round_robin", False, True, "test")
    kept = handover_of(secret, FIT, way)
    assert (kept.control_url, kept.status_url) == ("", "")
    assert "secret" not in kept.model_dump_json()
    assert "secret" not in str(step_options(secret))
    kept = handover_of(given(control_url=CONTROL), FIT, way)
    assert (kept.control_url, kept.status_url) == (CONTROL, STATUS)
