"""What weights would give an NGINX without Lua: plans from service times, and their worth, simulated.

Two ways, with `least_conn`: an upstream per request type, or one for all with `max_conns` on very slow servers
(docs/studies.md#nginx-without-lua).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from actuators.contract.arrays import FloatArray
from actuators.contract.control import BY_TIMES, MAX_WEIGHT, CappedWeights, Weights
from actuators.contract.script import Script
from actuators.contract.stock import StockPlan
from actuators.contract.topology import Topology
from actuators.errors import ConfigError, DataError
from envs.environment.study_setup import PLAIN, SHARED_MEMORY
from envs.scenarios.calibrated import CalibratedScenario
from envs.scenarios.catalogue import StudyScenario
from envs.scenarios.timeline import closed_loop_rps
from envs.simulator.batch import SimulatedBatch, SimulationOptions
from envs.simulator.window_batch import WindowBatch
from envs.study.judge import WARM_UP_S, Score, judge_each
from envs.study.rules import RULES, BatchController, Rule, fixed_weights

PER_TYPE, SHARED, CAPPED, LUA = "an upstream per type", "one upstream", "one upstream, max_conns", "expected_delay"
SLOW = 0.5
"""Speed relative to the mean at and below which a server gets `max_conns`."""
WORTH = 0.01
"""A gain in mean or 99th percentile below which a change is not suggested."""


@dataclass(frozen=True)
class Ratio:
    """A ratio to today with its 95 % interval over the seeds."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f}× ({self.low:.3f}–{self.high:.3f})"


@dataclass(frozen=True)
class Way:
    """One way to balance, and what it is worth.

    Attributes:
        plan: None for what needs Lua.
    """

    name: str
    plan: StockPlan | None
    mean: Ratio
    p99: Ratio
    errors: float

    @property
    def gains(self) -> bool:
        """Whether mean and tail are no worse, and one is better than today by more than chance and `WORTH`."""
        better = min(self.mean.high, self.p99.high) < 1 - WORTH
        return better and self.mean.low <= 1 and self.p99.low <= 1


@dataclass(frozen=True)
class Suggestion:
    """Every way, and the one to take without Lua.

    Attributes:
        best: None where none of them gains; today's stays.
        today: what the ratios are to, in words.
    """

    ways: tuple[Way, ...]
    best: Way | None
    today: str


def suggest(
    scenario: StudyScenario,
    topology: Topology,
    today: Rule,
    seeds: Sequence[int],
    report: Callable[[str], None] = lambda name: None,
) -> Suggestion:
    """Plays today's balancing, the plans and `expected_delay` on the same arrivals and draws.

    Args:
        today: what the ratios are to.
        seeds: at least two.
        report: called with the name of what is played next.

    Servers that are out of rotation today stay out: what they could do is no gain of weights.

    Raises DataError when nothing is answered under a rule.
    """
    down = np.zeros(topology.shape, bool)
    if isinstance(scenario, CalibratedScenario):
        down = scenario.today.weights.down
    plans = plans_of(scenario.script(topology, seeds[0]), topology, down)
    options = _sharing(scenario)
    proposed = {name: rule_of(plan, name, options) for name, plan in plans.items()}
    rules = {today.name: today, **proposed, LUA: _with_lua(down, options)}
    scores: dict[str, tuple[Score, ...]] = {}
    for name, rule in rules.items():
        report(name)
        scores[name] = judge_each(rule, scenario, topology, seeds)
        if any(np.isnan(score.mean_ms) for score in scores[name]):
            what = f"{name}: no request was answered after the first {WARM_UP_S:g} s"
            raise DataError(what, where=scenario.name, remedy="simulate longer, or a system under more traffic")
    ways = tuple(_way(name, plans, scores[name], scores[today.name]) for name in (*plans, LUA))
    gaining = [way for way in ways if way.plan is not None and way.gains]
    best = min(gaining, key=lambda way: way.mean.value * way.p99.value, default=None)
    return Suggestion(ways, best, today.name)


def today_rule(scenario: StudyScenario) -> Rule:
    """Method and weights of a recorded system; least_conn with equal weights for any other.

    Raises ConfigError for a system that balances by service times, which has Lua.
    """
    if not isinstance(scenario, CalibratedScenario):
        return replace(RULES["least_conn"], name="least_conn with equal weights")
    today = scenario.today
    if today.method in BY_TIMES:
        what = f"the recorded system balances by {today.method}"
        raise ConfigError(what, where=scenario.name, remedy="it has Lua; deepsched steer learns its service times")
    return Rule(f"today's {scenario.twin_of.balancing}", today.method, lambda: fixed_weights(today.weights), PLAIN)


def plans_of(script: Script, topology: Topology, down: NDArray[np.bool_] | None = None) -> dict[str, StockPlan]:
    """Name → plan, from the service times of a script at its undisturbed speeds; shared ones where groups allow it.

    Args:
        down: ``[groups, servers]`` that no plan uses; none when not given. Every group has another server.
    """
    service_s = np.array(script.mean_service_s)[:, None] / np.array([each.speeds for each in script.servers]).T
    used = topology.mask if down is None else topology.mask & ~down
    plans = {PER_TYPE: StockPlan(shared=False, weights=_rows(np.where(used, 1.0 / service_s, 0.0)))}
    up = used[0]
    if not topology.mask.all() or (used != up).any():
        return plans
    # A server's slowness at the mix of types, each relative to the type's mean.
    slowness = mean_rates_rps(script) @ (service_s / service_s[:, up].mean(axis=1, keepdims=True))
    speed = np.where(up, 1.0 / slowness, 0.0)
    weights = _rows(np.broadcast_to(speed, service_s.shape))
    plans[SHARED] = StockPlan(shared=True, weights=weights)
    relative = speed / speed[up].mean()
    workers = np.array([each.workers for each in script.servers])
    slow = up & (relative <= SLOW)
    if slow.any():
        most = np.where(slow, np.maximum(np.rint(workers * relative), 1), 0)
        plans[CAPPED] = StockPlan(shared=True, weights=weights, max_conns=tuple(map(int, most)))
    return plans


