"""What a bundle is worth: only what an evaluation found, and it goes where the bundle goes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.steering_cases import trained_bundle
from tuning.policy.bundle import load_bundle
from tuning.policy.worth import describe_worth, note_worth, noted_worth


def evaluation(**learned: Any) -> dict[str, Any]:
    names = ("mean_ms", "p99_ms", "miss_ratio", "art_per_request")
    policy = {
        "requests": 1000, "ratios": {**dict.fromkeys(names, 0.9), "p50_ms": 1.0},
        "intervals": {**{name: [0.85, 0.95] for name in names}, "p50_ms": None}, **learned,
    }  # fmt: skip
    return {
        "scenario": "S2", "testbed": "simulated", "reference": "least_conn", "rounds": 8, "learned": "learned",
        "policies": {"learned": policy}, "blocks": [],
    }  # fmt: skip


def test_it_is_noted_in_the_bundle_and_goes_with_it(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "etc" / "bundle"
    trained_bundle().save(run / "bundle")
    assert noted_worth(run / "bundle") is None
    note_worth(run / "bundle", evaluation())
    shutil.copytree(run / "bundle", elsewhere)
    worth = noted_worth(elsewhere)
    assert worth is not None
    assert worth["mean_ms"] == {"ratio": 0.9, "interval": [0.85, 0.95]}
    assert describe_worth(worth) == (
        "mean response time 0.90× (95 % interval 0.85 to 0.95) that of least_conn in S2,"
        " as the evaluation on a simulated testbed measured"
    )
    assert load_bundle(elsewhere).provenance["command"] == "a test"


def test_an_older_bundle_has_it_from_its_run_folder(tmp_path: Path) -> None:
    trained_bundle().save(tmp_path / "bundle")
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation(intervals=dict.fromkeys(evaluation()["policies"]
        ["learned"]["ratios"]))))  # fmt: skip
    worth = noted_worth(tmp_path / "bundle")
    assert worth is not None
    assert describe_worth(worth).startswith("mean response time 0.90× that of least_conn")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"provenance": []}', b'{"provenance": {"evaluation": 3}}'])
def test_nothing_is_made_up_of_other_documents(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(content)
    assert noted_worth(tmp_path) is None
    assert describe_worth({"mean_ms": {"ratio": None}}) == describe_worth({}) == ""


def test_a_policy_that_was_not_judged_leaves_the_bundle_alone(tmp_path: Path) -> None:
    trained_bundle().save(tmp_path)
    note_worth(tmp_path, {**evaluation(), "learned": "another"})
    assert noted_worth(tmp_path) is None
