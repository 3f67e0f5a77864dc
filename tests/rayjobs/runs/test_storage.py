"""Results go to a storage, whatever the end of a run, and a job without one says where they stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from actuators.errors import ConfigError
from rayjobs.runs.storage import stored, upload


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "train-1"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 1\n")
    return folder


def test_a_run_is_uploaded_to_a_url_and_a_bad_one_is_refused(run: Path, tmp_path: Path) -> None:
    upload(run, f"file://{tmp_path}/store")
    assert (tmp_path / "store" / "train-1" / "config.yaml").read_text() == "seed: 1\n"
    with pytest.raises(ConfigError, match="not a storage that pyarrow knows"):
        upload(run, "nowhere://bucket")


@pytest.mark.parametrize("storage", ["nowhere://bucket", "FILE/below"])
def test_a_storage_that_cannot_be_written_costs_no_work(run: Path, storage: str) -> None:
    bad = storage.replace("FILE", str(run / "config.yaml"))
    with pytest.raises(ConfigError), stored(run, bad):
        pytest.fail("the work began")


def test_what_there_is_is_stored_when_a_run_fails(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        (run / "progress.csv").write_text("step\n")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), stored(run, str(tmp_path / "store")):
        fail()
    assert {path.name for path in (tmp_path / "store" / "train-1").iterdir()} == {"config.yaml", "progress.csv"}
    assert f"results: {tmp_path}/store/train-1" in capsys.readouterr().out
