"""Admission on simulated systems: family H against the study's figures, S1 to S10, and who pays in a flash.

Source of the references: docs/studies.md#admission.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from actuators.contract.admission import NEVER, Admission, AdmissionNumbers, AdmissionRule
from actuators.contract.arrays import FloatArray
from actuators.contract.late_binding import HoldOrder, LateBindingNumbers
from actuators.contract.script import Script
from actuators.contract.topology import Group, Topology, social_network
from envs.admission.nominal import nominal_admission
from envs.calibration.admission import DEVIATIONS
from envs.environment.study_setup import SHARED_MEMORY
from envs.estimators.registry import DEFAULT_ESTIMATOR
from envs.scenarios import disturbances as happen
from envs.scenarios.catalogue import StudyScenario
from envs.scenarios.family import KINDS
from envs.scenarios.lookup import scenario
from envs.study.goodput import Goodput, play_admission
from envs.study.judge import deadlines_s, observed
from envs.study.rules import RULES, Learning, late_binding
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure

THRESH: dict[str, Any] = {"multiple": 2.78, "gamma": 0.17, "importance_power": 0.17}
NUMBERS: dict[AdmissionRule, dict[str, Any]] = {
    "none": {}, "fixed": {}, "thresh": THRESH, "aimd_thresh": {}, "gradient": {}, "aimd": {},
}  # fmt: skip
"""The study's own numbers of each rule; the defaults are those of `fixed` and `aimd_thresh`."""

STUDY_U: dict[AdmissionRule, float] = {"none": 0.552, "fixed": 0.858, "thresh": 0.895, "aimd_thresh": 0.903}
REFERENCES: dict[AdmissionRule, float] = {"gradient": 0.861, "aimd": 0.857}
HELD_OUT, OTHERS = 900_000, 910_000
"""First seeds: of the 200 draws, and of those for other systems and wrong nominal values."""

FLASH, IMPORTANT = 6.0, 5.0
LEAST_CONN = RULES["least_conn"]
CALM, OVERLOADED = ("S1", "S2", "S2b", "S3", "S4", "S9", "S10"), ("S5", "S6", "S7", "S8")


def measure(context: BenchContext) -> Sequence[Bar]:
    """All bars; a quarter of the draws when quick."""
    return [
        *_speed(context), *_family(context), *held(context), *_wrong_and_larger(context), *_scenarios(context),
        *_importance(context),
    ]  # fmt: skip


def five_types(servers: int = 3) -> Topology:
    """The social network's types and two others."""
    known = social_network(tuple(f"server-{number}:80" for number in range(1, servers + 1)))
    more = (("search", "GET"), ("follow", "POST"))
    groups = [Group(f"{name}_backend", name, method, f"/{name}", 2.0, known.servers) for name, method in more]
    return Topology((*known.groups, *groups))


def goodput(
    scripts: Sequence[Script], topology: Topology, rule: AdmissionRule, factor: float = 1.0, **numbers: Any
) -> Goodput:
    """Over `least_conn`; `factor` is how wrong the idle response times are believed to be."""
    chosen = AdmissionNumbers(**{**NUMBERS[rule], **numbers})
    admissions = [nominal_admission(script, topology, rule, chosen, factor) for script in scripts]
    return play_admission(LEAST_CONN, scripts, topology, admissions)


def _draws(context: BenchContext, first: int, count: int, topology: Topology, name: str = "H") -> list[Script]:
    count = count // 4 // len(KINDS) * len(KINDS) if context.quick else count
    return [scenario(name).script(topology, first + number) for number in range(count)]


def _speed(context: BenchContext) -> Iterator[Bar]:
    scripts = _draws(context, HELD_OUT, 96, social_network())
    rates = []
    for _ in range(3):
        start = time.thread_time()
        found = goodput(scripts, social_network(), "aimd_thresh")
        rates.append(found.offered.sum() / (time.thread_time() - start) / 1e6)
    how = f"family H with aimd_thresh, {len(scripts)} draws of 50 s, CPU time of one thread, best of 3"
    yield at_least("simulated attempts", max(rates), 2.0, "M/s", how=how, reference=f"median {np.median(rates):.2f}")


def _family(context: BenchContext) -> Iterator[Bar]:
    topology = social_network()
    scripts = _draws(context, HELD_OUT, 200, topology)
    kinds = np.arange(len(scripts)) % len(KINDS)
    for rule, reference in {**STUDY_U, **REFERENCES}.items():
        context.log(f"{rule} on {len(scripts)} draws of family H")
        found = goodput(scripts, topology, rule)
        yield from _against(rule, found, reference, judged=rule in STUDY_U, how=_how(found, kinds))
        if rule == "aimd_thresh":
            yield at_least("U of aimd_thresh", float(found.shares().mean()), 0.89, "", how=_how(found, kinds))
        steady = float(found.shares()[kinds == 0].mean())
        if rule == "none":
            without = steady
        else:
            yield at_least(f"{rule}: U, steady, over none", steady - without, 0.0, "", how="paired, the steady draws")


