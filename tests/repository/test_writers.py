"""Who may write which files: state with several possible writers goes through the store, a lock or single appends.

A module that begins to write files fails here until its place in this table is decided.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRITING = {
    "write_text", "write_bytes", "write_atomic", "write_atomically", "write_json", "write_private", "replacing",
    "append_line", "touch", "to_parquet", "savez", "savez_compressed", "save_file",
}  # fmt: skip

STORED = {
    "rayjobs/steer/order_store.py": "orders of all commands and the live page",
    "rayjobs/steer/first.py": "first weights, by controllers, watchdog and revert",
    "rayjobs/serve/bundles.py": "the served bundle, by all replicas",
    "tuning/live/leases.py": "leases of testbeds, by a desk and the one after it",
}
"""Module → state of several writers that it keeps in `actuators.store`."""

LOCKED = {
    "actuators/external/nginx.py": "somebody else's configuration: a lock file beside it",
    "actuators/external/envoy.py": "somebody else's file of endpoints: a lock file beside it",
    "actuators/testbed/parts.py": "the database that the servers of a testbed share: a lock file beside it",
    "tuning/steering/audit.py": "the audit log: rotated under a lock, a line is one write",
    "rayjobs/steer/folder.py": "heartbeat and access: by the one controller that holds the folder's lock",
}
"""Module → state of several writers under a lock of its own."""

ALONE = {
    # Parts of a testbed write in its own folder; programs are whole files.
    "actuators/social_network/__main__.py", "actuators/social_network/stages_endpoint.py",
    "actuators/social_network/store.py", "actuators/load/engine.py",
    "actuators/nginx/instance.py", "actuators/nginx/reload.py",
    "actuators/processes/process.py", "actuators/testbed/peers.py", "rayjobs/doctor.py", "rayjobs/runs/local_ray.py",
    "rayjobs/serve/haproxy_sockets.py", "rayjobs/onboard/kept.py",
    # A run has a folder of its own (`rayjobs.runs.folder`).
    "envs/observation/encoder.py", "envs/calibration/result.py", "envs/mixture/refit.py", "rayjobs/load.py",
    "rayjobs/admission/tune.py", "rayjobs/holding/tune.py", "rayjobs/contract/page.py", "rayjobs/onboard/page.py",
    "rayjobs/park.py", "rayjobs/reproduce.py",
    "rayjobs/runs/folder.py", "rayjobs/runs/steps.py", "rayjobs/sweep.py", "tuning/judging/blocks.py",
    "tuning/judging/evaluation.py", "tuning/judging/parquet.py", "tuning/learning/curve.py",
    "tuning/learning/recordings.py", "tuning/learning/replay.py",
    "tuning/learning/trainer.py", "tuning/live/training.py", "tuning/policy/bundle.py", "tuning/policy/worth.py",
    "tuning/report/clusters.py", "tuning/report/run.py", "tuning/report/scenario.py", "tuning/report/sweep.py",
    "tuning/search/trials.py", "tuning/search/trial.py",
    # A file that the user names, written as a whole.
    "actuators/statistics/recording.py", "actuators/external/kept.py", "rayjobs/benchmark/__main__.py",
    "rayjobs/dashboards/__main__.py", "rayjobs/holding/learn.py",
    "rayjobs/encoder.py", "rayjobs/export.py", "rayjobs/scenarios.py", "rayjobs/serve/options.py",
    "rayjobs/steer/handover.py", "rayjobs/steer/units.py", "rayjobs/weights.py",
    # Adds a line to the audit log through `append_line`.
    "rayjobs/steer/watchdog.py",
}  # fmt: skip
"""Modules whose files have one writer at a time."""


def writes(path: Path) -> bool:
    """Whether a module calls what writes files."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in WRITING or (name in ("open", "fdopen") and _mode(node)[:1] in ("w", "a", "x")):
            return True
    return False


def _mode(call: ast.Call) -> str:
    """The mode of `open(path, mode)` or `path.open(mode)`, empty when it is none of these."""
    words = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    texts = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    return next((text for text in texts if text.strip("b+") in ("w", "a", "x")), "")


def uses(path: Path) -> set[str]:
    """All names and attributes of a module."""
    tree = ast.walk(ast.parse(path.read_text()))
    return {getattr(node, "id", "") or getattr(node, "attr", "") or getattr(node, "name", "") for node in tree}


def test_every_module_that_writes_files_has_decided_who_else_may() -> None:
    primitives = {"actuators/files.py", "actuators/store.py"}
    found = {
        str(path.relative_to(ROOT))
        for layer in ("actuators", "envs", "tuning", "rayjobs")
        for path in (ROOT / layer).rglob("*.py")
        if "bench" not in path.parts and writes(path)
    }
    assert found - primitives == {*LOCKED, *ALONE}


@pytest.mark.parametrize("module", [*STORED, *LOCKED])
def test_state_with_several_writers_is_stored_or_locked(module: str) -> None:
    if module in STORED:
        assert "Store" in uses(ROOT / module)
        assert not writes(ROOT / module)
    else:
        assert uses(ROOT / module) & {"exclusive", "flock"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("open(p, 'w')", True), ("p.open('ab')", True), ("open(p)", False), ("open('w.txt')", False),
        ("p.write_text('x')", True), ("write_private(p, t)", True), ("open(p, mode='x')", True),
    ],
)  # fmt: skip
def test_the_audit_sees_a_planted_write(tmp_path: Path, text: str, found: bool) -> None:
    (tmp_path / "module.py").write_text(text)
    assert writes(tmp_path / "module.py") is found
