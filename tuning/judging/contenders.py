"""The policies that are judged side by side, by name: NGINX's methods, heuristics, bundles, oracles, other balancers.

Oracles receive the script and run on simulated testbeds only; they show what perfect knowledge would give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.control import BalancingMethod, Control, DirectMethod, ServiceTimes, Weights
from actuators.contract.late_binding import LateBinding, LateBindingNumbers, slots_for
from actuators.contract.script import Script
from actuators.contract.stock import STOCK, StockPlan
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import ConfigError, closest
from actuators.testbed.peers import ENVOY_STEERED, EXTERNAL, HAPROXY_STEERED, PEERS
from envs.environment.problem import DecisionProblem
from envs.estimators.registry import DEFAULT_ESTIMATOR, ESTIMATORS
from envs.heuristics.controllers import Controller, EstimatorController, FixedController, PolicyController
from envs.heuristics.knapsack import Knapsack
from envs.heuristics.names import ESTIMATED, FORMER_NAMES, HELD, LEARNED_SLOTS, TODAY, estimator_policy, policy_name
from envs.heuristics.queueing_model import ModelBased, UtilisationPid
from envs.heuristics.weights import Aimd, Equal, Equaliser, InverseLatency, Little, Policy
from envs.scenarios.calibrated import Today
from envs.scenarios.timeline import true_tau_s
from envs.simulator.rivals import RIVAL_CODES
from envs.study.split import optimal_shares

REFERENCE = "least_conn"
LEARNED = "learned"

NATIVE = ("round_robin", "least_conn", "random_two")
"""NGINX as shipped, equal weights."""
_OTHERS = (*PEERS, HAPROXY_STEERED, ENVOY_STEERED)
"""Other programs; the last two with weights that we set."""
Knowledge = Callable[[Topology, Script, float], Control]
"""The best control at a moment of a script, seconds since reset."""


@dataclass(frozen=True, eq=False)
class Arena:
    """What contenders are made for.

    Attributes:
        problem: topology, deadlines and encoder that heuristics observe with.
        method: balancing method under heuristics and bundles that name none.
        workers: ``[servers]``, requests that each server serves at once, from its configuration.
        today: method and weights of the recording of a calibrated system; None for any other.
        balancers: load balancers before the servers that share no counts.
    """

    problem: DecisionProblem
    method: BalancingMethod
    workers: FloatArray
    today: Today | None = None
    balancers: int = 1


@dataclass(frozen=True)
class Spec:
    """One entry of a policy list: ``NAME``, ``NAME@METHOD`` or the folder of a bundle; ``OTHER=…`` renames it.

    Attributes:
        name: as it is shown in tables.
        base: the policy's name, path included where there is one.
        method: balancing method that was asked for.
    """

    name: str
    base: str
    method: BalancingMethod | None = None

    @property
    def kind(self) -> str:
        """``simulated`` for oracles and the simulator's rules, ``live`` for peers, ``any`` for the rest."""
        if self.base in RIVAL_CODES and self.base in PEERS:
            return "any"
        if self.base in ORACLES or self.base in RIVAL_CODES:
            return "simulated"
        return "live" if self.base in _OTHERS or self.base.startswith(EXTERNAL) else "any"

    @property
    def is_peer(self) -> bool:
        """Whether another program balances on a live testbed."""
        return self.base in _OTHERS or self.base.startswith((EXTERNAL, STOCK))

    @property
    def takes_method(self) -> bool:
        """Whether it sets weights under the method of the arena, as far as its name tells."""
        return self.method is None and (self.is_bundle or self.base in (*BASELINES, *STEERED))

    @property
    def takes_workers(self) -> bool:
        """Whether the workers of the arena matter to it, as far as its name tells."""
        learns = self.method == "expected_delay" or self.base in (*ESTIMATED, *_HOLDING)
        return learns or self.is_bundle or self.base in ("model_based", "utilisation_pid")

    @property
    def is_bundle(self) -> bool:
        return _is_folder(self.base)


class Oracle:
    """Sets the best control for the script's true state before every interval; `tuning.judging.judge.Informed`."""

    stateless = True

    def __init__(self, name: str, method: BalancingMethod, knowledge: Knowledge) -> None:
        self.name, self.method, self._knowledge = name, method, knowledge
        self._script: Script | None = None

    def inform(self, script: Script) -> None:
        """Receives the script of the next phase."""
        self._script = script

    def begin(self, topology: Topology) -> Control:
        if self._script is None:
            return Weights.equal(topology)
        return self._knowledge(topology, self._script, 0.0)

    def decide(self, window: Window) -> Control | None:
        if self._script is None:
            raise ConfigError("the oracle has no script", where=self.name)
        return self._knowledge(window.topology, self._script, window.end_s)


def _true_times(topology: Topology, script: Script, at_s: float) -> Control:
    workers = np.array([float(profile.workers) for profile in script.servers])
    return ServiceTimes(topology, true_tau_s(script, at_s), workers)


