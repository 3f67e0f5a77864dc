"""Admission live: a surge at a shared database whose clients repeat, with and without limits, in paired blocks.

Real NGINX, HTTP, servers and clients; the stages behind the servers are emulated in time. 20 s at 60 % of what the
database can do, 20 s at two and a half times as much, 40 s at 60 % again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from actuators.contract.admission import Admission, AdmissionNumbers, AdmissionRule
from actuators.contract.arrays import FloatArray
from actuators.contract.script import Clients, RateStep, Script, ServerProfile, Stage, Stream
from actuators.contract.topology import Topology, social_network
from actuators.nginx.config import NginxOptions
from actuators.testbed.live import LiveTestbed
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from rayjobs.bench.admission.reaction import SurgeSamples, reaction_s
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure

RULES: tuple[AdmissionRule, ...] = ("none", "fixed", "thresh", "aimd_thresh")
ROUNDS = 5
BEFORE_S, SURGE_S, AFTER_S = (8.0, 20.0), (20.0, 40.0), (45.0, 80.0)
"""The parts of a block that are compared; the first seconds and those just after the surge are of neither."""
BLOCK_S, SAMPLE_S = 80.0, 0.1
SURGE = 2.5
BUSY = 0.85
"""Share of all cores' time above which a block says nothing."""

RATES_RPS = np.array([9.0, 54.0, 27.0])
SERVICE_S = (0.009, 0.003, 0.0025)
STAGE = Stage(4, (0.06, 0.025, 0.02), (1.0, 1.0, 1.0), contention=0.05)
"""Four connections, which 150 requests per second of this mix keep busy."""
DEADLINES_S = (0.3, 0.15, 0.15)
CLIENTS = tuple(Clients(5 * deadline_s, 2, 0.75, 0.25, 0.35) for deadline_s in DEADLINES_S)
THRESH: dict[str, Any] = {"multiple": 2.78, "gamma": 0.17}


