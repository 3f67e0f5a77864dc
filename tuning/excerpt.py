"""A scenario from a moment of its own on: short blocks must also see what happens late in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from actuators.script import Behaviour, Scenario, Script, Stream
from actuators.topology import Topology


@dataclass(frozen=True)
class Excerpt:
    """The scenario from a moment that the seed draws, so that `length_s` of it are left; the same for equal seeds."""

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


def from_moment(script: Script, at_s: float) -> Script:
    """The script as it goes on at a moment: load and servers are in the state that they have then."""
    states: dict[int, Behaviour] = {}
    for change in script.behaviours:
        if change.at_s <= at_s:
            states[change.server] = replace(change, at_s=0.0)
    normal = {server: Behaviour(0.0, server) for server in states}
    present = tuple(state for server, state in sorted(states.items()) if state != normal[server])
    later = tuple(replace(c, at_s=c.at_s - at_s) for c in script.behaviours if c.at_s > at_s)
    streams = tuple(_stream_from(stream, at_s) for stream in script.streams)
    return replace(script, duration_s=script.duration_s - at_s, behaviours=(*present, *later), streams=streams)


def _stream_from(stream: Stream, at_s: float) -> Stream:
    current = [step for step in stream.steps if step.start_s <= at_s][-1]
    later = (replace(step, start_s=step.start_s - at_s) for step in stream.steps if step.start_s > at_s)
    return replace(stream, steps=(replace(current, start_s=0.0), *later))
