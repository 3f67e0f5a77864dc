"""A stand-in for Ray Tune: one trial of a sweep in this process, to its end and with its bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from pyarrow import fs
from ray import tune

from actuators.contract.topology import social_network
from actuators.options import Options
from envs.environment.env import BalancingEnv
from envs.environment.problem import DecisionProblem
from envs.simulator.testbed import SimulatedTestbed
from tests.support.option_reads import OptionReads
from tuning.search import confirm, sweep, trial
from tuning.search.space import TrialOptions
from tuning.search.trial import Shared, SweepTrial

NETWORK = "tests/tuning/policy/test_model.py::test_the_network_reads_all_of_its_options"
RESOURCES = {"CPU": 4.0, "proxy": 2.0, "client": 2.0, "server": 6.0}
NODE = {"NodeID": "1" * 56, "NodeManagerAddress": "127.0.0.1", "Alive": True}
_APPLY, _CONFIGURE = trial.apply, trial.configured
_JUDGE = confirm.judge_live._function  # noqa: SLF001 - Ray's own attribute (pinned in pyproject.toml): no Ray runs here


def install(monkeypatch: pytest.MonkeyPatch, reads: OptionReads, live_parts: str) -> None:
    """Sweeps run one trial here, and judge its bundle on a simulated testbed in place of live ones.

    Args:
        reads: records what the trial makes of `search.base`, and whom the options of live testbeds reach.
        live_parts: the test that shows that these read all of them.
    """

    def followed(base: TrialOptions, values: Mapping[str, Any]) -> TrialOptions:
        options = _APPLY(base, values)
        reads.follow(options, "search.base")
        return options

    @contextlib.contextmanager
    def testbed(topology: object, live: Options, *arguments: object, label: str) -> Iterator[SimulatedTestbed]:
        reads.hand_over(live, live_parts)
        with SimulatedTestbed(social_network()) as simulated:
            yield simulated

    def configured(algorithm: Any, model: Options, setting: Any) -> Any:
        reads.hand_over(model, NETWORK)
        return _CONFIGURE(algorithm, model, setting)

    monkeypatch.setattr(trial, "apply", followed)
    monkeypatch.setattr(trial, "configured", configured)
    monkeypatch.setattr(trial, "LiveTrial", _LiveTrial)
    monkeypatch.setattr(trial, "TrialMetrics", lambda: SimpleNamespace(report=lambda score, steps: None))
    monkeypatch.setattr(confirm, "start_remote_testbed", testbed)
    judge = SimpleNamespace(remote=_JUDGE)
    monkeypatch.setattr(confirm, "judge_live", SimpleNamespace(options=lambda scheduling_strategy: judge))
    monkeypatch.setattr(sweep, "Tuner", _Tuner)
    monkeypatch.setattr(sweep, "warm_up", lambda processes, cpus: None)
    monkeypatch.setattr(sweep, "other_nodes", lambda cpus: {})
    monkeypatch.setattr(tune, "with_parameters", lambda trainable, shared: shared)
    monkeypatch.setattr(tune, "with_resources", lambda shared, resources: shared)
    monkeypatch.setattr("ray.get", lambda results: results)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: NODE["NodeID"]))
    monkeypatch.setattr("ray.nodes", lambda: [NODE])
    monkeypatch.setattr("ray.cluster_resources", lambda: RESOURCES)
    monkeypatch.setattr("ray.available_resources", lambda: RESOURCES)
    monkeypatch.setattr("rayjobs.runs.usage.session_name", lambda: "no session")


class _Tuner:
    """As much of `ray.tune.Tuner` as a sweep uses; tries the first value of every domain."""

    def __init__(self, shared: Shared, **arguments: Any) -> None:
        self._shared, self._run = shared, arguments["run_config"]
        self._space: dict[str, Any] = arguments["param_space"]

    @staticmethod
    def can_restore(path: str) -> bool:
        return False

    def fit(self) -> list[Any]:
        one = object.__new__(SweepTrial)
        one.config, one._trial_info = {path: domain.sample() for path, domain in self._space.items()}, None
        one.setup(one.config, self._shared)
        rows = [one.step()]
        while not rows[-1]["done"]:
            rows.append(one.step())
        folder = Path(self._run.storage_path) / "trial-0"
        one.save_checkpoint(str(folder))
        one.cleanup()
        metrics = {**rows[-1], "config": one.config, "training_iteration": len(rows), "time_total_s": 1.0}
        result = SimpleNamespace(
            path=str(folder),
            metrics=metrics,
            config=one.config,
            error=None,
            checkpoint=SimpleNamespace(path=str(folder), filesystem=fs.LocalFileSystem()),
            metrics_dataframe=pd.DataFrame(rows),
        )
        return [result]


class _LiveTrial:
    """As much of `tuning.search.live_trial.LiveTrial` as a trial uses; its testbed is simulated and stepped once."""

    def __init__(self, share: Any, *arguments: Any) -> None:
        self._share = share

    def watch_reference(self, problem: Any, interval_s: float) -> None:
        assert self._share.reference_s > 0

    def environment(self, problem: DecisionProblem, interval_s: float, episode_steps: int) -> dict[str, Any]:
        with SimulatedTestbed(problem.topology) as testbed:
            env = BalancingEnv(
                problem, lambda: testbed, lambda seed: self._share.scenario, method="least_conn", interval_s=interval_s,
                episode_steps=episode_steps, closes_testbed=False,
            )  # fmt: skip
            env.reset(seed=1)
            env.step(env.action_space.sample())
        return {"problem": problem, "leaser": None}

    def validation(self, terms: Mapping[str, float]) -> Any:
        return SimpleNamespace(score=0.0, art_per_request=0.0, error_ratio=0.0)

    def close(self) -> None:
        pass
