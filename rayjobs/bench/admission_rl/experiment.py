"""The arms of the bench, their trainings and what they come to on draws that no training has seen."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from actuators.contract.admission import AdmissionRule
from actuators.contract.script import Script
from actuators.contract.topology import social_network
from actuators.files import write_json
from envs.admission.nominal import nominal_admission
from envs.environment.entry import EntryTask
from envs.environment.rates import RateNumbers
from envs.scenarios.lookup import scenario
from envs.study.goodput import Goodput, play_admission
from envs.study.rules import RULES
from rayjobs.bench.admission_rl.search import AIMD, MIMD, searched
from rayjobs.bench.parts.bars import BenchContext
from tuning.learning.entry import fit_regimes, learned_goodput, prove_entry, train_entry, untrained
from tuning.learning.windowed import WindowedTraining
from tuning.policy.model import EquivariantNet

TOPOLOGY = social_network()
HELD_OUT = 900_000
"""First seed of the draws, as in bench `admission`."""
WRONG = (0.5, 2.0)
"""Factors on the idle response times that are believed."""
REGIMES = 8
REFERENCES: tuple[AdmissionRule, ...] = ("none", "fixed", "aimd_thresh")


@dataclass(frozen=True)
class Arm:
    """What is trained.

    Attributes:
        base: the rule that it is compared with.
        iterations: of a training.
        trainings: how many, with other seeds.
        proven: whether the network is put to the proof.
    """

    name: str
    task: EntryTask
    base: str
    iterations: int = 50
    trainings: int = 3
    proven: bool = False


@dataclass(frozen=True, eq=False)
class Training:
    """One training of an arm.

    Attributes:
        kept: the network as the proof left it; None for arms without proof.
        proof: what it found, as JSON.
    """

    seed: int
    net: EquivariantNet
    minutes: float
    kept: EquivariantNet | None = None
    proof: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Found:
    """Goodput by name of the arm and by how wrong the idle times are believed to be (1, and `WRONG`).

    Attributes:
        plain: of what is not learned; learned, kept: one of each training, without and with the proof.
        rates: the numbers of the tuned buckets.
    """

    plain: dict[str, dict[float, Goodput]]
    learned: dict[str, dict[float, list[Goodput]]]
    kept: dict[str, dict[float, list[Goodput]]]
    trainings: dict[str, list[Training]]
    arms: tuple[Arm, ...]
    rates: RateNumbers
    draws: int


class Experiment:
    """Trains, proves and plays; short when quick, which teaches little but shows that it works."""

    def __init__(self, context: BenchContext) -> None:
        self._context = context
        drawn = np.random.default_rng([context.seed, 6]).choice(90_000, 3, replace=False) + 1000
        self._seeds = [int(seed) for seed in drawn[: 1 if context.quick else 3]]

    def run(self) -> Found:
        """All arms, on 200 draws of family H; 40 when quick."""
        scripts = [scenario("H").script(TOPOLOGY, HELD_OUT + n) for n in range(40 if self._context.quick else 200)]
        rates = self._rates()
        arms = self._arms(rates)
        trainings = {arm.name: [self._trained(arm, seed) for seed in self._seeds[: arm.trainings]] for arm in arms}
        plain = self._plain(scripts, rates)
        learned: dict[str, dict[float, list[Goodput]]] = {}
        kept: dict[str, dict[float, list[Goodput]]] = {}
        for arm in arms:
            own = trainings[arm.name]
            learned[arm.name] = {f: self._learned(arm, f, own, scripts) for f in (1.0, *WRONG)}
            if arm.proven:
                kept[arm.name] = {
                    f: [
                        self._kept(arm, f, one, whole, plain[arm.base][f], scripts)
                        for one, whole in zip(own, learned[arm.name][f], strict=True)
                    ]
                    for f in (1.0, *WRONG)
                }
        return Found(plain, learned, kept, trainings, arms, rates, len(scripts))

    def _arms(self, rates: RateNumbers) -> tuple[Arm, ...]:
        limits = EntryTask(TOPOLOGY)
        arms = [
            Arm("learned factors", limits, "aimd_thresh", proven=True),
            Arm("learned rates", EntryTask(TOPOLOGY, rates), "buckets, AIMD tuned", 25),
        ]
        if not self._context.quick:
            seeing = replace(limits, encoder=fit_regimes(TOPOLOGY, REGIMES, self._context.seed))
            arms.append(Arm("learned factors, regimes seen", seeing, "aimd_thresh", trainings=1, proven=True))
        return tuple(arms)

    def _rates(self) -> RateNumbers:
        """The tuned numbers of buckets: searched anew unless quick."""
        path = self._context.kept / "rates.json"
        if self._context.quick:
            return AIMD
        if not path.exists():
            self._context.log("searching the numbers of token buckets")
            write_json(path, vars(searched(TOPOLOGY, self._context.seed)))
        return RateNumbers(**json.loads(path.read_bytes()))

    def _plain(self, scripts: Sequence[Script], rates: RateNumbers) -> dict[str, dict[float, Goodput]]:
        plain: dict[str, dict[float, Goodput]] = {}
        for rule in REFERENCES:
            plain[rule] = {factor: _by_rule(rule, factor, scripts) for factor in (1.0, *WRONG)}
        for name, numbers in (("buckets, MIMD −5 %/+1 %", MIMD), ("buckets, AIMD tuned", rates)):
            # Buckets do not know idle times.
            plain[name] = dict.fromkeys(
                (1.0, *WRONG), learned_goodput(EntryTask(TOPOLOGY, numbers), None, scripts, threads=2)
            )
        return plain

    def _learned(
        self, arm: Arm, factor: float, trainings: Sequence[Training], scripts: Sequence[Script]
    ) -> list[Goodput]:
        self._context.log(f"{arm.name}, idle times × {factor:g}")
        task = replace(arm.task, believed_factor=factor)
        return [learned_goodput(task, one.net, scripts, threads=2) for one in trainings]

    def _kept(
        self, arm: Arm, factor: float, one: Training, whole: Goodput, nothing: Goodput, scripts: Sequence[Script]
    ) -> Goodput:
        """As the proof left it: all of what was learned, a part, or nothing."""
        if not one.proof["holds"]:
            return nothing
        if one.proof["reach"] == 1:
            return whole
        return learned_goodput(replace(arm.task, believed_factor=factor), one.kept, scripts, threads=2)

    def _training(self, arm: Arm) -> WindowedTraining:
        if self._context.quick:
            return WindowedTraining(2, 2, 16, 16, threads=2)
        return WindowedTraining(arm.iterations, arm.iterations // 5, threads=2)

    def _trained(self, arm: Arm, seed: int) -> Training:
        name = arm.name.replace(",", "").replace(" ", "-")
        place = self._context.kept / f"{name}-{seed}-{self._training(arm).iterations}"
        story = place.with_suffix(".json")
        if not story.exists():
            self._train(arm, seed, place)
        told = json.loads(story.read_bytes())
        kept = _loaded(arm, place.with_suffix(".kept")) if arm.proven else None
        return Training(seed, _loaded(arm, place.with_suffix(".net")), told["minutes"], kept, told["proof"])

    def _train(self, arm: Arm, seed: int, place: Path) -> None:
        """Writes the networks, and the story last."""
        training = self._training(arm)
        self._context.log(f"training {arm.name}, seed {seed}: {training.iterations} iterations")
        began_s = time.perf_counter()
        net = train_entry(arm.task, training, seed)
        minutes, proof = (time.perf_counter() - began_s) / 60, {}
        save_file(net.state_dict(), place.with_suffix(".net"))
        if arm.proven:
            self._context.log(f"proof of {arm.name}, seed {seed}: {training.proof_episodes} episodes")
            kept, proven = prove_entry(net, arm.task, training)
            save_file(kept.state_dict(), place.with_suffix(".kept"))
            proof = proven.to_json()
        write_json(place.with_suffix(".json"), {"minutes": minutes, "proof": proof})


def _loaded(arm: Arm, path: Path) -> EquivariantNet:
    net = untrained(arm.task)
    net.load_state_dict(load_file(path))
    return net


def _by_rule(rule: AdmissionRule, factor: float, scripts: Sequence[Script]) -> Goodput:
    admissions = [nominal_admission(script, TOPOLOGY, rule, factor=factor) for script in scripts]
    return play_admission(RULES["least_conn"], scripts, TOPOLOGY, admissions, threads=2)