def held(context: BenchContext) -> Iterator[Bar]:
    """Late binding behind admission, against `expected_delay` behind it: both learn service times, and know workers."""
    topology, how = social_network(), Learning(DEFAULT_ESTIMATOR)
    scripts = _draws(context, HELD_OUT, 200, topology)
    admissions = [nominal_admission(script, topology, "aimd_thresh") for script in scripts]
    kinds = np.arange(len(scripts)) % len(KINDS)
    delayed = play_admission(how.rule(), scripts, topology, admissions)
    for order in get_args(HoldOrder)[:2]:
        context.log(f"late binding by {order} behind aimd_thresh on {len(scripts)} draws of family H")
        rule = late_binding(None, LateBindingNumbers(order=order), how, SHARED_MEMORY)
        found = play_admission(rule, scripts, topology, admissions)
        more = 100 * (found.shares() - delayed.shares())
        half = 1.96 * float(more.std(ddof=1)) / np.sqrt(len(more))
        of = (
            f"±{half:.2f}; expected_delay {delayed.shares().mean():.3f}, refused {delayed.refused_ratio():.1%},"
            f" worst type {np.nanmean(np.nanmin(delayed.group_shares(), axis=1)):.3f}"
        )
        name = f"late_binding by {order} with aimd_thresh: U over that of expected_delay with it"
        yield at_least(name, float(more.mean()), 0.0, "points", how=_how(found, kinds), reference=of)


def _against(name: str, found: Goodput, reference: float, *, judged: bool, how: str) -> Iterator[Bar]:
    shares = found.shares()
    margin = 2 * float(shares.std(ddof=1)) / np.sqrt(len(shares)) + 0.01
    of = f"{shares.mean():.3f}, study {reference}"
    if judged:
        bar = f"{name}: U against the study's, 2 standard errors + 1 point"
        yield at_most(bar, abs(shares.mean() - reference), margin, "", how=how, reference=of)
    else:
        yield figure(f"{name}: U", float(shares.mean()), "", how=how, reference=of)


def _how(found: Goodput, kinds: Any) -> str:
    shares = found.shares()
    by_kind = ", ".join(f"{kind} {shares[kinds == number].mean():.2f}" for number, kind in enumerate(KINDS))
    worst = np.nanmean(np.nanmin(found.group_shares(), axis=1))
    return (
        f"{len(shares)} draws; from the first attempt {found.first_shares().mean():.3f}, unweighted "
        f"{found.plain_shares().mean():.3f}, worst type {worst:.3f}, refused {found.refused_ratio():.1%}; {by_kind}"
    )


def _wrong_and_larger(context: BenchContext) -> Iterator[Bar]:
    topology, ten, five = social_network(), social_network(tuple(f"server-{n}:80" for n in range(10))), five_types()
    cases = (
        ("idle times × 0.5", topology, 96, 0.5, 0.886), ("idle times × 2", topology, 96, 2.0, 0.908),
        ("10 servers", ten, 48, 1.0, 0.913), ("5 types", five, 96, 1.0, 0.915),
    )  # fmt: skip
    for name, system, count, factor, reference in cases:
        context.log(f"aimd_thresh, {name}")
        scripts = _draws(context, OTHERS, count, system)
        found = goodput(scripts, system, "aimd_thresh", factor)
        how = f"{len(scripts)} draws, seeds from {OTHERS}"
        yield from _against(f"aimd_thresh, {name}", found, reference, judged=True, how=how)
    quiet = goodput(_draws(context, OTHERS, 96, topology), topology, "aimd_thresh", 0.1)
    yield figure("aimd_thresh: U, idle times × 0.1", float(quiet.shares().mean()), "", how="a quiet hour's values")


def _scenarios(context: BenchContext) -> Iterator[Bar]:
    """As `admission set` would admit after a recording at ordinary times."""
    topology = social_network()
    for name in (*CALM, *OVERLOADED):
        context.log(f"{name} with and without aimd_thresh")
        chosen = scenario(name, 100.0 if context.quick else None)
        times = observed(chosen, topology, "least_conn")
        yield from _with_and_without(context, chosen, times.mean_s + DEVIATIONS * times.deviation_s)


