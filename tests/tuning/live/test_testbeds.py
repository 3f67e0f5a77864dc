"""The names of conductors: several runs on one cluster take theirs at the same time."""

from __future__ import annotations

import pytest

from actuators.testbed.placement import NAMESPACE
from rayjobs.bench.parts.waiting_testbed import make_waiting
from tuning.live.testbeds import Testbeds

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]


def test_a_name_that_another_run_took_after_it_was_seen_free_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    with Testbeds({"testbed-1": make_waiting}, "least_conn"):
        with monkeypatch.context() as patch:
            patch.setattr("ray.util.list_named_actors", lambda all_namespaces: [])
            second = Testbeds({"testbed-1": make_waiting}, "least_conn")
        with second:
            shown = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)
                     if actor["namespace"] == NAMESPACE}  # fmt: skip
            assert shown >= {"testbed-1", "testbed-1.2"}
