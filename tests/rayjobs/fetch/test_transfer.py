"""Results of a job that stayed on the cluster: found in its log, packed by a second job, written as a whole."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RpcError

from actuators.errors import ConfigError, DataError, ProcessError
from actuators.options import Options
from rayjobs.fetch.transfer import folders_of, job_client, packed, unpack
from rayjobs.runs.folder import RunFolder, left_on_the_cluster
from tests.support.disasters import full, small_disk


class TrainOptions(Options):
    """Of a run."""

    storage: str | None = None
    """URL."""


@dataclass
class Jobs:
    """Ray's job interface; a job runs here and at once."""

    logs: dict[str, str]
    resources: list[Any] = field(default_factory=list)
    line_at: int = 0
    """Characters of output before Ray's line about the entrypoint, which has no fixed place (ray 2.60)."""

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id=name) for name in self.logs]

    def get_job_logs(self, job: str) -> str:
        return self.logs[job]

    def get_job_info(self, job: str) -> Any:
        return SimpleNamespace(driver_agent_http_address="http://10.0.0.7:52365")

    def submit_job(self, entrypoint: str, entrypoint_resources: Any) -> str:
        done = subprocess.run(
            entrypoint, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        job = f"packing-{done.returncode}"
        line = f"Running entrypoint for job {job}: {entrypoint}\n"
        self.resources.append(entrypoint_resources)
        self.logs[job] = f"Runtime env is ready\n{done.stdout[: self.line_at]}{line}{done.stdout[self.line_at :]}"
        return job

    def get_job_status(self, job: str) -> Any:
        value = "SUCCEEDED" if job.endswith("-0") else "FAILED"
        return SimpleNamespace(is_terminal=lambda: True, value=value)

    def delete_job(self, job: str) -> None:
        del self.logs[job]


@dataclass
class SlowJobs(Jobs):
    """A job runs until it is stopped."""

    stopped: list[str] = field(default_factory=list)

    def submit_job(self, entrypoint: str, entrypoint_resources: Any) -> str:
        return "packing"

    def get_job_status(self, job: str) -> Any:
        return SimpleNamespace(is_terminal=lambda: job in self.stopped, value="RUNNING")

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run of a submitted job, which says so."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    (tmp_path / "on the cluster").mkdir()
    monkeypatch.chdir(tmp_path / "on the cluster")
    return RunFolder.create(None, "train", 3, TrainOptions(), [])


def test_a_job_says_where_its_results_stay_and_they_are_fetched(run: RunFolder, tmp_path: Path) -> None:
    line = left_on_the_cluster(run.path)
    assert "deepsched fetch raysubmit_1" in line
    (run.path / "bundle").mkdir()
    (run.path / "bundle" / "weights.bin").write_bytes(bytes(range(256)) * 1000)
    jobs = Jobs({"raysubmit_1": f"joined Ray\n{line}\n12:00 training\n{line}\n"})
    (folder,) = folders_of(jobs, "raysubmit_1")
    assert folder == str(run.path.absolute())
    (tmp_path / "here").mkdir()
    target = unpack(packed(jobs, "raysubmit_1", folder, lambda text: None), tmp_path / "here")
    assert target == tmp_path / "here" / run.path.name
    assert (target / "bundle" / "weights.bin").read_bytes() == bytes(range(256)) * 1000
    assert (target / "config.yaml").read_text() == (run.path / "config.yaml").read_text()
    assert jobs.resources == [{"node:10.0.0.7": 0.001}]
    assert list(jobs.logs) == ["raysubmit_1"], "the packing job is gone"


BEGIN = len("deepsched-fetch-begin\n")


@pytest.mark.parametrize("line_at", [0, BEGIN, BEGIN + 100], ids=["first", "after the begin", "in the archive"])
def test_what_ray_and_tar_write_between_is_not_in_the_archive(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line_at: int
) -> None:
    weights = bytes(range(256)) * 100
    own, into = run.path.absolute(), tmp_path / "here"
    (own / "weights.bin").write_bytes(weights)
    into.mkdir()
    # tar remarks on the socket; the path of one may have a hundred characters only.
    monkeypatch.chdir(own)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind("socket")
        target = unpack(packed(Jobs({}, line_at=line_at), "raysubmit_1", str(own), lambda text: None), into)
    assert {path.name for path in target.iterdir()} == {path.name for path in own.iterdir()} - {"socket"}
    assert (target / "weights.bin").read_bytes() == weights


def test_databases_of_servers_stay_on_the_cluster(run: RunFolder, tmp_path: Path) -> None:
    (run.path / "testbed").mkdir()
    databases = ("social_network.sqlite", "social_network.sqlite-wal", "social_network-10.0.0.7.sqlite")
    for name in (*databases, "server-0.log"):
        (run.path / "testbed" / name).write_text("content")
    (tmp_path / "here").mkdir()
    target = unpack(packed(Jobs({}), "raysubmit_1", str(run.path), lambda text: None), tmp_path / "here")
    assert [path.name for path in (target / "testbed").iterdir()] == ["server-0.log"]
    assert (target / "config.yaml").exists()


def test_an_interrupted_fetch_stops_the_job_that_packs() -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    jobs = SlowJobs({})
    with pytest.raises(KeyboardInterrupt):
        packed(jobs, "raysubmit_1", "/session/run", interrupt)
    assert jobs.stopped == ["packing"]


def test_packing_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayjobs.fetch.transfer.PACK_TIMEOUT_S", 0.0)
    jobs = SlowJobs({})
    with pytest.raises(ProcessError, match="more than 0 s"):
        packed(jobs, "raysubmit_1", "/session/run", lambda text: None)
    assert jobs.stopped == ["packing"]


def test_a_run_with_a_place_of_its_own_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "package").mkdir()
    monkeypatch.chdir(tmp_path / "package")
    RunFolder.create(None, "train", 3, TrainOptions(), [])
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    RunFolder.create(tmp_path, "train", 3, TrainOptions(), [])
    assert capsys.readouterr().err == ""
    for out in (None, Path("here")):
        RunFolder.create(out, "train", 3, TrainOptions(), [])
        assert "deepsched fetch JOB" in capsys.readouterr().err
    RunFolder.create(None, "train", 3, TrainOptions(storage="s3://bucket"), [])
    assert "`deepsched fetch JOB` fetches them; they are copied to s3://bucket" in capsys.readouterr().err


