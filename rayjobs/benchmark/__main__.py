"""`deepsched benchmark NAME`: scores rules, programs and bundles on fixed scenarios and seeds (docs/benchmark.md)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from actuators.errors import ConfigError
from actuators.options import Options
from rayjobs.cli.main import Verb, run_verb

if TYPE_CHECKING:
    from actuators.contract.control import BalancingMethod
    from envs.study.benchmark import Entry, Played, Points, Suite

_SECONDS_PER_PLAY = 0.5
"""Rough time of one scenario with ten seeds, for the progress bar."""


class BenchmarkOptions(Options):
    """Which benchmark, and what takes part."""

    name: str = "social-1"
    """The benchmark with its version: social-1 (five scenarios, seconds per entry), wide-1 (sixteen, for rules that
    should hold everywhere)."""
    policies: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "round_robin", "random_two", "least_conn", "inverse_latency", "least_time", "peak_ewma", "prequal",
        "expected_delay_static", "expected_delay", "late_binding",
    )  # fmt: skip
    """What is scored: a rule of `deepsched simulate`, late_binding or earliest_deadline; the Python file of a function
    (docs/examples/initial_rule.py; the file is run); the folder of a bundle."""
    split: Literal["held_out", "search"] = "held_out"
    """held_out: the seeds that an entry is judged on, once, after all choices; search: those to search and tune on."""
    out: Path | None = None
    """JSON file for the scores and what they are made of; none is written when not given."""


def run(options: BenchmarkOptions) -> int:
    """Prints the table, best entry first."""
    from actuators.files import write_json
    from envs.study.benchmark import BOUND, HIGHEST, LOWEST, points, reference, suite_named
    from rayjobs.cli.console import console_out
    from rayjobs.cli.progress import Progress, Stage

    suite = suite_named(options.name)
    seeds = suite.held_out_seeds if options.split == "held_out" else suite.search_seeds
    entries = {_shown(text): entry_of(text, suite) for text in options.policies}
    if len(entries) < len(options.policies):
        raise ConfigError("two entries have one name", where="--policies", remedy="name each once")
    for text in options.policies:
        if _shown(text) in (LOWEST, HIGHEST, BOUND) and text != _shown(text):
            raise ConfigError(f"'{_shown(text)}' is a reference", where=f"--policies {text}", remedy="rename it")
    each_s = _SECONDS_PER_PLAY * len(suite.scenarios)
    stages = [Stage(LOWEST, each_s), Stage(HIGHEST, 3 * each_s), Stage(BOUND, each_s)]
    stages += [Stage(f"entry {name}", each_s) for name in entries]
    played: dict[str, Played] = {}
    with Progress(stages) as progress:
        for name in (LOWEST, HIGHEST, BOUND):
            with progress.stage(name):
                played[name] = reference(suite, name, seeds)
        for name, entry in entries.items():
            with progress.stage(f"entry {name}") as stage:
                played[name] = played.get(name) or _played(suite, entry, seeds, stage)
    scores = {name: points(suite, each, played[LOWEST], played[HIGHEST]) for name, each in played.items()}
    console_out().print(_table(suite, options.split, scores, played))
    if options.out is not None:
        write_json(options.out, _document(suite, options, scores, played))
        console_out().print(f"kept: {options.out}", soft_wrap=True)
    return 0


def entry_of(text: str, suite: Suite) -> Entry:
    """An entry by a rule's name, a Python file or a bundle's folder. Raises ConfigError, DataError or BundleError."""
    from envs.study.benchmark import entry_named

    if text.endswith(".py"):
        from envs.study.program import program_rule

        if not Path(text).is_file():
            raise ConfigError("no such file", where=text, remedy="give the file of a function `weights`")
        made = program_rule(Path(text))
        return lambda each, topology: made
    return _bundle_entry(Path(text), suite) if "/" in text else entry_named(text)


def _bundle_entry(folder: Path, suite: Suite) -> Entry:
    from envs.environment.study_setup import PLAIN, SHARED_MEMORY
    from envs.study.rules import Rule, policy_steering
    from rayjobs.cli.console import console_err
    from tuning.policy.bundle import load_bundle

    bundle = load_bundle(folder, suite.topology)
    curve = bundle.provenance.get("curve") or [{}]
    steps = curve[-1].get("step")
    if steps is None:
        console_err().print(f"{folder}: does not say how many steps it was trained", markup=False, soft_wrap=True)
    elif steps > suite.training_steps:
        text = f"{folder}: trained {steps:,} steps, beyond the budget of {suite.training_steps:,}"
        console_err().print(text, markup=False, soft_wrap=True)
    trained = _trained(bundle.provenance)
    interval_s, method = trained.get("interval_s"), trained.get("method")
    if isinstance(interval_s, int | float) and interval_s != suite.interval_s:
        text = f"{folder}: trained to decide every {interval_s:g} s, decides every {suite.interval_s:g} s here"
        console_err().print(text, markup=False, soft_wrap=True)
    policy, problem = bundle.policy(), bundle.problem
    times = problem.options.action.estimator is not None
    rule = Rule(
        _shown(str(folder)),
        "expected_delay" if times else next((each for each in _WEIGHTED if each == method), "least_conn"),
        lambda: policy_steering(policy, problem),
        SHARED_MEMORY if times else PLAIN,
    )
    return lambda each, topology: rule


_WEIGHTED: tuple[BalancingMethod, ...] = ("round_robin", "least_conn", "random_two")
"""Methods that a bundle's weights can be trained for."""


