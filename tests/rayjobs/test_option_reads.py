"""Every option that is in force is read by what runs: each verb with a testbed, Ray and RLlib that are stand-ins."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import yaml

from actuators.contract.topology import Topology
from actuators.options import Options
from envs.simulator.testbed import SimulatedTestbed
from rayjobs import compare, demo, evaluate, observe, reproduce, scenarios, simulate, sweep, train
from rayjobs.cli.config import load_options
from rayjobs.cli.main import Verb
from tests.support import stand_in_rllib, stand_in_tune
from tests.support.option_reads import OptionReads
from tests.support.problems import TOPOLOGY, problem
from tuning.options import ModelOptions
from tuning.policy.bundle import Bundle
from tuning.policy.model import net_for

PARTS = "tests/actuators/testbed/test_parts.py::test_every_option_of_the_parts_is_read"
BLOCKS = ("judge.rounds=1", "judge.warm_up_s=1", "judge.measure_s=4")
WATCH = ("observe.duration_s=12", "observe.explore_s=4", "observe.encoder.clusters=[2]")


@contextlib.contextmanager
def no_ray(
    *,
    testbeds: int = 1,
    servers: int = 3,
    address: str | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    meanwhile()
    yield


@pytest.fixture
def reads_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Runs a verb with assignments; the options in force that nothing has read."""

    def run(verb: Verb, *assignments: str, **flags: Any) -> list[str]:
        file = flags.pop("config", None)
        if "out" in verb.options.model_fields and "resume" not in flags:
            flags = {"out": tmp_path / "runs"} | flags
        reads = OptionReads(load_options(verb.options, file=file, assignments=assignments, flags=flags))

        @contextlib.contextmanager
        def testbed(
            kind: str, topology: Topology, work_dir: Path, seed: int, live: Options | None = None
        ) -> Iterator[SimulatedTestbed]:
            if kind == "live":
                assert live is not None
                reads.hand_over(live, PARTS)
            with SimulatedTestbed(topology) as simulated:
                yield simulated

        class Testbeds(contextlib.nullcontext[Any]):
            """One testbed, simulated, in place of several live ones."""

            conductors: ClassVar = {"testbed-1": None}
            leaser = None

            @classmethod
            def live(cls, count: int, topology: object, live: Options, *arguments: object) -> Testbeds:
                reads.hand_over(live, PARTS)
                return cls()

            def news(self) -> list[object]:
                return []

        monkeypatch.setattr("tuning.live.testbeds.Testbeds", Testbeds)
        monkeypatch.setattr("tuning.live.conductor.ConductedTestbed", lambda *arguments: SimulatedTestbed(TOPOLOGY))
        for module in (verb.run.__module__, "rayjobs.runs.testbed"):
            monkeypatch.setattr(f"{module}.open_testbed", testbed, raising=False)
        monkeypatch.setattr("rayjobs.runs.local_ray.ray_session", no_ray)
        monkeypatch.setattr("rayjobs.runs.local_ray.local_ray", no_ray)
        stand_in_rllib.install(monkeypatch)
        stand_in_tune.install(monkeypatch, reads, PARTS)
        with reads:
            assert verb.run(reads.options) == 0
        return reads.unread()

    return run


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    Bundle(net_for(problem(), ModelOptions()), problem(), ModelOptions(), {}).save(folder)
    return folder


POLICIES = "policies=least_conn,inverse_latency,expected_delay"


def test_evaluate_on_a_simulated_and_on_a_live_testbed(reads_of: Callable[..., list[str]]) -> None:
    assert reads_of(evaluate.VERB, POLICIES, *BLOCKS, *WATCH, "workers=4") == []
    assert reads_of(evaluate.VERB, POLICIES, *BLOCKS, *WATCH, "testbed=live,simulated", "learned=idle") == []


def test_evaluate_of_a_bundle_and_of_a_run_that_goes_on(
    reads_of: Callable[..., list[str]], bundle: Path, tmp_path: Path
) -> None:
    assert reads_of(evaluate.VERB, POLICIES, *BLOCKS, bundle=bundle) == []
    (run,) = (tmp_path / "runs").iterdir()
    assert reads_of(evaluate.VERB, resume=run) == []


LEARN = (
    "training.steps=1000", "training.environments=4", "training.episode_steps=5", "training.scenarios=S2",
    "training.checkpoint_steps=500",
)  # fmt: skip
LOOK = ("training.held_out.every_steps=500", "training.held_out.episodes=2", "training.held_out.scenarios=S3")
RATIOS = ("training.decision.action.kind=ratios", "training.decision.action.ratios=1,3")


OFFLINE = "training.algorithm.recorded_steps=20"


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("ppo", ("training.imitation.steps=8", "training.proof_episodes=2", "training.paired=yes", *LOOK)),
        ("ppo", ("method=expected_delay", "training.decision.action.baseline=idle", *LOOK)),
        ("appo", ("training.decision.action.kind=increments", "training.decision.reward_mix={art: 1}", *LOOK)),
        ("sac", ("training.decision.action.kind=continuous", *LOOK)),
        ("dqn", (*RATIOS, "training.decision.action.joint=yes", *LOOK)),
        ("bc", (OFFLINE, *RATIOS, *LOOK)),
        ("marwil", (OFFLINE, "training.held_out.every_steps=0")),
        ("cql", (OFFLINE, "training.algorithm.batch_steps=2", *LOOK)),
    ],
)
def test_train_on_simulated_testbeds(
    reads_of: Callable[..., list[str]], algorithm: str, settings: tuple[str, ...]
) -> None:
    chosen = f"training.algorithm.name={algorithm}"
    assert reads_of(train.VERB, chosen, *BLOCKS, *WATCH, *LEARN, *settings) == []