def test_what_cannot_be_fetched_is_said_in_one_line(tmp_path: Path) -> None:
    gone = left_on_the_cluster(tmp_path / "gone")
    jobs = Jobs({"raysubmit_1": "results: s3://bucket/train-1", "raysubmit_2": gone})
    with pytest.raises(ConfigError, match=r"no job 'raysubmit_9'.*raysubmit_1, raysubmit_2"):
        folders_of(jobs, "raysubmit_9")
    with pytest.raises(ConfigError, match="no results that stayed"):
        folders_of(jobs, "raysubmit_1")
    (folder,) = folders_of(jobs, "raysubmit_2")
    with pytest.raises(DataError, match="does not have this folder any more"):
        packed(jobs, "raysubmit_2", folder, lambda text: None)


def test_nobody_takes_jobs_there() -> None:
    with pytest.raises(ConfigError, match=r"cannot reach Ray's jobs.*--address|--address.*cannot reach"):
        job_client("http://127.0.0.1:9")


def test_the_address_that_is_given_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own client prefers the environment."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    for name in names:
        monkeypatch.setenv(name, "10.0.0.2:6379")

    def client(address: str | None) -> Any:
        return address, [os.environ.get(name) for name in names]

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", client)
    assert job_client("http://127.0.0.1:8265") == ("http://127.0.0.1:8265", [None, None])
    assert job_client(None) == (None, ["10.0.0.2:6379"] * 2)
    assert [os.environ.get(name) for name in names] == ["10.0.0.2:6379"] * 2


def test_an_address_that_ray_cannot_ask_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def client(address: str | None) -> Any:
        raise RpcError("failed to connect\nTraceback")

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", client)
    with pytest.raises(ConfigError, match="cannot reach Ray's jobs: failed to connect") as caught:
        job_client("127.0.0.1:8265")
    assert "Traceback" not in str(caught.value)


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def test_nothing_is_overwritten_or_written_elsewhere(tmp_path: Path) -> None:
    into = tmp_path / "runs"
    (into / "train-1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="it is there already"):
        unpack(archive("train-1/a"), into)
    with pytest.raises(DataError):
        unpack(archive("../outside"), into)
    with pytest.raises(DataError, match="not whole"):
        unpack(archive("train-2/a")[:20], into)
    with pytest.raises(DataError, match="not one folder"):
        unpack(archive("a/b", "c/d"), into)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert [path.name for path in into.iterdir()] == ["train-1"]


def test_a_folder_that_finds_no_room_is_not_there(tmp_path: Path, root_only: None) -> None:
    """Else the next `fetch` would say that it is there already."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo("train-1/a")
        member.size = 2_000_000
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    with small_disk(tmp_path / "disk") as disk, full(disk):
        with pytest.raises(OSError, match="No space left"):
            unpack(buffer.getvalue(), disk)
        assert not (disk / "train-1").exists()
        assert not list(disk.glob(".fetch-*"))


def test_jobs_that_do_not_answer_any_more_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def dropped() -> list[Any]:
        raise RuntimeError("Request failed with status code 502\nTraceback")

    jobs = Jobs({})
    monkeypatch.setattr(jobs, "list_jobs", dropped)
    with pytest.raises(ProcessError, match="do not answer any more: Request failed with status code 502") as caught:
        folders_of(jobs, "raysubmit_1")
    assert "Traceback" not in str(caught.value)