def _sharing(scenario: StudyScenario) -> SimulationOptions | None:
    """A recorded NGINX after the change: its workers share their counts, as they do with `zone` and with Lua."""
    if not isinstance(scenario, CalibratedScenario):
        return None
    return SimulationOptions(retry_post=True, workers_sharing_memory=scenario.twin_of.load_balancers)


def rule_of(plan: StockPlan, name: str, options: SimulationOptions | None = None) -> Rule:
    """The plan as a rule that can be judged.

    Args:
        options: how NGINX is set up; as in the studies when None.
    """

    def start() -> BatchController:
        def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
            if window is None:
                put(batch, plan.control(batch.topology))

        return steer

    studied = SHARED_MEMORY if plan.shared else PLAIN
    return Rule(name, "shared_least_conn" if plan.shared else "least_conn", start, options or studied)


def put(batch: SimulatedBatch, weights: Weights) -> None:
    """The same weights, and `max_conns`, in every environment of a batch."""
    batch.set_weights(np.broadcast_to(weights.values, (batch.size, *batch.topology.shape)), weights.down)
    if isinstance(weights, CappedWeights):
        batch.limit_connections(np.broadcast_to(weights.most, (batch.size, len(weights.most))))


def mean_rates_rps(script: Script) -> FloatArray:
    """``[groups]``: mean rate of each type over the script; streams are in the order of the groups."""
    rates = []
    for stream in script.streams:
        starts = [min(step.start_s, script.duration_s) for step in stream.steps] + [script.duration_s]
        rates.append(sum(s.rate_rps * length for s, length in zip(stream.steps, np.diff(starts), strict=True)))
    mean_rps: FloatArray = np.array(rates) / script.duration_s + closed_loop_rps(script)
    return mean_rps


def ratio_of(own: Sequence[float], base: Sequence[float]) -> Ratio:
    """Geometric mean of the paired ratios, with Student's interval of their logarithms."""
    logs = np.log(np.array(own) / np.array(base))
    centre, error = float(logs.mean()), float(logs.std(ddof=1) / np.sqrt(len(logs)))
    reach = float(stats.t.ppf(0.975, len(logs) - 1)) * error
    return Ratio(float(np.exp(centre)), float(np.exp(centre - reach)), float(np.exp(centre + reach)))


def upstream_lines(plan: StockPlan, topology: Topology) -> str:
    """The upstream blocks for a configuration of NGINX."""
    names = ["all_types"] if plan.shared else [group.name for group in topology.groups]
    members = [topology.servers] if plan.shared else [group.servers for group in topology.groups]
    blocks = []
    for g, (name, servers) in enumerate(zip(names, members, strict=True)):
        lines = "".join(_line(plan, topology, g, server) for server in servers)
        blocks.append(f"upstream {name} {{\n  zone {name} 256k;\n  least_conn;\n{lines}  keepalive 64;\n}}\n")
    return "".join(blocks)


def _with_lua(down: NDArray[np.bool_], options: SimulationOptions | None) -> Rule:
    """`expected_delay` without these servers, ``[groups, servers]``; set up as in the studies when None."""
    rule = replace(RULES[LUA], options=options or RULES[LUA].options)
    if rule.steering is None or not down.any():
        return rule
    begin = rule.steering

    def start() -> BatchController:
        learn = begin()

        def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
            if window is None:
                put(batch, replace(Weights.equal(batch.topology), down=down))
            learn(batch, scripts, window)

        return steer

    return replace(rule, steering=start)


def _line(plan: StockPlan, topology: Topology, g: int, server: str) -> str:
    s = topology.server_index(server)
    if not plan.weights[g][s]:
        return f"  server {server} down;\n"
    most = plan.max_conns[s] if plan.max_conns else 0
    return f"  server {server} weight={plan.weights[g][s]}{f' max_conns={most}' if most else ''};\n"


def _way(name: str, plans: Mapping[str, StockPlan], own: Sequence[Score], base: Sequence[Score]) -> Way:
    mean = ratio_of([score.mean_ms for score in own], [score.mean_ms for score in base])
    p99 = ratio_of([score.p99_ms for score in own], [score.p99_ms for score in base])
    return Way(name, plans.get(name), mean, p99, float(np.mean([score.error_ratio for score in own])))


def _rows(speeds: FloatArray) -> tuple[tuple[int, ...], ...]:
    """Weights in proportion, the largest of a row 100, 0 where the speed is 0."""
    scaled = np.rint(speeds / speeds.max(axis=1, keepdims=True) * MAX_WEIGHT)
    return tuple(tuple(int(w) for w in row) for row in np.where(speeds > 0, np.maximum(scaled, 1), 0))
