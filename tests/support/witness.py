"""A short evaluation and a short training whose numbers are recorded, and how numbers are compared with the record.

    .venv/bin/python -m tests.support.witness [PART …]      records `tests/data/witness/numbers.json` anew

Do that only when numbers are meant to change, and say in the commit why. `tests/data/witness/README.md` says what is
compared, how exactly, and why other machines get the same.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.arithmetic import digest, pin, probe
from tests.support.paths import DATA

WITNESS = DATA / "witness"
TOLERANCE = 1e-4
"""Largest relative difference where this machine computes otherwise than the recording one. Measured with each library
set to other kernels in turn: at most 7e-6, in the training; nothing in the evaluation beyond 1e-13."""

SHOWN = 5


def assignments(*values: str) -> list[str]:
    """The words of `--set` for each of them."""
    return [word for value in values for word in ("--set", value)]


_JUDGE = ("judge.rounds=2", "judge.warm_up_s=1", "judge.measure_s=5")
_POLICIES = (
    "least_conn", "round_robin", "random_two", "inverse_latency", "little", "equaliser", "aimd", "model_based",
    "utilisation_pid", "knapsack", "nothing_learned=type_means", "times_learned=unlevelled", "ratio", "shortest_delay",
)  # fmt: skip
_FIRST_FEATURES, _FEATURES = "observe.encoder.features_version=1", "observe.encoder.features_version=2"
EVALUATION = [
    "evaluate", "--seed", "7", "--scenario", "S2", "--policies", ",".join(_POLICIES),
    *assignments("observe.duration_s=20", _FIRST_FEATURES, *_JUDGE),
]  # fmt: skip
EVALUATION_2 = [word.replace(_FIRST_FEATURES, _FEATURES) for word in EVALUATION]
_TRAINING = (
    "steps=96", "environments=4", "episode_steps=6", "held_out.every_steps=48", "held_out.episodes=2",
    "algorithm.batch_steps=48", "algorithm.minibatch_steps=24", "algorithm.epochs=2", "algorithm.learning_rate=0.01",
)  # fmt: skip
TRAINING = [
    "train", "--seed", "4",
    *assignments("observe.duration_s=40", "observe.explore_s=20", "observe.interval_s=0.5", *_JUDGE),
    *assignments(*(f"training.{value}" for value in _TRAINING), _FIRST_FEATURES),
]  # fmt: skip
TRAINING_2 = [word.replace(_FIRST_FEATURES, _FEATURES) for word in TRAINING]


def evaluation_numbers(run: Path) -> dict[str, Any]:
    """From the folder of an evaluation: the deadlines, what is said of each policy, what each block sent and set."""
    content = json.loads((run / "evaluation.json").read_text())
    policies = {}
    for name, policy in content["policies"].items():
        kept = {key: value for key, value in policy.items() if key not in ("latency", "accounting", "per_type")}
        means = {kind: figures["mean_ms"] for kind, figures in policy["per_type"].items()}
        policies[name] = {**kept, "mean_ms_per_type": means}
    blocks = []
    for index, block in enumerate(content["blocks"]):
        windows = [window for window in content["windows"] if window["block"] == index]
        requests = [sum(map(sum, window["requests"])) for window in windows]
        of_block = {name: block[name] for name in ("policy", "seed", "changes")}
        blocks.append({**of_block, "requests": requests, "shares_at_the_end": windows[-1]["shares"]})
    deadlines = json.loads((run / "deadlines.json").read_text())
    return {"deadlines": deadlines, "policies": policies, "blocks": blocks}


def training_numbers(run: Path) -> dict[str, Any]:
    """From the folder of a training: the curve, the network and its evaluation."""
    from safetensors.numpy import load_file

    with (run / "progress.csv").open() as file:
        curve = [{k: v if k == "phase" else float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    tensors = load_file(run / "bundle" / "policy.safetensors")
    network = {name: [float(tensor.min()), float(tensor.max())] for name, tensor in sorted(tensors.items())}
    digests = {name: digest(tensor) for name, tensor in sorted(tensors.items())}
    return {"curve": curve, "network": network, "digests": digests, **evaluation_numbers(run)}


def unequal(part: str, new: Any, old: Any = None) -> list[str]:
    """The first places where the numbers differ from the recorded ones of that part (or from `old`); empty when equal.

    To the bit where this machine computes as the recording one did, else within `TOLERANCE`.
    """
    recorded = json.loads((WITNESS / "numbers.json").read_text())
    exact = recorded["arithmetic"] == probe()
    found = _differences(recorded[part] if old is None else old, new, exact)
    return [*itertools.islice(found, SHOWN)]


def _differences(old: Any, new: Any, exact: bool, where: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key, value in old.items():
            if exact or key != "digests":
                yield from _differences(value, new[key], exact, f"{where}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, exact, f"{where}[{index}]")
    elif not _equal(old, new, exact):
        yield f"{where}: {old}, now {new}"


def _equal(old: Any, new: Any, exact: bool) -> bool:
    if isinstance(old, float) and isinstance(new, float) and math.isnan(old) and math.isnan(new):
        return True
    if exact or not (isinstance(old, int | float) and isinstance(new, int | float)):
        return bool(old == new)
    return math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=1e-9)


def main(words: Sequence[str]) -> None:
    """Writes what this checkout gives: all parts, or those that are named; the others stay as they are."""
    from rayjobs.cli.main import main as deepsched

    target = WITNESS / "numbers.json"
    numbers: dict[str, Any] = {**(json.loads(target.read_text()) if words else {}), "arithmetic": probe()}
    runs: tuple[tuple[str, list[str], Callable[[Path], dict[str, Any]]], ...] = (
        ("evaluation", EVALUATION, evaluation_numbers),
        ("training", TRAINING, training_numbers),
        ("evaluation_2", EVALUATION_2, evaluation_numbers),
        ("training_2", TRAINING_2, training_numbers),
    )
    for name, command, read in runs:
        if words and name not in words:
            continue
        with tempfile.TemporaryDirectory() as out:
            if deepsched([*command, "--out", out]) != 0:
                sys.exit(f"{name} failed")
            (run,) = Path(out).iterdir()
            numbers[name] = read(run)
    target.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    pin()
    main(sys.argv[1:])
