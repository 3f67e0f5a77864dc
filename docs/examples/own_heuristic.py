"""A balancing heuristic of your own, judged beside NGINX's methods on the same arrivals.

python docs/examples/own_heuristic.py [ROUNDS]
"""

import sys

import numpy as np

from actuators.contract.control import BalancingMethod, Control, Weights
from actuators.contract.topology import Topology, social_network
from actuators.contract.window import Window
from envs.environment.phase import ObserveOptions, watch
from envs.heuristics.controllers import Controller, FixedController
from envs.observation.deadlines import derive_deadlines
from envs.scenarios.lookup import scenario
from envs.simulator.testbed import SimulatedTestbed
from tuning.judging.evaluation import Evaluation
from tuning.judging.judge import Judge
from tuning.judging.plan import JudgeOptions


class FewestErrors:
    """Weights by the share of good answers, and among equal ones by the inverse of the response time."""

    name: str = "fewest_errors"
    method: BalancingMethod = "least_conn"

    def begin(self, topology: Topology) -> Control:
        """Equal weights, and nothing remembered."""
        self._seconds = np.where(topology.mask, 0.01, np.inf)
        return Weights.equal(topology)

    def decide(self, window: Window) -> Control | None:
        """The next weights; none when the window says nothing."""
        if not window.usable or window.requests.sum() == 0:
            return None
        mean_s = window.mean_response_s()
        self._seconds = np.where(np.isnan(mean_s), self._seconds, 0.7 * self._seconds + 0.3 * mean_s)
        good = np.maximum(1.0 - window.server_errors / np.maximum(window.requests, 1), 0.01)
        shares = np.where(window.topology.mask, good**4 / self._seconds, 0.0)
        weights = np.rint(100 * shares / shares.max(axis=1, keepdims=True))
        return Weights(window.topology, np.where(window.topology.mask, np.clip(weights, 3, 100), 0).astype(np.int64))


def main(rounds: int = 8) -> Evaluation:
    """S7, where servers crash and fail fast: one block per controller and round."""
    played = scenario("S7", duration_s=120.0)
    with SimulatedTestbed(social_network()) as testbed:
        observed = watch(testbed, played.nominal(), "least_conn", ObserveOptions(duration_s=60.0), 1)
        deadlines_s = derive_deadlines(observed.equal, testbed.topology).seconds
        controllers: list[Controller] = [
            FixedController("round_robin", "round_robin"), FixedController("least_conn", "least_conn"), FewestErrors(),
        ]  # fmt: skip
        options = JudgeOptions(rounds=rounds, warm_up_s=10.0, measure_s=60.0, learned="fewest_errors")
        return Judge(testbed, controllers, played, deadlines_s, options).run()


if __name__ == "__main__":
    from rich.console import Console

    from tuning.judging.tables import print_evaluation

    print_evaluation(main(*map(int, sys.argv[1:])).to_json(), Console())