def _optimal_split(topology: Topology, script: Script, at_s: float) -> Control:
    return Weights.from_shares(topology, optimal_shares(script, topology, at_s))


ORACLES: dict[str, str | tuple[BalancingMethod, Knowledge]] = {
    "shortest_delay": "shortest_delay",
    "join_shortest": "join_shortest",
    "central_queue": "central_queue",
    "true_times": ("expected_delay", _true_times),
    "optimal_round_robin": ("round_robin", _optimal_split),
    "optimal_least_conn": ("least_conn", _optimal_split),
}
"""Oracles by name: a method of the simulator, or a method and what is known."""

Make = Callable[[Arena], Controller]

BASELINES: dict[str, Callable[[Arena], Policy]] = {
    "equal": lambda arena: Equal(),
    "inverse_latency": lambda arena: InverseLatency(arena.problem.codec),
    "little": lambda arena: Little(arena.problem.codec),
    "equaliser": lambda arena: Equaliser(arena.problem.codec),
    "aimd": lambda arena: Aimd(arena.problem.codec),
    "model_based": lambda arena: ModelBased(arena.problem.codec, arena.workers),
}
"""Heuristics that observe and set weights."""

STEERED: dict[str, Make] = {
    "utilisation_pid": lambda a: UtilisationPid(a.method, a.problem.codec, a.problem.observer(), a.workers),
    "knapsack": lambda a: Knapsack(a.method, a.problem.codec),
}
"""Heuristics that keep state between windows."""


def parse_policies(texts: Sequence[str]) -> tuple[Spec, ...]:
    """The entries of a policy list. Raises ConfigError with the closest match, or for a name given twice."""
    specs: list[Spec] = []
    for text in texts:
        other, equals, rest = text.partition("=")
        renamed = equals and other.isidentifier()
        spec = _parse(policy_name(rest if renamed else text))
        if renamed and other in FORMER_NAMES:
            raise ConfigError(f"'{other}' is the former name of '{FORMER_NAMES[other]}'", where="policies",
                              remedy="choose another name")  # fmt: skip
        spec = replace(spec, name=other) if renamed else spec
        if any(other.name == spec.name for other in specs):
            raise ConfigError(f"policy '{spec.name}' is given twice", where="policies", remedy="name each policy once")
        specs.append(spec)
    return tuple(specs)


def contender(spec: Spec, arena: Arena) -> Controller:
    """A fresh controller. Raises BundleError for a folder that is not a bundle of this topology."""
    method = spec.method or arena.method
    if spec.method == "expected_delay" or spec.base in ESTIMATED:
        estimator = ESTIMATED.get(spec.base, spec.base)
        return EstimatorController(arena.problem.topology, estimator, arena.workers, spec.name)
    if spec.base in _HOLDING:
        return _holding(spec, arena)
    if spec.base in ORACLES:
        return oracle(spec.base, spec.name)
    if spec.base == TODAY:
        return _today(spec.name, arena.today)
    if spec.base.startswith(STOCK):
        return _stock(spec, arena.problem.topology)
    if spec.kind == "live":
        # The other balancer does as it likes; what we set is a formality. A pool that we steer learns all the same.
        is_steered = spec.base in (HAPROXY_STEERED, ENVOY_STEERED)
        return FixedController(spec.name, cast(BalancingMethod, spec.base), stateless=not is_steered)
    if spec.base in NATIVE or spec.base in RIVAL_CODES:
        return FixedController(spec.name, cast(BalancingMethod, spec.base))
    if spec.is_bundle:
        return _bundle(spec, arena, method)
    arena = replace(arena, method=method, problem=_of_weights(arena.problem))
    if spec.base in STEERED:
        made = STEERED[spec.base](arena)
        made.name = spec.name
        return made
    return PolicyController(spec.name, method, BASELINES[spec.base](arena), arena.problem.observer())


def contenders(
    problem: DecisionProblem, method: BalancingMethod, learned: Policy, today: Today | None = None
) -> list[Controller]:
    """Equal round robin, equal least_conn, the policy's baseline and the learned policy, the last two on `method`.

    First what balances a calibrated system today.
    """
    native = [FixedController("round_robin", "round_robin"), FixedController(REFERENCE, "least_conn")]
    if today is not None:
        native = [_today(TODAY, today), *native]
    return [*native, baseline_of(problem, method), learned_controller(LEARNED, method, learned, problem)]


def contender_names(estimator: str | None, *, today: bool) -> list[str]:
    """The names of `contenders`, before there is a policy.

    Args:
        estimator: that of the decision problem's actions; None where they set weights.
        today: whether something balances the system today.
    """
    baseline = "inverse_latency" if estimator is None else estimator_policy(estimator)
    return [*([TODAY] if today else []), "round_robin", REFERENCE, baseline, LEARNED]


def baseline_of(problem: DecisionProblem, method: BalancingMethod) -> Controller:
    """What a residual of 0 does: inverse latency's weights, or an estimator's service times."""
    estimator = problem.options.action.estimator
    if estimator is None:
        return PolicyController("inverse_latency", method, InverseLatency(problem.codec), problem.observer())
    return EstimatorController(problem.topology, estimator, problem.believed_workers)


