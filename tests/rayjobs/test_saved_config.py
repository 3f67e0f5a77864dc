"""The saved configuration is what ran: `--config` of it repeats the run; those of earlier versions are still read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from actuators.errors import ConfigError
from actuators.options import Options
from envs.environment.actions import ActionOptions
from envs.environment.problem import DecisionOptions
from rayjobs.cli.config import dump_yaml, load_options
from rayjobs.cli.main import load_verb
from rayjobs.encoder import training_of
from tests.support.paths import DATA
from tests.support.problems import problem
from tuning.options import ModelOptions
from tuning.policy.bundle import Bundle
from tuning.policy.model import net_for

SAVED = DATA / "saved"
"""config.yaml of runs of version 0.1, which saved every option, also those without effect."""


def options_of(verb: str, *assignments: str, file: Path | None = None, **flags: Any) -> Options:
    return load_options(load_verb(verb).options, file=file, assignments=assignments, flags=flags)


def saved_by_a_run(folder: Path, verb: str) -> Path:
    """As it lies in the folder of a run, beside the command."""
    (folder / "command.txt").write_text(f"deepsched {verb}\n")
    return Path(shutil.copy(SAVED / f"{verb}.yaml", folder / "config.yaml"))


EARLIER: dict[str, tuple[list[str], dict[str, Any]]] = {
    "evaluate": (
        ["judge.rounds=3", "observe.duration_s=20", "policies=round_robin,least_conn,random_two,inverse_latency,"
         "type_means,idle"],
        {"seed": 101, "seeds": 2, "scenario": ("S1", "S3")},
    ),
    "train": (
        ["training.steps=2400", "method=expected_delay", "training.decision.action.baseline=idle",
         "training.paired=yes", "judge.rounds=2", "judge.measure_s=10"],
        {"seed": 3},
    ),
    "demo": (["training.decision.action.baseline=idle"], {"seed": 4, "quick": True, "testbed": "simulated"}),
    "sweep": (["search.trials=4", "search.search=random", "search.scheduler=none"], {"seed": 5}),
    "observe": (["observe.duration_s=60"], {"seed": 6}),
}  # fmt: skip
"""The options that they were saved with, in today's terms; in 0.1, a group that was given in part lost the defaults
of its verb, so that `judge.measure_s` of train was 10."""


@pytest.mark.parametrize("verb", EARLIER)
def test_the_configuration_of_an_earlier_run_is_read(verb: str, tmp_path: Path) -> None:
    assignments, flags = EARLIER[verb]
    assert options_of(verb, file=saved_by_a_run(tmp_path, verb)) == options_of(verb, *assignments, **flags)


def test_an_earlier_run_can_be_repeated_with_another_seed(tmp_path: Path) -> None:
    options = options_of("evaluate", file=saved_by_a_run(tmp_path, "evaluate"), seed=7, out=tmp_path)
    assert (options.seed, options.seeds) == (7, 2)  # type: ignore[attr-defined]


def test_what_an_earlier_run_obeyed_and_no_option_says_now_is_one_line(tmp_path: Path) -> None:
    file = saved_by_a_run(tmp_path, "train")
    file.write_text(file.read_text().replace("  seeds: 1\n", "  seeds: 3\n"))
    with pytest.raises(ConfigError, match=r"there is no option 'judge\.seeds' .*; judge on more seeds with") as caught:
        options_of("train", file=file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("evaluate", ["seeds=2", "testbed=live,simulated", "judge.rounds=2"]),
        ("train", ["testbed=live", "parallel.testbeds=3", "training.algorithm.name=bc"]),
        ("train", ["training.algorithm.name=dqn", "training.decision.action.kind=ratios"]),
        ("demo", ["testbed=simulated", "quick=yes", "judge.rounds=5"]),
        ("demo", ["testbed=simulated", "method=round_robin", "live_training.steps=0"]),
        ("sweep", ["search.scheduler=pbt", "confirm.best=0"]),
        ("sweep", ["search.testbed=live", "search.space={encoder.clusters: [2, 4]}"]),
        ("observe", ["testbed=live"]),
    ],
)
def test_what_is_saved_is_read_as_the_same_options(verb: str, words: list[str], tmp_path: Path) -> None:
    options = options_of(verb, *words)
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(options))
    again = options_of(verb, file=file)
    assert dump_yaml(again) == dump_yaml(options)
    assert again == options


@pytest.mark.parametrize("version", ["present", "0.1"])
def test_further_training_keeps_the_method_and_interval_of_the_bundle(version: str, tmp_path: Path) -> None:
    saved = saved_by_a_run(tmp_path, "train")
    if version == "present":
        saved.write_text(dump_yaml(options_of("train", file=saved)))
    config = yaml.safe_load(saved.read_text())
    assert ("method" in config["training"]) == (version == "0.1")
    residual = DecisionOptions(action=ActionOptions(baseline="idle"))
    own = replace(problem(), options=residual)
    bundle = Bundle(net_for(own, ModelOptions()), own, ModelOptions(), {"config": config})
    training = training_of(bundle, steps=96)
    assert (training.method, training.interval_s, training.paired, training.steps) == ("expected_delay", 1.0, True, 96)
