"""Changes of load and servers over time: seeded generators that scenarios are composed of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from actuators.contract.on_off import draw_on_off
from actuators.contract.script import Behaviour

Generator = np.random.Generator
Behaviours = tuple[Behaviour, ...]
LoadSteps = tuple[tuple[float, float], ...]
"""(start in s, factor on the steady rate), ascending from 0."""


@dataclass(frozen=True)
class Span:
    """A uniform range."""

    low: float
    high: float

    def draw(self, generator: Generator) -> float:
        return float(generator.uniform(self.low, self.high))


@dataclass(frozen=True)
class ScriptExtent:
    """Input of a generator: number of servers, duration, and a factor on every period."""

    servers: int
    duration_s: float
    stretch: float = 1.0


Disturbance = Callable[[ScriptExtent, Generator], Behaviours]
LoadShape = Callable[[ScriptExtent, Generator], LoadSteps]


def none(extent: ScriptExtent, generator: Generator) -> Behaviours:
    """Nothing happens to the servers."""
    return ()


def steady(extent: ScriptExtent, generator: Generator) -> LoadSteps:
    """Constant load."""
    return ((0.0, 1.0),)


def antagonist(speed: Span, length_s: Span = Span(20, 60), pause_s: Span = Span(5, 20)) -> Disturbance:
    """A noisy neighbour slows one random server at a time, with pauses between."""

    def generate(extent: ScriptExtent, generator: Generator) -> Behaviours:
        changes: list[Behaviour] = []
        at_s = pause_s.draw(generator) * extent.stretch
        while at_s < extent.duration_s:
            server = int(generator.integers(extent.servers))
            changes.append(Behaviour(at_s, server, speed.draw(generator)))
            at_s += length_s.draw(generator) * extent.stretch
            changes.append(Behaviour(at_s, server))
            at_s += pause_s.draw(generator) * extent.stretch
        return tuple(changes)

    return generate


def telegraph(speed: float = 0.5, good_s: float = 10.0, bad_s: float = 5.0) -> Disturbance:
    """Each server alternates independently between fast and slow periods of exponential length."""

    def generate(extent: ScriptExtent, generator: Generator) -> Behaviours:
        changes: list[Behaviour] = []
        for server in range(extent.servers):
            at_s, bad = 0.0, False
            while True:
                at_s += generator.exponential(bad_s if bad else good_s) * extent.stretch
                if at_s >= extent.duration_s:
                    break
                bad = not bad
                changes.append(Behaviour(at_s, server, speed if bad else 1.0))
        return in_order(changes)

    return generate


def periodic(speed: float = 0.5, period_s: float = 20.0) -> Disturbance:
    """Servers are slowed in turn, each for an equal part of every period."""

    def generate(extent: ScriptExtent, generator: Generator) -> Behaviours:
        turn_s = period_s * extent.stretch / extent.servers
        changes: list[Behaviour] = []
        for turn in range(int(np.ceil(extent.duration_s / turn_s))):
            server = turn % extent.servers
            changes += [Behaviour(turn * turn_s, server, speed), Behaviour((turn + 1) * turn_s, server)]
        return in_order(changes)

    return generate


def degraded(pause_s: Span = Span(20, 50), crash_ratio: float = 0.6) -> Disturbance:
    """After each pause a random server either crashes and warms up again, or fails fast for a while."""

    def generate(extent: ScriptExtent, generator: Generator) -> Behaviours:
        changes: list[Behaviour] = []
        at_s = pause_s.draw(generator) * extent.stretch
        while at_s < extent.duration_s:
            server = int(generator.integers(extent.servers))
            crash = generator.random() < crash_ratio
            changes += _crash(at_s, server, generator) if crash else _fast_failing(at_s, server, generator)
            at_s = changes[-1].at_s + pause_s.draw(generator) * extent.stretch
        return tuple(changes)

    return generate


def surges(peak: float, low: float, on_s: Span = Span(30, 600), idle_s: Span = Span(10, 100)) -> LoadShape:
    """Alternates between load at a random level between `low` and `peak`, and silence."""

    def generate(extent: ScriptExtent, generator: Generator) -> LoadSteps:
        steps: list[tuple[float, float]] = []
        at_s = 0.0
        while at_s < extent.duration_s:
            steps.append((at_s, float(generator.uniform(low, peak))))
            at_s += on_s.draw(generator) * extent.stretch
            steps.append((at_s, 0.0))
            at_s += idle_s.draw(generator) * extent.stretch
        return tuple(steps)

    return generate


def overloads(factor: float = 2.6, length_s: Span = Span(20, 40), every_s: Span = Span(40, 90)) -> LoadShape:
    """Repeated periods with a multiplied rate; `every_s` is the pause between them."""

    def generate(extent: ScriptExtent, generator: Generator) -> LoadSteps:
        steps: list[tuple[float, float]] = [(0.0, 1.0)]
        at_s = every_s.draw(generator) * extent.stretch
        while at_s < extent.duration_s:
            steps.append((at_s, factor))
            at_s += length_s.draw(generator) * extent.stretch
            steps.append((at_s, 1.0))
            at_s += every_s.draw(generator) * extent.stretch
        return tuple(steps)

    return generate


def on_off(on_s: float, off_s: float, off_factor: float) -> LoadShape:
    """A rate that jumps between two values after exponential times, with mean 1."""

    def generate(extent: ScriptExtent, generator: Generator) -> LoadSteps:
        lengths_s = on_s * extent.stretch, off_s * extent.stretch
        return draw_on_off(*lengths_s, off_factor, extent.duration_s, generator)

    return generate


def wave(peak: float, period_s: float) -> LoadShape:
    """A raised cosine with mean 1 from its trough to `peak` and back, in 60 steps; starts at a random phase."""

    def generate(extent: ScriptExtent, generator: Generator) -> LoadSteps:
        step_s = period_s * extent.stretch / 60
        phase = generator.uniform(0, 2 * np.pi)
        count = int(np.ceil(extent.duration_s / step_s))
        factors = 1.0 + (peak - 1.0) * np.cos(phase + 2 * np.pi * (np.arange(count) + 0.5) / 60)
        return tuple((index * step_s, float(factor)) for index, factor in enumerate(factors))

    return generate


def flashes(peak: float, rise_s: float, hold_s: Span, fall_s: float, every_s: Span) -> LoadShape:
    """Flash crowds: the rate rises within seconds to `peak` times, stays, and falls slowly; steps of a second."""

    def generate(extent: ScriptExtent, generator: Generator) -> LoadSteps:
        steps: list[tuple[float, float]] = [(0.0, 1.0)]
        at_s = every_s.draw(generator) * extent.stretch
        while at_s < extent.duration_s:
            top_s = at_s + rise_s
            end_s = top_s + hold_s.draw(generator) * extent.stretch
            rise = [(second + 0.5) / rise_s for second in range(int(rise_s))]
            fall = [1.0 - (second + 0.5) / fall_s for second in range(int(fall_s))]
            steps += [(at_s + second, 1.0 + (peak - 1.0) * share) for second, share in enumerate(rise)]
            steps.append((top_s, peak))
            steps += [(end_s + second, 1.0 + (peak - 1.0) * share) for second, share in enumerate(fall)]
            steps.append((end_s + fall_s, 1.0))
            at_s = end_s + fall_s + every_s.draw(generator) * extent.stretch
        return tuple(steps)

    return generate


def in_order(changes: list[Behaviour]) -> Behaviours:
    """Sorted by time; simultaneous changes keep their order, so that the last one takes effect."""
    return tuple(sorted(changes, key=lambda change: change.at_s))


def _crash(at_s: float, server: int, generator: Generator) -> list[Behaviour]:
    """Refuses for 10-25 s; comes back with 20 % errors for 8 s and warms up from 0.2 in nine steps of 5 s."""
    back_s = at_s + generator.uniform(10, 25)
    changes = [Behaviour(at_s, server, refused=True)]
    errors_end_s = back_s + 8.0
    for step in range(9):
        start_s, speed = back_s + 5.0 * step, 0.2 + 0.1 * step
        changes.append(Behaviour(start_s, server, speed, error_ratio=0.2 if start_s < errors_end_s else 0.0))
        if start_s < errors_end_s < start_s + 5.0:
            changes.append(Behaviour(errors_end_s, server, speed))
    return changes


def _fast_failing(at_s: float, server: int, generator: Generator) -> list[Behaviour]:
    """Answers half of the requests with a fast 500 for 15-30 s."""
    return [Behaviour(at_s, server, error_ratio=0.5), Behaviour(at_s + generator.uniform(15, 30), server)]