@dataclass(frozen=True)
class Surge:
    """The scenario, frozen before the first measured round: each type comes `factors` times as often for a while."""

    factors: tuple[float, ...] = (SURGE,) * len(RATES_RPS)
    during_s: tuple[float, float] = SURGE_S
    duration_s: float = BLOCK_S
    name: str = "surge"

    def script(self, topology: Topology, seed: int) -> Script:
        """The script of this seed; the seed draws arrivals and work only."""
        streams = tuple(
            Stream(
                name,
                tuple(
                    RateStep(at_s, float(rate * f))
                    for at_s, f in ((0.0, 1.0), (self.during_s[0], factor), (self.during_s[1], 1.0))
                ),
            )
            for name, rate, factor in zip(topology.request_types, RATES_RPS, self.factors, strict=True)
        )
        servers = tuple(ServerProfile((1.0,) * len(streams)) for _ in topology.servers)
        return Script(
            self.name, seed, self.duration_s, streams, servers, SERVICE_S, stages=(STAGE,), clients=CLIENTS,
            deadlines_s=DEADLINES_S,
        )  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One block. Goodput: requests answered in time over requests, of first attempts that began in the part;
    `refused` is the share of all attempts; without counts of NGINX, the share that was answered by a 5xx;
    `reaction_s` as `rayjobs.bench.admission.reaction` defines it, 0 without such counts.
    """

    before: float
    surge: float
    after: float
    refused: float
    reaction_s: float
    busy: float
    left_in_flight: int


def admission(topology: Topology, rule: AdmissionRule) -> Admission | None:
    """What NGINX believes; all groups are worth the same."""
    if rule == "none":
        return None
    idle_s = np.array(SERVICE_S) + np.array(STAGE.work_s)
    numbers = AdmissionNumbers(**(THRESH if rule == "thresh" else {}))
    return Admission(topology, rule, np.array(DEADLINES_S), np.ones(3), idle_s, RATES_RPS, numbers)


def measure(context: BenchContext) -> Sequence[Bar]:
    """Paired blocks of all rules, in an order drawn for each round."""
    options = LiveOptions(nginx=NginxOptions(admission=True, method="least_conn"))
    topology = social_network(("server-1:80", "server-2:80", "server-3:80"))
    generator = np.random.default_rng([context.seed, 0xAD])
    blocks: dict[AdmissionRule, list[Block]] = {rule: [] for rule in RULES}
    discarded = 0
    with start_local_testbed(topology, options, context.work_dir, context.seed) as testbed:
        testbed.set_method("least_conn")
        for number in range(ROUNDS):
            for index in generator.permutation(len(RULES)):
                rule = RULES[int(index)]
                block = play(testbed, rule, context.seed * 1000 + number)
                while block.busy > BUSY and discarded < 2 * ROUNDS:
                    discarded += 1
                    context.log(f"round {number + 1}, {rule}: discarded, {block.busy:.0%} of the cores' time was used")
                    block = play(testbed, rule, context.seed * 1000 + number)
                blocks[rule].append(block)
                context.log(f"round {number + 1}, {rule}: {block}")
    return [
        *_bars(blocks),
        figure("blocks that were discarded", discarded, "", how=f"more than {BUSY:.0%} of the cores"),
    ]


def play(testbed: LiveTestbed, rule: AdmissionRule, seed: int) -> Block:
    """Plays the surge under the rule. Raises ActuationError before a balancer that has no such rule."""
    testbed.admit(None)
    testbed.reset(Surge(), seed)
    testbed.admit(admission(testbed.topology, rule))
    psutil.cpu_percent()
    samples = round(BLOCK_S / SAMPLE_S)
    good, planned, refused, offered = (np.zeros(samples, np.int64) for _ in range(4))
    finished, late = (np.zeros((samples, len(testbed.topology.groups)), np.int64) for _ in range(2))
    for index in range(samples):
        window = testbed.advance(SAMPLE_S)
        assert window.client is not None
        if window.client.good is not None:  # the load engine reports less often
            good[index], planned[index] = window.client.good.sum(), window.client.planned.sum()
        if window.admission is not None:
            entered = window.admission
            finished[index], late[index] = entered.finished, entered.late
            refused[index], offered[index] = entered.refused.sum(), entered.offered.sum()
        elif window.client.good is not None:
            refused[index], offered[index] = window.client.errors["status_5xx"].sum(), window.client.sent.sum()
    busy = psutil.cpu_percent() / 100
    testbed.drain()
    snapshot = testbed.latest_snapshot()
    left = snapshot.balancer.admission if snapshot is not None and snapshot.balancer is not None else None
    in_flight = sum(entry.in_flight for entry in left.groups) if left is not None else 0
    before, surge, after = (_share(good, planned, part) for part in (BEFORE_S, SURGE_S, AFTER_S))
    share = float(refused.sum() / max(offered.sum(), 1))
    at = _part(SURGE_S)
    seen = SurgeSamples(SAMPLE_S, finished[at], late[at], refused[at], RATES_RPS)
    numbers = AdmissionNumbers()
    reaction = reaction_s(seen, numbers.tick_s, numbers.late_share)
    return Block(before, surge, after, share, reaction, busy, in_flight)


def _part(part: tuple[float, float]) -> slice:
    """Its samples."""
    return slice(round(part[0] / SAMPLE_S), round(part[1] / SAMPLE_S))


def _share(good: NDArray[np.int64], planned: NDArray[np.int64], part: tuple[float, float]) -> float:
    return float(good[_part(part)].sum() / planned[_part(part)].sum())


def _bars(blocks: dict[AdmissionRule, list[Block]]) -> Iterator[Bar]:
    how = f"live, {ROUNDS} paired blocks of {BLOCK_S:g} s, {RATES_RPS.sum():g} requests/s, × {SURGE:g} for 20 s"
    table: dict[AdmissionRule, dict[str, FloatArray]] = {
        rule: {
            part: np.array([getattr(each, part) for each in found]) for part in ("before", "surge", "after", "refused")
        }
        for rule, found in blocks.items()
    }
    for rule, of in table.items():
        spread = ", ".join(
            f"{part} {values.mean():.3f} ({values.min():.3f} to {values.max():.3f})" for part, values in of.items()
        )
        yield figure(f"{rule}: goodput in the surge", float(of["surge"].mean()), "", how=how, reference=spread)
    best, none = table["aimd_thresh"], table["none"]
    yield at_most("none: goodput after the surge", float(none["after"].mean()), 0.5, "", how=how)
    yield at_least("aimd_thresh: goodput after over before", 100 * _low(best["after"] - best["before"]), -2.0, "points",
                   how=how + "; mean less 2 standard errors")  # fmt: skip
    gain = 100 * _low(best["surge"] - none["surge"])
    yield at_least("aimd_thresh: goodput in the surge over none", gain, 15.0, "points",
                   how=how + "; mean less 2 standard errors")  # fmt: skip
    reactions_s = [each.reaction_s for each in blocks["aimd_thresh"]]
    yield at_most(
        "aimd_thresh: from the first late window to a limit that holds", max(reactions_s), 2.0, "s",
        how=f"statistics every {SAMPLE_S:g} s; the slowest of the blocks",
        reference=", ".join(f"{each:.1f}" for each in reactions_s),
    )  # fmt: skip
    left = max(each.left_in_flight for found in blocks.values() for each in found)
    yield at_most("requests counted as inside when everything has ended", left, 0, "", how="all blocks")


def _low(values: FloatArray) -> float:
    return float(values.mean() - 2 * values.std(ddof=1) / np.sqrt(len(values)))
