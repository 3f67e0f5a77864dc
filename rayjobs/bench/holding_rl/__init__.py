"""Bench `holding_rl`: what reinforcement learning adds to late binding with fixed numbers
(docs/late-binding-learning.md).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from actuators.contract.topology import social_network
from actuators.files import write_json
from envs.environment.holding import HoldingTask
from envs.scenarios.catalogue import STUDY
from envs.scenarios.lookup import scenario
from envs.study.judge import Score
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, figure
from rayjobs.bench.parts.ratios import PUBLISHED_SEEDS, Ratios
from rayjobs.runs.local_ray import local_ray
from tuning.learning.holding import fit_regimes, holding_task, played, prove_holding, train_holding, untrained
from tuning.learning.windowed import WindowedTraining
from tuning.policy.model import EquivariantNet

REGIMES = 8
WRONG = (0.5, 1.5)
"""Believed workers over true ones."""
LONG_S, QUICK_S = {"S6": 1500.0}, 60.0
MOST_HARM = 0.5
"""Percent of J that what the proof has kept may cost."""


@dataclass(frozen=True, eq=False)
class Training:
    """One training: the network, and as the proof left it."""

    net: EquivariantNet
    kept: EquivariantNet
    minutes: float
    proof: Mapping[str, Any]


def measure(context: BenchContext) -> Sequence[Bar]:
    """Learned importance, θ, slots and refuse factor over fixed ones, on S1 to S10 as they are judged.

    Trainings are kept beside the figures; a repeated run goes on from them.
    """
    context.kept.mkdir(parents=True, exist_ok=True)
    with local_ray():
        return list(Experiment(context).bars())


class Experiment:
    """Trains, proves and plays; short when quick, which teaches little but shows that it works."""

    def __init__(self, context: BenchContext) -> None:
        self._context, self._known = context, dict[tuple[int, float], Mapping[str, Sequence[Score]]]()
        quick = context.quick
        self._training = WindowedTraining(1, 1, 11, 22, 2) if quick else WindowedTraining(40, 10, 66, 440, 2)
        drawn = np.random.default_rng([context.seed, 7]).choice(90_000, 3, replace=False) + 1000
        self._seeds = [int(seed) for seed in drawn[: 1 if quick else 3]]
        self._names = STUDY[:2] if quick else STUDY
        context.log("fitting the mixture")
        encoder = fit_regimes(social_network(), REGIMES, context.seed, 16 if quick else 128)
        self.task = holding_task(social_network(), encoder)

    def bars(self) -> Iterator[Bar]:
        """Figures of all trainings; only what the proof has kept is judged."""
        trainings = [self._trained(seed) for seed in self._seeds]
        minutes = ", ".join(f"{one.minutes:.1f}" for one in trainings)
        how = f"{len(trainings)} trainings of {minutes} min; {', '.join(self._names)}, seeds 101 to 104"
        for factor in (1.0, *WRONG):
            believed = "" if factor == 1 else f", workers believed × {factor:g}"
            yield from self._over([one.net for one in trainings], factor, f"learned{believed}", how)
        proofs = "; ".join(_told(one.proof) for one in trainings)
        kept = self._ratios([one.kept for one in trainings], 1.0)
        gain = -100 * np.log(kept.geometric("index"))
        yield at_least("as proven: J better by", gain, -MOST_HARM, "%", how=proofs, reference=kept.interval("index"))
        for metric in ("mean_ms", "p99_ms", "art"):
            yield figure(f"as proven: {metric} over fixed numbers", kept.geometric(metric), "x", how=how,
                         reference=f"{kept.interval(metric)}; worst {kept.worst(metric)}")  # fmt: skip

    def _over(self, nets: Sequence[EquivariantNet], factor: float, name: str, how: str) -> Iterator[Bar]:
        ratios = self._ratios(nets, factor)
        for metric in ("index", "mean_ms", "p99_ms", "art"):
            each = ", ".join(f"{self._ratios([net], factor).geometric(metric):.3f}" for net in nets)
            told = f"{ratios.interval(metric)}; each {each}; worst {ratios.worst(metric)}, best {ratios.best(metric)}"
            what = "J" if metric == "index" else metric
            yield figure(f"{name}: {what} over fixed numbers", ratios.geometric(metric), "x", how=how, reference=told)
        for where in ("S5", "S8"):
            if where in self._names:
                own = [np.mean([score.goodput for score in self._scores(net, factor)[where]]) for net in nets]
                fixed = float(np.mean([score.goodput for score in self._scores(None, factor)[where]]))
                yield figure(f"{name}: goodput in {where}", float(np.mean(own)), "", how=how,
                             reference=f"fixed numbers {fixed:.3f}")  # fmt: skip

    def _ratios(self, nets: Sequence[EquivariantNet], factor: float) -> Ratios:
        return Ratios.mean([Ratios.of(self._scores(net, factor), self._scores(None, factor)) for net in nets])

    def _scores(self, net: EquivariantNet | None, factor: float) -> Mapping[str, Sequence[Score]]:
        """Each taken once; without a network those of the fixed numbers."""
        key = (id(net), factor)
        if key not in self._known:
            self._context.log(f"{'fixed numbers' if net is None else 'learned'}, workers believed × {factor:g}")
            self._known[key] = self._play(net, factor)
        return self._known[key]

    def _play(self, net: EquivariantNet | None, factor: float) -> Mapping[str, Sequence[Score]]:
        task = replace(self.task, worker_factor=factor)
        return {name: self._of(task, net, name) for name in self._names}

    def _of(self, task: HoldingTask, net: EquivariantNet | None, name: str) -> Sequence[Score]:
        seconds = QUICK_S if self._context.quick else LONG_S.get(name, scenario(name).duration_s)
        scripts = [scenario(name, seconds).script(task.topology, seed) for seed in PUBLISHED_SEEDS]
        return played(task, net, scripts, seconds, threads=2).scores(task.deadlines_s)

    def _trained(self, seed: int) -> Training:
        place = self._context.kept / f"{seed}-{self._training.iterations}"
        story = place.with_suffix(".json")
        if not story.exists():
            self._train(seed, place)
        told = json.loads(story.read_bytes())
        return Training(self._loaded(place, ".net"), self._loaded(place, ".kept"), told["minutes"], told["proof"])

    def _train(self, seed: int, place: Path) -> None:
        """Writes the networks, and the story last."""
        self._context.log(f"training, seed {seed}: {self._training.iterations} iterations")
        began_s = time.perf_counter()
        net = train_holding(self.task, self._training, seed)
        minutes = (time.perf_counter() - began_s) / 60
        self._context.log(f"proof, seed {seed}: {self._training.proof_episodes} episodes")
        kept, proof = prove_holding(net, self.task, self._training)
        for one, suffix in ((net, ".net"), (kept, ".kept")):
            save_file(one.state_dict(), place.with_suffix(suffix))
        write_json(place.with_suffix(".json"), {"minutes": minutes, "proof": proof.to_json()})

    def _loaded(self, place: Path, suffix: str) -> EquivariantNet:
        net = untrained(self.task)
        net.load_state_dict(load_file(place.with_suffix(suffix)))
        return net


def _told(proof: Mapping[str, Any]) -> str:
    worst = min(proof["scenarios"], key=lambda name: proof["scenarios"][name]["low"])
    overall, low = proof["overall"], proof["scenarios"][worst]["low"]
    kept = f"kept {proof['reach']:.0%}" if proof["holds"] else "kept nothing"
    return (
        f"{kept}: {overall['episodes']} fresh episodes at {proof['reach']:.0%} {overall['mean']:+.2%} (at least "
        f"{overall['low']:+.2%}), {worst} at least {low:+.2%}"
    )
