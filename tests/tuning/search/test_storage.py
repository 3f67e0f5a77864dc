"""A sweep's best bundle comes from whatever storage Tune wrote it to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pyarrow import fs
from ray.tune import Checkpoint

from tuning.search.sweep import fetch_bundle
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
