"""The plan of an evaluation: order and seeds of its blocks (balanced, paired, equal for equal options), excerpts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from actuators.contract.control import BalancingMethod
from actuators.contract.script import Behaviour, Scenario, Script, StageBehaviour, Stream
from actuators.contract.topology import Topology
from actuators.errors import ConfigError, closest
from actuators.options import Options
from envs.heuristics.controllers import Controller
from envs.heuristics.names import policy_name

PolicyName = Annotated[str, AfterValidator(policy_name)]
"""A policy's name; a former one becomes the present one."""


class BlockOptions(Options):
    """How long and how often policies are judged. The verb sets seeds and control interval."""

    rounds: int = Field(default=8, ge=1)
    """Blocks per policy and seed; intervals need at least 2."""
    warm_up_s: float = Field(default=3.0, ge=0)
    """Seconds of load before each measured part, not counted; the load follows a separate script."""
    measure_s: float = Field(default=10.0, gt=0)
    """Seconds of measured load per block."""
    repeats: int = Field(default=2, ge=0)
    """Spoiled blocks (stalled machine, saturated client or NGINX) that are repeated at once, in all."""
    max_core_wait_ms: float = Field(default=3.0, gt=0)
    """Live: a block is spoiled when the mean scheduling delay of a sleeping thread exceeds this; 0.1 to 0.3 is
    normal."""
    reference: PolicyName = "least_conn"
    """The policy that ratios are to."""


class JudgeOptions(BlockOptions):
    """One evaluation: its blocks, seeds and control interval, and the policy on trial."""

    interval_s: float = Field(default=1.0, gt=0)
    """Control interval in seconds."""
    seed: int = Field(default=1, ge=0)
    """Fixes arrivals, service times, the order of the blocks and the bootstrap."""
    seeds: int = Field(default=1, ge=1)
    """Number of seeds, counted from `seed`. Policies start anew with each; intervals are over seeds and rounds."""
    learned: PolicyName | None = None
    """The policy on trial; the table shows where it does not win. The verb chooses it when not given."""


@dataclass(frozen=True)
class PlannedBlock:
    """A block of the plan of an evaluation: which policy, when, with which seeds.

    Attributes:
        round: rounds have the same arrivals for every policy.
        position: place in the round's order.
        seed, warm_up_seed: script seeds of the measured part and of the warm-up.
        run_seed: the evaluation's seed that it belongs to; policies start anew with each.
    """

    round: int
    position: int
    policy: str
    method: BalancingMethod
    seed: int
    warm_up_seed: int
    run_seed: int = 0


@dataclass(frozen=True)
class Excerpt:
    """The scenario from a random moment that leaves `length_s` of it, so that short blocks meet its late events.

    Equal seeds draw the same moment.
    """

    scenario: Scenario
    length_s: float

    @property
    def name(self) -> str:
        return self.scenario.name

    def script(self, topology: Topology, seed: int) -> Script:
        """The rest of the scenario's script; all of it when it is no longer than `length_s`."""
        script = self.scenario.script(topology, seed)
        latest_s = max(script.duration_s - self.length_s, 0.0)
        return from_moment(script, float(np.random.default_rng([seed, 1]).uniform(0.0, latest_s)))


def plan_blocks(controllers: Sequence[Controller], options: JudgeOptions) -> tuple[PlannedBlock, ...]:
    """All blocks in their order; equal names and options give equal plans.

    Round numbers continue over the seeds.
    """
    plan = []
    for turn in range(options.seeds):
        run_seed = options.seed + turn
        for number, order in enumerate(balanced_orders(len(controllers), options.rounds, run_seed)):
            seed, warm_up_seed = (int(s) for s in np.random.SeedSequence([run_seed, number]).generate_state(2))
            plan += [
                PlannedBlock(turn * options.rounds + number, position, controllers[index].name,
                             controllers[index].method, seed, warm_up_seed, run_seed)
                for position, index in enumerate(order)
            ]  # fmt: skip
    return tuple(plan)


def balanced_orders(count: int, rounds: int, seed: int) -> list[list[int]]:
    """One order per round, as indices of policies; in every `count` rounds each policy has each position once.

    The squares are Williams' (1949, doi 10.1071/CH9490149): over a square and its mirror image each policy
    follows each other one equally often. Names and rows are shuffled by the seed.
    """
    rng = np.random.default_rng([seed, count])
    zigzag = [(-(i // 2) if i % 2 == 0 else (i + 1) // 2) % count for i in range(count)]
    orders: list[list[int]] = []
    while len(orders) < rounds:
        names = rng.permutation(count)
        for first in (zigzag, zigzag[::-1]):
            shifts = rng.permutation(count)
            orders += [[int(names[(step + shift) % count]) for step in first] for shift in shifts]
    return orders[:rounds]


def check_reference(reference: str, names: Sequence[str]) -> None:
    """Raises ConfigError unless the reference is among the policies that a verb is going to judge."""
    if reference not in names:
        raise ConfigError(f"'{reference}' is not judged", where="judge.reference", remedy=closest(reference, names))


def check_names(controllers: Sequence[Controller], options: JudgeOptions) -> None:
    """Raises ConfigError unless names are unique and the reference and the learned policy are among them."""
    names = [controller.name for controller in controllers]
    if len(set(names)) != len(names):
        raise ConfigError(f"policies are {names}", where="evaluation", remedy="name each policy once")
    for field, name in (("reference", options.reference), ("learned", options.learned)):
        if name is not None and name not in names:
            raise ConfigError(f"unknown policy '{name}'", where=f"evaluation.{field}", remedy=closest(name, names))


def from_moment(script: Script, at_s: float) -> Script:
    """The rest of a script from a moment on; load, servers and stages begin in their state of that moment.

    A cache begins with its first share of hits: how full it is then depends on what was balanced before.
    """
    states: dict[int, Behaviour] = {}
    for change in script.behaviours:
        if change.at_s <= at_s:
            states[change.server] = replace(change, at_s=0.0)
    normal = {server: Behaviour(0.0, server) for server in states}
    present = tuple(state for server, state in sorted(states.items()) if state != normal[server])
    later = tuple(replace(c, at_s=c.at_s - at_s) for c in script.behaviours if c.at_s > at_s)
    streams = tuple(_stream_from(stream, at_s) for stream in script.streams)
    return replace(
        script, duration_s=script.duration_s - at_s, behaviours=(*present, *later), streams=streams,
        stage_behaviours=_stages_from(script, at_s),
    )  # fmt: skip


def _stages_from(script: Script, at_s: float) -> tuple[StageBehaviour, ...]:
    """The last speed of every stage as of 0 s, without the flushes of before, and what follows."""
    speeds: dict[int, float] = {}
    for change in script.stage_behaviours:
        if change.at_s <= at_s:
            speeds[change.stage] = change.speed
    present = tuple(StageBehaviour(0.0, stage, speed) for stage, speed in sorted(speeds.items()) if speed != 1.0)
    later = (replace(c, at_s=c.at_s - at_s) for c in script.stage_behaviours if c.at_s > at_s)
    return (*present, *later)


def _stream_from(stream: Stream, at_s: float) -> Stream:
    current = [step for step in stream.steps if step.start_s <= at_s][-1]
    later = (replace(step, start_s=step.start_s - at_s) for step in stream.steps if step.start_s > at_s)
    return replace(stream, steps=(replace(current, start_s=0.0), *later))
