"""The policies that are judged beside each other: NGINX as shipped, the best simple heuristic, the learned one."""

from __future__ import annotations

from actuators.control import BalancingMethod
from envs.baselines import InverseLatency, Policy
from envs.controller import FixedController, PolicyController
from envs.decision import DecisionProblem
from tuning.judge import Controller

REFERENCE = "least_conn"
LEARNED = "learned"


def contenders(problem: DecisionProblem, method: BalancingMethod, learned: Policy) -> list[Controller]:
    """Equal round robin, equal least_conn, inverse latency and the learned policy, the last two on `method`."""
    return [
        FixedController("round_robin", "round_robin"),
        FixedController(REFERENCE, "least_conn"),
        PolicyController("inverse_latency", method, InverseLatency(problem.baseline_codec), problem.observer()),
        PolicyController(LEARNED, method, learned, problem.observer()),
    ]