def test_train_on_live_testbeds(reads_of: Callable[..., list[str]]) -> None:
    parallel = ("parallel.testbeds=1", "parallel.algorithm.batch_steps=8", "judge.max_core_wait_ms=1e6")
    assert reads_of(train.VERB, "testbed=live", *parallel, *BLOCKS, *WATCH, *LEARN) == []


@pytest.fixture
def plain_nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that calls itself an NGINX without Lua."""
    program = tmp_path / "nginx"
    program.write_text("#!/bin/sh\necho 'nginx version: nginx/1.22.1' >&2\n")
    program.chmod(0o755)
    monkeypatch.setattr("actuators.nginx.detect.MODULE_DIRS", ())
    monkeypatch.setattr("rayjobs.doctor.diagnose", lambda nginx: [])
    return program


def test_demo(reads_of: Callable[..., list[str]], plain_nginx: Path) -> None:
    # What --quick means is read when the options are resolved, before the run.
    assert reads_of(demo.VERB, "testbed=simulated", *BLOCKS, *WATCH, *LEARN, *LOOK) == []
    live = (f"live.nginx.binary={plain_nginx}", "live_training.steps=0", "judge.max_core_wait_ms=1e6")
    assert reads_of(demo.VERB, *live, *BLOCKS, *WATCH, *LEARN) == []


BASE = tuple(
    f"search.base.{text}"
    for text in (
        "encoder.clusters=[2]", "encoder.restarts=1", "training.steps=1000", "training.episode_steps=5",
    )
)  # fmt: skip
CONFIRM = ("confirm.testbeds=1", "confirm.judge.rounds=1", "confirm.judge.warm_up_s=1", "confirm.judge.measure_s=3")
SPACE = "search.space={training.algorithm.learning_rate: [0.001]}"
WATCH_ALONE = ("observe.duration_s=12", "observe.explore_s=4")


@pytest.mark.parametrize(
    "settings",
    [
        ("search.scheduler=asha", "search.validation_s=4", "search.validation_episodes=2", *CONFIRM),
        ("search.scheduler=pbt", "search.validation_s=4", "search.validation_episodes=2", "confirm.best=0"),
        ("search.testbed=live", "search.scheduler=none", "search.search=random", "confirm.best=0"),
    ],
    ids=["asha", "pbt", "live"],
)
def test_sweep(reads_of: Callable[..., list[str]], settings: tuple[str, ...]) -> None:
    assert reads_of(sweep.VERB, SPACE, *WATCH_ALONE, *BASE, *settings) == []


def test_observe(reads_of: Callable[..., list[str]]) -> None:
    assert reads_of(observe.VERB, *WATCH, "observe.encoder.least_stability=0.1") == []
    assert reads_of(observe.VERB, "testbed=live", *WATCH) == []


def test_reproduce_and_compare(reads_of: Callable[..., list[str]], tmp_path: Path) -> None:
    reads_of(evaluate.VERB, "policies=least_conn,round_robin", *BLOCKS, *WATCH)
    (run,) = (tmp_path / "runs").iterdir()
    assert reads_of(reproduce.VERB, run=run, out=tmp_path / "again") == []
    assert reads_of(compare.VERB, "markdown=yes", runs=(run,)) == []
    assert reads_of(compare.VERB, runs=(run, run)) == []


def test_simulate_and_scenarios(reads_of: Callable[..., list[str]], tmp_path: Path) -> None:
    assert reads_of(simulate.VERB, "seeds=101", "duration_s=15", "rules=least_conn,round_robin") == []
    assert reads_of(scenarios.SHOW, json_out=tmp_path / "s3.json", page=tmp_path / "s3.html") == []


@pytest.mark.parametrize(
    ("verb", "result", "settings"),
    [
        (evaluate.VERB, "evaluation.json", ("policies=least_conn,round_robin", *BLOCKS, *WATCH)),
        (train.VERB, "evaluation.json", (*BLOCKS, *WATCH, *LEARN)),
        (demo.VERB, "evaluation.json", ("testbed=simulated", "quick=yes", *BLOCKS, *WATCH, *LEARN)),
        (observe.VERB, "deadlines.json", WATCH),
        (sweep.VERB, "sweep.parquet", (SPACE, *WATCH_ALONE, *BASE, "search.validation_s=4", "confirm.best=0")),
    ],
    ids=lambda value: value.name if isinstance(value, Verb) else "",
)
def test_the_saved_config_repeats_the_run(
    reads_of: Callable[..., list[str]], tmp_path: Path, verb: Verb, result: str, settings: tuple[str, ...]
) -> None:
    reads_of(verb, *settings, seed=3, out=tmp_path / "first")
    (first,) = (tmp_path / "first").iterdir()
    reads_of(verb, config=first / "config.yaml", out=tmp_path / "second")
    (second,) = (tmp_path / "second").iterdir()
    assert _numbers(first / result) == _numbers(second / result)
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (first, second)]
    assert [config.pop("out") for config in configs] == [str(first.parent), str(second.parent)]
    assert configs[0] == configs[1]


def _numbers(path: Path) -> Any:
    if path.suffix == ".parquet":
        return pd.read_parquet(path).drop(columns=["bundle", "seconds"]).to_json()
    content = json.loads(path.read_text())
    return content.get("policies", content)
