"""The live testbeds that confirm a sweep start at once, and each has a name of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actuators.errors import TestbedError
from actuators.testbed.options import LiveOptions
from tests.support.problems import demo_scenario
from tuning.judging.plan import BlockOptions
from tuning.search import confirm

JUDGE = confirm.judge_live._function  # noqa: SLF001 - Ray's own attribute (pinned in pyproject.toml): no Ray runs here


def test_testbeds_of_all_bundles_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []

    def start(*arguments: object, label: str) -> None:
        labels.append(label)
        raise TestbedError("enough")

    monkeypatch.setattr(confirm, "start_remote_testbed", start)
    for bundle in ("best-1", "best-2"):
        for number in (1, 2):
            folder = tmp_path / bundle / f"testbed-{number}"
            with pytest.raises(TestbedError, match="enough"):
                JUDGE(tmp_path / bundle, demo_scenario(), BlockOptions(), LiveOptions(), folder, number)
    assert labels == ["best-1 testbed-1", "best-1 testbed-2", "best-2 testbed-1", "best-2 testbed-2"]


def test_bundles_are_judged_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep's folder is on the disk of its driver; with a storage no other node need see it."""
    node = "1" * 56
    placed: list[tuple[str, bool]] = []

    def options(scheduling_strategy: NodeAffinitySchedulingStrategy) -> SimpleNamespace:
        placed.append((scheduling_strategy.node_id, scheduling_strategy.soft))
        return SimpleNamespace(remote=lambda *arguments: {})

    monkeypatch.setattr(confirm, "check_capacity", lambda testbeds, servers: None)
    monkeypatch.setattr(confirm, "judge_live", SimpleNamespace(options=options))
    monkeypatch.setattr("ray.get", lambda running: running)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: node))
    found = confirm.confirm([tmp_path / "best-1"], 2, demo_scenario(), BlockOptions(), LiveOptions(), tmp_path, 1)
    assert [each["testbed"] for each in found] == [1, 2]
    assert placed == [(node, False)]
