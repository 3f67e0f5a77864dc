"""What the demo steers: the best that NGINX allows, unless something else was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from actuators.errors import ConfigError
from rayjobs.cli.config import dump_yaml, load_options
from rayjobs.demo import DemoOptions


def given(*assignments: str) -> DemoOptions:
    return load_options(DemoOptions, assignments=assignments)


def test_by_default_the_policy_moves_learned_service_times() -> None:
    options = given("testbed=simulated")
    assert (options.method, options.training.decision.action.baseline) == ("expected_delay", "levelled")
    assert options.training.paired


@pytest.mark.parametrize("asked", ["method=least_conn", "training.decision.action.kind=continuous"])
def test_weights_on_least_conn_when_asked_for_or_when_actions_are_weights(asked: str) -> None:
    options = given("testbed=simulated", asked)
    assert options.method == "least_conn"
    assert options.training.decision.action.estimator is None
    assert not options.training.paired


def test_without_lua_it_is_least_conn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = tmp_path / "nginx"
    plain.write_text("#!/bin/sh\necho 'nginx version: nginx/1.22.1' >&2\n")
    plain.chmod(0o755)
    monkeypatch.setattr("actuators.nginx.detect.MODULE_DIRS", ())
    assert given(f"live.nginx.binary={plain}").method == "least_conn"


def test_what_cannot_be_is_one_line_and_what_is_saved_can_be_read_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set weights, not service times"):
        given("testbed=simulated", "method=expected_delay", "training.decision.action.kind=continuous")
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_yaml(given("testbed=simulated", "quick=true")))
    again = load_options(DemoOptions, file=saved)
    assert again == given("testbed=simulated", "quick=true")
