"""Every option that is in force is read by what runs: the verbs that work on what an earlier run has left."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.contract.control import Weights
from envs.mixture.fit import window_samples
from envs.mixture.refit import SAMPLES, save_samples
from envs.simulator.testbed import SimulationOptions
from rayjobs import encoder, testbeds, train
from rayjobs.bench import __main__ as bench
from rayjobs.bench.parts.bars import Bar, BenchContext, figure
from rayjobs.cli.config import load_options
from rayjobs.cli.main import Verb
from tests.support import stand_in_rllib
from tests.support.option_reads import OptionReads
from tests.support.problems import TOPOLOGY, demo_scenario, observed, problem
from tests.support.recordings import record
from tuning.options import ModelOptions
from tuning.policy.bundle import Bundle
from tuning.policy.model import net_for


def unread(verb: Verb, *assignments: str, code: int = 0, **flags: Any) -> list[str]:
    with OptionReads(load_options(verb.options, assignments=assignments, flags=flags)) as reads:
        assert verb.run(reads.options) == code
    return reads.unread()


@contextlib.contextmanager
def no_ray(*, testbeds: int = 1, address: str | None = None) -> Iterator[None]:
    yield


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle beside what its mixture was fitted to."""
    folder = tmp_path / "bundle"
    training = {"training": {"environments": 4, "episode_steps": 5, "scenarios": ["S2"], "algorithm": {"name": "ppo"}}}
    Bundle(net_for(problem(), ModelOptions()), problem(), ModelOptions(), {"config": training}).save(folder)
    seen = observed().windows
    known = window_samples([*seen.equal, *seen.exploring], TOPOLOGY, problem().deadlines_s, "server")
    save_samples(tmp_path / SAMPLES, known, problem().encoder.names)
    return folder


def test_encoder_recalibrate_and_rollback(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slower = tmp_path / "slower.json"
    equal = Weights.from_shares(TOPOLOGY, np.ones(TOPOLOGY.shape))
    record(slower, demo_scenario(), 5, lambda window: equal, 50, "least_conn", SimulationOptions(overhead_ms=40.0))
    assert unread(encoder.RECALIBRATE, "novel_share=0.9", bundle=bundle, snapshots=slower) == []
    assert unread(encoder.ROLLBACK, bundle=bundle) == []
    monkeypatch.setattr("rayjobs.runs.local_ray.ray_session", no_ray)
    stand_in_rllib.install(monkeypatch)
    more = {"retrain_steps": 1000, "out": tmp_path / "runs"}
    assert unread(encoder.RECALIBRATE, "work_scale=1", bundle=bundle, snapshots=slower, **more) == []


def test_a_training_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayjobs.runs.local_ray.ray_session", no_ray)
    stand_in_rllib.install(monkeypatch)
    short = (
        "observe.duration_s=12", "observe.explore_s=4", "observe.encoder.clusters=[2]", "training.steps=1000",
        "training.environments=4", "training.episode_steps=5", "training.scenarios=S2",
        "training.held_out.every_steps=0", "training.checkpoint_steps=500", "judge.rounds=1",
        "judge.warm_up_s=1", "judge.measure_s=4",
    )  # fmt: skip
    assert unread(train.VERB, *short, out=tmp_path) == []
    (run,) = tmp_path.iterdir()
    # Imitation precedes the first checkpoint: it is part of what the run has done already.
    assert unread(train.VERB, "training.steps=1500", resume=run) == ["training.imitation.steps"]


def test_testbeds(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def connected(address: str, source: str) -> Iterator[None]:
        joined.append((address, source))
        yield

    monkeypatch.setattr("rayjobs.runs.local_ray.connected", connected)
    monkeypatch.setattr("tuning.live.testbeds.running_testbeds", list)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        assert unread(testbeds.VERB, address=address) == []
    assert joined == [(address, "--address")]


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []

    def measure(context: BenchContext) -> list[Bar]:
        seen.append((context.seed, context.quick))
        return [figure("nothing", 1.0, "", how="not measured")]

    monkeypatch.setattr("rayjobs.bench.scaling.measure", measure)
    assert unread(bench.VERB, names=("scaling",), seed=7, quick=True, out=tmp_path) == []
    assert seen == [(7, True)]