def _with_and_without(context: BenchContext, chosen: StudyScenario, limits_s: FloatArray) -> Iterator[Bar]:
    """Goodput by the deadlines of admission, and by the tighter ones of tardiness, which it does not know."""
    topology, seeds = social_network(), (101,) if context.quick else (101, 102, 103, 104)
    own = [replace(chosen.script(topology, seed), deadlines_s=tuple(map(float, limits_s))) for seed in seeds]
    ordinary = replace(chosen, disturbance=happen.none, load_shape=happen.steady).script(topology, 1)
    admissions = [_ordinary(script, ordinary, topology) for script in own]
    tight_s = tuple(map(float, deadlines_s(chosen, topology)))
    shares = []
    for scripts in (own, [replace(script, deadlines_s=tight_s) for script in own]):
        without = play_admission(LEAST_CONN, scripts, topology, None, warm_up_s=10.0)
        found = play_admission(LEAST_CONN, scripts, topology, admissions, warm_up_s=10.0)
        shares.append((100 * float(without.plain_shares().mean()), 100 * float(found.plain_shares().mean())))
    how = f"seeds {seeds[0]} to {seeds[-1]}, least_conn, {own[0].duration_s:g} s"
    (before, after), (tight_before, tight_after) = shares
    of = (
        f"goodput {before:.2f} % without, {after:.2f} % with, by the deadlines of tardiness {tight_before:.2f} and"
        f" {tight_after:.2f} %; refused {found.refused_ratio():.2%}"
    )
    if chosen.name in OVERLOADED:
        yield at_least(
            f"{chosen.name}: goodput over that without", after - before, 0.0, "points", how=how, reference=of
        )
        tight = f"{chosen.name}: goodput by the deadlines of tardiness over that without"
        yield at_least(tight, tight_after - tight_before, 0.0, "points", how=how)
    else:
        yield at_most(f"{chosen.name}: refused", 100 * found.refused_ratio(), 0.1, "%", how=how, reference=of)
        yield at_most(f"{chosen.name}: mean over that without", found.mean_s() / without.mean_s(), 1.01, "×", how=how)


def _ordinary(script: Script, ordinary: Script, topology: Topology) -> Admission:
    """Idle times of the script, the rates of ordinary times."""
    rates = {stream.request_type: stream.steps[0].rate_rps for stream in ordinary.streams}
    believed = nominal_admission(script, topology, "aimd_thresh")
    return replace(believed, rates_rps=np.array([rates[name] for name in topology.request_types]))


def _importance(context: BenchContext) -> Iterator[Bar]:
    topology = social_network()
    types = topology.request_types
    scripts = _draws(context, OTHERS, 96, topology, "H-steady")
    for of, importance in (("important (5)", IMPORTANT), ("never refused", NEVER)):
        lost: dict[str, float] = {}
        others: list[float] = []
        for g, name in enumerate(types):
            for flashing in range(len(types)):
                if flashing == g:
                    continue
                context.log(f"{name} {of}, {types[flashing]} × {FLASH:g}")
                calm, stormy = (_shares(s, topology, g, importance) for s in (scripts, _flashed(scripts, flashing)))
                lost[f"{name} in a flash of {types[flashing]}"] = 100 * float((calm[:, g] - stormy[:, g]).mean())
                others.append(float(stormy[:, flashing].mean()))
        worst = max(lost, key=lambda pair: lost[pair])
        how = f"{len(scripts)} steady systems, ×{FLASH:g} for 15 s, while it lasts; " + ", ".join(
            f"{pair} {points:.1f}" for pair, points in lost.items()
        )
        reference = f"{worst}; the flashing types keep {min(others):.2f} to {max(others):.2f}"
        yield at_most(f"{of}: goodput lost in a flash of another type", lost[worst], 2.0, "points", how=how,
                      reference=reference)  # fmt: skip


FLASH_AT_S, FLASH_S = 15.0, 15.0


def _flashed(scripts: Sequence[Script], flashing: int) -> list[Script]:
    """The same systems, in which one type comes `FLASH` times as often for a while."""

    def shaped(script: Script) -> Script:
        stream = script.streams[flashing]
        first = stream.steps[0]
        steps = (
            first,
            replace(first, start_s=FLASH_AT_S, rate_rps=FLASH * first.rate_rps),
            replace(first, start_s=FLASH_AT_S + FLASH_S),
        )
        streams = list(script.streams)
        streams[flashing] = replace(stream, steps=steps)
        return replace(script, streams=tuple(streams))

    return [shaped(script) for script in scripts]


def _shares(scripts: Sequence[Script], topology: Topology, important: int, importance: float) -> FloatArray:
    """Goodput ``[plays, groups]`` during the flash, with one important group and the others of 1."""
    values = np.ones(len(topology.groups))
    values[important] = importance
    admissions = [replace(nominal_admission(script, topology, "aimd_thresh"), importance=values) for script in scripts]
    ended = [replace(script, duration_s=FLASH_AT_S + FLASH_S) for script in scripts]
    return play_admission(LEAST_CONN, ended, topology, admissions, warm_up_s=FLASH_AT_S).group_shares()
