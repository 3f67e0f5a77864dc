"""Where Tune keeps trials: a folder that every node sees, and a sweep's best bundle comes from any storage."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import fs
from ray import get_runtime_context
from ray.tune import Checkpoint, Tuner

from actuators.errors import CapacityError, ConfigError
from tuning.search.storage import below
from tuning.search.sweep import check_seen, fetch_bundle, other_nodes
from tuning.search.trial import BUNDLE


def grid(checkpoint: Checkpoint) -> Any:
    """Stands for Tune's ResultGrid, of which only the path and the checkpoint are read."""
    return [SimpleNamespace(path="bucket/sweep/trial-a", checkpoint=checkpoint)]


def test_a_bundle_is_fetched_through_its_checkpoints_filesystem(tmp_path: Path) -> None:
    stored = tmp_path / "bucket" / "sweep" / "trial-a" / "checkpoint_000001" / BUNDLE
    stored.mkdir(parents=True)
    (stored / "bundle.json").write_text("{}")
    # Paths of such a filesystem mean nothing on the local one, as with s3.
    remote = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    target = tmp_path / "bundles" / "trial-a"
    target.mkdir(parents=True)
    (target / "stale").touch()
    found = fetch_bundle(grid(Checkpoint("bucket/sweep/trial-a/checkpoint_000001", remote)), "trial-a", target)
    assert [path.name for path in found.iterdir()] == ["bundle.json"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_a_folder_that_a_node_does_not_see_is_refused_before_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    this_node = {get_runtime_context().get_node_id(): "the head"}
    check_seen(tmp_path, this_node)
    monkeypatch.chdir(tmp_path)
    # The working folder of whichever process looks: that of Ray's processes is another one.
    refused = r"would lose their checkpoints: /proc/self/cwd is not there \(--out\).*--storage"
    with pytest.raises(ConfigError, match=refused):
        check_seen(Path("/proc/self/cwd"), this_node)
    assert other_nodes(0.5) == {}, "the node of the driver sees its own folder"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_a_node_that_has_left_cannot_say_whether_it_sees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="not every node could be asked"):
        check_seen(tmp_path, {28 * "ab": "a node that is not there"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("storage", "place"),
    [
        ("s3://bucket/runs?endpoint_override=minio:9000", "s3://bucket/runs/sweep-1?endpoint_override=minio:9000"),
        ("s3://bucket/", "s3://bucket/sweep-1"),
        ("file:///runs", "file:///runs/sweep-1"),
        ("hdfs:///runs/", "hdfs:///runs/sweep-1"),
        ("/runs/", "/runs/sweep-1"),
    ],
)
def test_a_name_stands_at_the_end_of_the_path(storage: str, place: str) -> None:
    assert below(storage, "sweep-1") == place


def test_a_folder_below_the_working_folder_is_one_that_tune_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = below("runs", "sweep-1")
    assert place == str(tmp_path / "runs" / "sweep-1")
    assert not Tuner.can_restore(below(place, "sweep"))
