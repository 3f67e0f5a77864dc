"""Judges a proposal against what balances today, equal least_conn and the heuristic, on the calibrated simulator."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import ServiceTimes, Weights
from actuators.options import Options
from envs.calibration.result import Calibration
from envs.calibration.verdict import GroupVerdict
from envs.study.judge import Totals
from envs.study.promise import Conclusion, Interval, Plan, Promise, compare, figures, measure, promise
from envs.study.promise_options import PromiseOptions
from envs.study.rules import BaselinePolicy, Rule, SteeringPolicy, fixed_weights, policy_steering
from rayjobs.onboard.fit import Fit
from rayjobs.onboard.learn import resting_net
from rayjobs.onboard.protect import Protection, protect
from rayjobs.onboard.system import Way
from rayjobs.onboard.twin import BETWEEN_RELOADS_S, play_policy, play_weights, simulation_of
from tuning.policy.bundle import Bundle

TODAY, LEAST_CONN, PROPOSAL = "today", "least_conn, equal weights", "proposal"
MOST_REQUESTS = 3e7
"""Simulated requests of one side; with more traffic there are fewer pairs, but never fewer than LEAST_PAIRS."""
LEAST_PAIRS = 10
SETTLED_S = 180
MOST_IMPRECISE = 0.25
"""Relative half-width of a mean response time beyond which no interval that is widened by it is to be trusted."""
MUCH = 0.2
"""Share of the requests above which groups that cannot be judged forbid a promise, all together."""
_ONE_SIDED = 1.645


class Alternative(Options):
    """What another way to balance would do to the mean response time, over all pairs at today's traffic."""

    name: str
    ratio: Interval
    """Mean response time divided by today's."""


class ServerChange(Options):
    """What would change for one server of one group."""

    group: str
    server: str
    weight: int
    """Weight in force today."""
    value: float
    """Weight that the proposal settles on, or service time in milliseconds."""
    share: float
    """Share of the group's requests today, simulated."""
    new_share: float
    """The same with the proposal."""


class Judged(Options):
    """What the simulator says of a proposal."""

    promise: Promise
    alternatives: tuple[Alternative, ...]
    changes: tuple[ServerChange, ...]
    learned: bool
    """Whether the proposal is a learned residual on the heuristic; else it is the heuristic itself."""
    heuristic: str
    """Name of the heuristic."""
    busiest: tuple[float, float]
    """Work of the busiest server as a share of what it can do, today and with the proposal, at today's traffic."""
    protection: Protection | None = None
    """What admission would do, as the servers are balanced today; None in what earlier versions kept."""


@dataclass(frozen=True)
class _Arms:
    """The ways to balance that are compared."""

    fitted: Fit
    way: Way

    @property
    def today(self) -> Rule:
        return Rule(TODAY, self.way.method, lambda: fixed_weights(self.fitted.calibration.today))

    @property
    def least_conn(self) -> Rule:
        return Rule(LEAST_CONN, "least_conn")

    def steered(self, policy: SteeringPolicy) -> Rule:
        problem = self.fitted.problem
        return Rule(
            PROPOSAL, self.way.steered,
            lambda: policy_steering(policy, problem, problem.believed_workers, BETWEEN_RELOADS_S),
            simulation_of(self.fitted.calibration.load_balancers, self.way),
        )  # fmt: skip


