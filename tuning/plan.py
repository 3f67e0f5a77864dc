"""In which order an evaluation runs its blocks, with which seeds: balanced, paired, the same for equal options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from pydantic import Field

from actuators.control import BalancingMethod, Control
from actuators.errors import ConfigError, closest
from actuators.options import Options
from actuators.topology import Topology
from actuators.window import Window
from tuning.blocks import Place


class Controller(Protocol):
    """A policy as the judge sees it: an observer of windows that decides on controls."""

    name: str
    method: BalancingMethod

    def begin(self, topology: Topology) -> Control:
        """The control to start a block with; adaptive ones may return what they last had."""
        ...

    def decide(self, window: Window) -> Control | None:
        """The next control, or None to leave it as it is."""
        ...


class JudgeOptions(Options):
    """How long, how often and in what order policies are judged."""

    rounds: int = Field(default=8, ge=1)
    """How often every policy has its turn, per seed; intervals need at least 2."""
    warm_up_s: float = Field(default=3.0, ge=0)
    """Seconds of load before each measured part, with a script of its own; not counted."""
    measure_s: float = Field(default=10.0, gt=0)
    """Seconds of measured load per block."""
    interval_s: float = Field(default=1.0, gt=0)
    """Control interval in seconds."""
    seed: int = Field(default=1, ge=0)
    """Fixes arrivals, service times, the order of the blocks and the bootstrap."""
    seeds: int = Field(default=1, ge=1)
    """How many seeds: `seed` and those after it. Policies start anew with each; intervals are over both."""
    repeats: int = Field(default=2, ge=0)
    """How many spoiled blocks (stalled machine, saturated client or NGINX), in all, are run again at once."""
    max_core_wait_ms: float = Field(default=3.0, gt=0)
    """Live: a block is spoiled when the machine let a thread that only sleeps wait longer than this for a core,
    on average; 0.1 to 0.3 is normal."""
    reference: str = "least_conn"
    """The policy that ratios are to."""
    learned: str | None = None
    """The policy that is on trial; the table says where it does not win."""


def plan_blocks(controllers: Sequence[Controller], options: JudgeOptions) -> tuple[Place, ...]:
    """All blocks in the order they are run: the same for equal names and options.

    Rounds are numbered through: round 0 of the second seed comes after the last round of the first.
    """
    plan = []
    for turn in range(options.seeds):
        run_seed = options.seed + turn
        for number, order in enumerate(balanced_orders(len(controllers), options.rounds, run_seed)):
            seed, warm_up_seed = (int(s) for s in np.random.SeedSequence([run_seed, number]).generate_state(2))
            plan += [
                Place(
                    turn * options.rounds + number,
                    position,
                    controllers[index].name,
                    controllers[index].method,
                    seed,
                    warm_up_seed,
                    run_seed,
                )
                for position, index in enumerate(order)
            ]
    return tuple(plan)


def balanced_orders(count: int, rounds: int, seed: int) -> list[list[int]]:
    """One order per round: in every `count` rounds each policy has each position once.

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


def check_names(controllers: Sequence[Controller], options: JudgeOptions) -> None:
    """Raises ConfigError unless names are unique and the reference and the learned policy are among them."""
    names = [controller.name for controller in controllers]
    if len(set(names)) != len(names):
        raise ConfigError(f"policies are {names}", where="evaluation", remedy="name each policy once")
    for field, name in (("reference", options.reference), ("learned", options.learned)):
        if name is not None and name not in names:
            raise ConfigError(f"unknown policy '{name}'", where=f"evaluation.{field}", remedy=closest(name, names))
