"""The experiment as bars of the bench."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from envs.study.goodput import Goodput
from rayjobs.bench.admission_rl import figures
from rayjobs.bench.admission_rl.experiment import WRONG, Arm, Found
from rayjobs.bench.parts.bars import Bar, at_least, figure

MOST_HARM = 0.2
"""Points of U that a residual which the proof has kept may cost."""


def bars(found: Found) -> list[Bar]:
    """Figures of all arms; only what the proof has kept is judged."""
    told = [_plain(name, plays[1.0], found) for name, plays in found.plain.items()]
    for arm in found.arms:
        told += _learned(arm, found)
        if arm.proven:
            told += _kept(arm, found)
    return told


def _plain(name: str, played: Goodput, found: Found) -> Bar:
    how = f"{found.draws} draws of family H; refused {played.refused_ratio():.1%}"
    worst = figures.worst_type([played]).plain()
    return figure(
        f"{name}: U", figures.goodput([played]).mean, "", how=how,
        reference=f"{figures.goodput([played]).plain()}; worst type {worst}; {_wrong(name, found)}",
    )  # fmt: skip


def _wrong(name: str, found: Found) -> str:
    """U with wrong idle times."""
    return ", ".join(f"idle times × {f:g} {found.plain[name][f].shares().mean():.3f}" for f in WRONG)


def _learned(arm: Arm, found: Found) -> Iterator[Bar]:
    plays, base = found.learned[arm.name], found.plain[arm.base]
    trainings = found.trainings[arm.name]
    how = f"{found.draws} draws, paired, mean and 2 standard errors; {len(trainings)} trainings"
    minutes = ", ".join(f"{one.minutes:.1f}" for one in trainings)
    yield figure(
        f"{arm.name}: U", figures.goodput(plays[1.0]).mean, "", how=f"{how} of {minutes} min",
        reference=f"{figures.goodput(plays[1.0]).plain()}; worst type {figures.worst_type(plays[1.0]).plain()}; "
        f"refused {figures.refused(plays[1.0]):.1%}",
    )  # fmt: skip
    for factor in (1.0, *WRONG):
        name = f"{arm.name} over {arm.base}{'' if factor == 1 else f', idle times × {factor:g}'}"
        yield from _gains(name, plays[factor], base[factor], how)
    if arm.base != "aimd_thresh":
        yield from _gains(f"{arm.name} over aimd_thresh", plays[1.0], found.plain["aimd_thresh"][1.0], how)


def _gains(name: str, trainings: Sequence[Goodput], base: Goodput, how: str) -> Iterator[Bar]:
    each = ", ".join(figures.gain([one], base).points() for one in trainings)
    overall, worst = figures.gain(trainings, base), figures.gain_of_worst(trainings, base)
    yield figure(
        f"{name}: gain", 100 * overall.mean, "points", how=f"{how}; {figures.by_kind(trainings, base)}",
        reference=f"{overall.points()}; each {each}",
    )  # fmt: skip
    yield figure(f"{name}: gain of the worst type", 100 * worst.mean, "points", how=how, reference=worst.points())


def _kept(arm: Arm, found: Found) -> Iterator[Bar]:
    proofs = [one.proof for one in found.trainings[arm.name]]
    reaches = ", ".join(f"{proof['reach']:.0%}" if proof["holds"] else "nothing" for proof in proofs)
    told = "; ".join(_proof(proof) for proof in proofs)
    for factor in (1.0, *WRONG):
        overall = figures.gain(found.kept[arm.name][factor], found.plain[arm.base][factor])
        worst = figures.gain_of_worst(found.kept[arm.name][factor], found.plain[arm.base][factor])
        name = f"{arm.name}, as proven{'' if factor == 1 else f', idle times × {factor:g}'}: gain"
        how = f"kept {reaches}; {told}" if factor == 1 else f"{found.draws} draws, paired"
        reference = f"{overall.points()}; worst type {worst.points()}"
        if factor == 1:
            yield at_least(name, 100 * overall.mean, -MOST_HARM, "points", how=how, reference=reference)
        else:
            yield figure(name, 100 * overall.mean, "points", how=how, reference=reference)


def _proof(proof: dict[str, Any]) -> str:
    worst = min(proof["scenarios"], key=lambda kind: proof["scenarios"][kind]["low"])
    low = proof["scenarios"][worst]["low"]
    overall = proof["overall"]
    return (
        f"{overall['episodes']} fresh episodes at {proof['reach']:.0%}: {100 * overall['mean']:+.2f} (at least "
        f"{100 * overall['low']:+.2f}), {worst} at least {100 * low:+.2f}"
    )