def judge(
    fitted: Fit, way: Way, bundle: Bundle, options: PromiseOptions, seed: int, report: Callable[[str, float], None]
) -> tuple[Judged, Bundle]:
    """What a bundle would do, and the bundle that may be recommended: without its residual where that is not better.

    Args:
        report: called with what is simulated and the share of the work that is done.
    """
    topology, deadlines_s = fitted.problem.topology, fitted.problem.deadlines_s
    plan = Plan(fitted.calibration, topology, options.changed({"pairs": _pairs(fitted, options)}), seed)
    arms, trained = _Arms(fitted, way), _acts(bundle)
    threads, done, total = os.cpu_count() or 1, 0, 5 + trained

    def played(rule: Rule, load: float) -> Totals:
        nonlocal done
        text, side = f"{rule.name}, {load:g} × today's traffic", 0 if rule.name == TODAY else 1
        totals = measure(
            rule, plan, load, 0 if side == 0 else 1, threads, lambda part: report(text, (done + part) / total)
        )
        done += 1
        return totals

    def mean_ms(totals: Totals) -> FloatArray:
        return figures(totals, deadlines_s, options.measure_s)["mean_ms"][:, 0]

    today, equal = played(arms.today, 1.0), played(arms.least_conn, 1.0)
    plain = played(arms.steered(BaselinePolicy(fitted.problem)), 1.0)
    new = plain
    policy: SteeringPolicy = BaselinePolicy(fitted.problem)
    learned = False
    if trained:
        with_residual = played(arms.steered(bundle.policy()), 1.0)
        learned = _is_better(mean_ms(with_residual), mean_ms(plain))
        if learned:
            new, policy = with_residual, bundle.policy()
        else:
            bundle = replace(bundle, net=resting_net(bundle.problem, bundle.model))
    more, unknown = options.growth, imprecision(fitted)
    loads = [
        compare(today, new, plan, 1.0, deadlines_s, unknown),
        compare(played(arms.today, more), played(arms.steered(policy), more), plan, more, deadlines_s, unknown),
    ]
    heuristic = "expected_delay with learned service times" if way.in_memory else "weights by inverse response time"
    name = f"{heuristic}, with a learned residual" if learned else heuristic
    others = {LEAST_CONN: equal, **({heuristic: plain} if learned else {})}
    alternatives = tuple(
        Alternative(name=other, ratio=_ratio(mean_ms(totals), mean_ms(today))) for other, totals in others.items()
    )
    changes = _changes(fitted, way, policy, seed)
    judged = Judged(
        promise=limited(promise(name, loads, plan), fitted), alternatives=alternatives, changes=changes,
        learned=learned, heuristic=heuristic, busiest=_busiest(fitted.calibration, changes),
        protection=protect(arms.today, plan, more),
    )  # fmt: skip
    return judged, bundle


def imprecision(fitted: Fit) -> float:
    """Relative error of the recorded response times, where that is all that stands against a promise.

    The largest one such that groups that are known no better have MUCH of the requests together.
    """
    rates = _rates_rps(fitted.calibration)
    worst_first = sorted(_doubtful(fitted, rates), key=_half_width, reverse=True)
    together = accumulate(rates[verdict.group] for verdict in worst_first)
    much = MUCH * sum(rates.values())
    decisive = next((each for each, rate in zip(worst_first, together, strict=True) if rate >= much), None)
    return _half_width(decisive) if decisive is not None and _bearable(decisive) else 0.0


def limited(found: Promise, fitted: Fit) -> Promise:
    """The promise, unless groups that cannot be judged have much of the requests together: then there is none.

    A group whose response times are known badly makes the intervals wider, and that decides.
    """
    rates = _rates_rps(fitted.calibration)
    whole = sum(rates.values())

    def share(verdicts: Sequence[GroupVerdict]) -> float:
        return sum(rates[verdict.group] for verdict in verdicts) / whole

    against = [verdict for verdict in _doubtful(fitted, rates) if not _bearable(verdict)]
    if share(against) < MUCH:
        return found
    # A longer watch helps groups with too little traffic, and no others.
    lasting = [verdict for verdict in against if verdict.judgement != "little_traffic"]
    conclusion: Conclusion = "no_promise" if share(lasting) >= MUCH else "watch_longer"
    deciding = lasting if conclusion == "no_promise" else [each for each in against if each not in lasting]
    largest = max(deciding, key=lambda verdict: rates[verdict.group])
    reason = f"{largest.group}: {largest.sentence} ({largest.detail}), so nothing is promised."
    if len(against) > 1:
        reason = f"{len(against)} groups with {share(against):.0%} of the requests cannot be judged, as {reason}"
    return found.model_copy(update={"conclusion": conclusion, "reasons": (reason,)})