def learned_controller(
    name: str, method: BalancingMethod, policy: Policy, problem: DecisionProblem
) -> PolicyController:
    """A learned policy on the method that its control is of; `method` is for weights."""
    in_memory = problem.options.action.estimator is not None
    chosen: BalancingMethod = "expected_delay" if in_memory else method
    return PolicyController(name, chosen, policy, problem.observer(), problem.first_control())


def is_heuristic(name: str, method: str) -> bool:
    """Whether a judged policy can stand in for the one on trial: no oracle, and no rule or program of another balancer.

    One that was renamed (`best=true_times`) is known by its method, where that is its own.
    """
    foreign = {*ORACLES, *RIVAL_CODES, *_OTHERS}
    return not ({name, method} & foreign) and not any(each.startswith((EXTERNAL, STOCK)) for each in (name, method))


def oracle(name: str, shown: str | None = None) -> Controller:
    """An oracle of `ORACLES` by name, `shown` under another one."""
    found = ORACLES[name]
    if isinstance(found, str):
        return FixedController(shown or name, cast(BalancingMethod, found))
    method, knowledge = found
    return Oracle(shown or name, method, knowledge)


_HOLDING = (*HELD, *(name + LEARNED_SLOTS for name in HELD))


def _holding(spec: Spec, arena: Arena) -> EstimatorController:
    """`late_binding` with learned service times, and slots for the workers that are believed, or learned."""
    order = HELD[spec.base.removesuffix(LEARNED_SLOTS)]
    problem, numbers = arena.problem, LateBindingNumbers(order=order)
    slots = slots_for(arena.workers, numbers.slots_per_worker, arena.balancers)
    holding = LateBinding(problem.topology, problem.deadlines_s, slots, numbers)
    learned = arena.balancers if spec.base.endswith(LEARNED_SLOTS) else None
    return EstimatorController(
        problem.topology, DEFAULT_ESTIMATOR, arena.workers, spec.name, holding, learned_slots=learned
    )


def _today(name: str, today: Today | None) -> FixedController:
    if today is None:
        what, remedy = "the scenario is not that of a recorded system", "judge on a calibration.json"
        raise ConfigError(what, where=f"policy '{name}'", remedy=remedy)
    return FixedController(name, today.method, today.weights)


def _stock(spec: Spec, topology: Topology) -> FixedController:
    plan = StockPlan.load(Path(spec.base.removeprefix(STOCK)))
    method = "shared_least_conn" if plan.shared else "least_conn"
    return FixedController(spec.name, cast(BalancingMethod, method), plan.control(topology))


def _of_weights(problem: DecisionProblem) -> DecisionProblem:
    """The problem without an estimator of service times, for which methods that take weights have no samples."""
    action = problem.options.action.model_copy(update={"baseline": "inverse_latency"})
    return replace(problem, options=problem.options.model_copy(update={"action": action}))


def _bundle(spec: Spec, arena: Arena, method: BalancingMethod) -> Controller:
    # torch takes seconds to import; most evaluations do without.
    from tuning.policy.bundle import load_bundle  # noqa: PLC0415

    bundle = load_bundle(Path(spec.base), arena.problem.topology)
    bundle = replace(bundle, problem=replace(bundle.problem, workers=arena.workers))
    return learned_controller(spec.name, method, bundle.policy(), bundle.problem)


def _parse(text: str) -> Spec:
    base, at, method = text.rpartition("@") if "@" in text else (text, "", "")
    if at and method not in get_args(DirectMethod):
        raise ConfigError(f"'{text}': unknown balancing method '{method}'", where="policies",
                          remedy=closest(method, get_args(DirectMethod)))  # fmt: skip
    if base.startswith((EXTERNAL, STOCK)):
        prefix, _, path = base.partition(":")
        return Spec(f"{prefix}:{Path(path).name}", base)
    if _is_folder(base):
        return Spec(f"{Path(base).parent.name or base}{at}{method}", base, cast(BalancingMethod, method) or None)
    if at and method == "expected_delay" and base not in ESTIMATORS:
        raise ConfigError(f"'{base}' estimates no service times", where="policies", remedy=closest(base, ESTIMATORS))
    if at and method != "expected_delay" and base not in (*BASELINES, *STEERED):
        raise ConfigError(f"'{base}' brings its own method", where="policies", remedy=f"write '{base}'")
    known = (*NATIVE, TODAY, *BASELINES, *STEERED, *ESTIMATED, *_HOLDING, *ORACLES, *RIVAL_CODES, *_OTHERS)
    if base not in known:
        raise ConfigError(f"unknown policy '{base}'", where="policies", remedy=closest(base, known))
    return Spec(text, base, cast(BalancingMethod, method) or None)


def _is_folder(base: str) -> bool:
    return "/" in base and not base.startswith((EXTERNAL, STOCK))