def _trained(provenance: dict[str, Any]) -> dict[str, Any]:
    """What a bundle was trained with: a sweep's says it itself, others in their configuration, those of 0.1 deeper."""
    config = _mapping(provenance.get("config"))
    return {**config, **_mapping(config.get("training")), **provenance}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _shown(text: str) -> str:
    """As it stands in the table."""
    if text.endswith(".py"):
        return Path(text).stem
    return (Path(text).absolute().parent.name or text) if "/" in text else text


def _played(suite: Suite, entry: Entry, seeds: tuple[int, ...], stage: Any) -> Played:
    from envs.study.benchmark import play_suite

    names = list(suite.scenarios)
    return play_suite(suite, entry, seeds, lambda name: stage.update(name, names.index(name) / len(names)))


def _table(suite: Suite, split: str, scores: dict[str, Points], played: dict[str, Played]) -> Any:
    from rich.table import Table

    wide = len(suite.scenarios) > _MOST_COLUMNS
    table = Table(title=f"{suite.name} ({suite.digest()}), {split.replace('_', '-')} seeds", title_justify="left")
    columns = ("entry", "score", "95 %", "goodput", "J", *(() if wide else suite.scenarios), "goodput %", "J itself")
    for column in columns:
        table.add_column(column, justify="left" if column == "entry" else "right")
    for name, each in sorted(scores.items(), key=lambda item: -item[1].total):
        low, high = each.interval
        table.add_row(
            name, f"{each.total:.3f}", f"{low:.2f} to {high:.2f}", f"{each.goodput:.3f}", f"{each.index:.3f}",
            *(() if wide else (f"{value:.2f}" for value in each.scenarios.values())),
            f"{100 * played[name].goodput.mean():.2f}", f"{played[name].index.mean():.4f}",
        )  # fmt: skip
    return table


_MOST_COLUMNS = 6


def _document(
    suite: Suite, options: BenchmarkOptions, scores: dict[str, Points], played: dict[str, Played]
) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "benchmark": suite.name,
        "digest": suite.digest(),
        "split": options.split,
        "scenarios": list(suite.scenarios),
        "entries": {
            name: {
                **asdict(scores[name]), "goodput_of_play": each.goodput.tolist(), "index_of_play": each.index.tolist(),
            }
            for name, each in played.items()
        },
    }  # fmt: skip


VERB = Verb(
    name="benchmark",
    example="deepsched benchmark social-1 --policies expected_delay,docs/examples/initial_rule.py",
    options=BenchmarkOptions,
    run=run,
    positional=("name",),
    shares=True,
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