def _doubtful(fitted: Fit, rates_rps: Mapping[str, float]) -> list[GroupVerdict]:
    """The verdicts that are not good, on groups that are simulated: nothing is said of the others."""
    return [verdict for verdict in fitted.verdicts if verdict.judgement != "good" and verdict.group in rates_rps]


def _half_width(verdict: GroupVerdict) -> float:
    """How badly response times are known, relative; inf where that is not why the group cannot be judged."""
    return float("inf") if verdict.imprecision is None else verdict.imprecision


def _bearable(verdict: GroupVerdict) -> bool:
    return _half_width(verdict) <= MOST_IMPRECISE


def _rates_rps(calibration: Calibration) -> dict[str, float]:
    """Group → requests per second, the mean over its steps."""
    return dict(zip(calibration.groups, calibration.rates_rps.tolist(), strict=True))


def _busiest(calibration: Calibration, changes: Sequence[ServerChange]) -> tuple[float, float]:
    topology, best = calibration.topology, calibration.parameters
    work = np.zeros((2, topology.shape[1]))
    rates = _rates_rps(calibration)
    for row in changes:
        g, s = topology.group_index(row.group), topology.server_index(row.server)
        seconds = rates[row.group] * best.service_ms[g][s] / 1e3 / best.workers
        work[:, s] += seconds * np.array([row.share, row.new_share])
    return float(work[0].max()), float(work[1].max())


def _pairs(fitted: Fit, options: PromiseOptions) -> int:
    rate_rps = fitted.calibration.observed.requests / max(fitted.calibration.observed.seconds, 1e-3)
    most = MOST_REQUESTS / max(rate_rps * (options.measure_s + options.warm_up_s), 1.0)
    return int(min(options.pairs, max(most, LEAST_PAIRS)))


def _acts(bundle: Bundle) -> bool:
    """Whether its residual is anything but 0."""
    arrays = bundle.net.arrays()
    return bool(arrays["action.2.weight"].any() or arrays["action.2.bias"].any())


def _is_better(ms: FloatArray, other_ms: FloatArray) -> bool:
    """Whether the first is smaller, over pairs with equal random draws, with 95 % confidence (one-sided)."""
    gain = np.log(other_ms / ms)
    gain = gain[np.isfinite(gain)]
    return len(gain) > 1 and float(gain.mean() - _ONE_SIDED * gain.std(ddof=1) / np.sqrt(len(gain))) > 0


def _ratio(ms: FloatArray, today_ms: FloatArray) -> Interval:
    ratios = (ms / today_ms)[np.isfinite(ms / today_ms)]
    low, middle, high = np.quantile(ratios, (0.025, 0.5, 0.975)) if len(ratios) else (1.0, 1.0, 1.0)
    return Interval(value=float(middle), low=float(low), high=float(high))


def _changes(fitted: Fit, way: Way, policy: SteeringPolicy, seed: int) -> tuple[ServerChange, ...]:
    calibration, topology = fitted.calibration, fitted.problem.topology
    before = play_weights(calibration.today, calibration, way.method, seconds=SETTLED_S, seed=seed)
    after = play_policy(fitted.problem, policy, calibration, way, seconds=SETTLED_S, seed=seed)
    control = after.control
    if isinstance(control, ServiceTimes):
        values = 1e3 * control.tau_s
    else:
        assert isinstance(control, Weights)
        values = control.values.astype(float)
    return tuple(
        ServerChange(
            group=group.name, server=server, weight=int(calibration.today.values[g, s]), value=float(values[g, s]),
            share=float(before.shares()[g, s]), new_share=float(after.shares()[g, s]),
        )
        for g, group in enumerate(topology.groups)
        for s, server in enumerate(topology.servers)
        if topology.mask[g, s]
    )  # fmt: skip
