"""The judge: order, pairing, warm-up, accounting, spoiled blocks, interruption and resumption.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import BalancingMethod, Control, Weights
from actuators.contract.script import Behaviour, RateStep
from actuators.contract.topology import Topology, social_network
from actuators.contract.window import Fault, Window
from actuators.errors import ConfigError, TestbedError
from envs.heuristics.controllers import Controller
from tests.support.queue_testbed import Fixed, InverseLatency, QueueTestbed, SteadyScenario
from tuning.judging.blocks import Block
from tuning.judging.judge import EndingArrivals, Judge, JudgeProgress
from tuning.judging.plan import JudgeOptions, balanced_orders

DEADLINES_S = np.array([0.05, 0.02, 0.02])
STEADY = SteadyScenario()


def controllers() -> list[Controller]:
    return [Fixed("round_robin", "round_robin"), Fixed("least_conn", "least_conn"), InverseLatency()]


def options(**changes: object) -> JudgeOptions:
    fields = {
        "rounds": 2,
        "warm_up_s": 0.4,
        "measure_s": 0.8,
        "interval_s": 0.2,
        "repeats": 0,
        "seed": 5,
        "learned": "inverse_latency",
    }
    return JudgeOptions(**{**fields, **changes})


def judged(testbed: QueueTestbed | None = None, scenario: SteadyScenario = STEADY, **changes: object) -> Judge:
    return Judge(testbed or QueueTestbed(), controllers(), scenario, DEADLINES_S, options(**changes))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_policy_has_every_position_equally_often(count: int) -> None:
    orders = balanced_orders(count, 2 * count, seed=3)
    assert all(sorted(order) == list(range(count)) for order in orders)
    for position in range(count):
        assert set(Counter(order[position] for order in orders).values()) == {2}


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_no_policy_follows_one_other_more_often_than_the_rest(count: int) -> None:
    orders = balanced_orders(count, 2 * count, seed=3)
    followers = Counter((a, b) for order in orders for a, b in itertools.pairwise(order))
    assert set(followers.values()) == {2}
    assert len(followers) == count * (count - 1)


def test_arrivals_end_before_the_drain_and_nothing_else_changes() -> None:
    topology = social_network()
    whole, ended = STEADY.script(topology, 3), EndingArrivals(STEADY, 2.0).script(topology, 3)
    for stream, cut in zip(whole.streams, ended.streams, strict=True):
        assert cut.steps == (*stream.steps, RateStep(1.9, 0.0))
    assert replace(ended, streams=whole.streams) == whole


def test_orders_depend_on_the_seed_only() -> None:
    assert balanced_orders(4, 8, seed=1) == balanced_orders(4, 8, seed=1)
    assert balanced_orders(4, 8, seed=1) != balanced_orders(4, 8, seed=2)


def test_policies_of_a_round_meet_the_same_arrivals_and_rounds_do_not() -> None:
    evaluation = judged().run()
    by_round = {r: [b for b in evaluation.blocks if b.planned.round == r] for r in (0, 1)}
    for blocks in by_round.values():
        assert len(blocks) == 3
        assert len({tuple(block.tally.sent) for block in blocks}) == 1
    assert by_round[0][0].planned.seed != by_round[1][0].planned.seed
    assert all(b.planned.seed != b.planned.warm_up_seed for b in evaluation.blocks)


def test_a_block_sets_the_method_then_warms_up_drains_and_measures_with_the_control_it_has_learned() -> None:
    testbed = QueueTestbed()
    Judge(testbed, [InverseLatency()], SteadyScenario(), DEADLINES_S,
          options(rounds=1, reference="inverse_latency")).run()  # fmt: skip
    kinds = [call.split()[0] for call in testbed.calls]
    assert kinds == ["method", "reset", "apply", "apply", "drain", "reset", "apply", "apply", "apply", "apply", "drain"]
    first_measured = testbed.calls[6]
    assert first_measured == testbed.calls[3] != "apply [1, 1, 1]"


def test_every_request_that_was_sent_is_counted_once_on_both_sides() -> None:
    content = judged().run().to_json()
    accounts = content["accounting"]
    assert accounts["requests"] == accounts["sent"] == accounts["nginx_requests"] == accounts["answered"] > 500
    assert accounts["difference"] == accounts["unexplained"] == 0
    assert sum(policy["requests"] for policy in content["policies"].values()) == accounts["sent"]
    in_windows = sum(sum(map(sum, window["requests"])) for window in content["windows"])
    assert in_windows == accounts["nginx_requests"]


def test_a_difference_that_nothing_explains_is_said() -> None:
    evaluation = judged(QueueTestbed(lost={1: 3})).run()
    accounts = evaluation.to_json()["accounting"]
    assert accounts["difference"] == -3
    assert accounts["unexplained"] == 3
    assert "3 fewer" in accounts["explanation"]


def test_a_spoiled_block_is_counted_kept_and_left_out_of_the_ratios() -> None:
    fault = Fault("saturated_client", "99 % of a core")
    evaluation = judged(QueueTestbed(faults={1: fault}), rounds=3).run()
    spoiled = [b for b in evaluation.blocks if not b.usable]
    assert len(spoiled) == 1
    assert spoiled[0].planned.round == 0
    content = evaluation.to_json()
    policy = content["policies"][spoiled[0].planned.policy]
    assert policy["discarded_blocks"] == 1
    assert policy["blocks"] == 3
    assert policy["judged_requests"] == policy["requests"] - int(spoiled[0].tally.sent.sum())
    reference_spoiled = spoiled[0].planned.policy == "least_conn"
    paired = {name: p["paired_rounds"] for name, p in content["policies"].items()}
    assert paired[spoiled[0].planned.policy] == 2
    assert reference_spoiled or sorted(paired.values()) == [2, 3, 3]
    assert content["accounting"]["discarded_because"] == ["saturated_client: 99 % of a core"]


def test_a_spoiled_block_is_run_again_on_the_same_arrivals_as_often_as_allowed() -> None:
    fault = Fault("saturated_client", "99 % of a core")
    evaluation = judged(QueueTestbed(faults={1: fault}), repeats=1).run()
    spoiled, again = evaluation.blocks[:2]
    assert (spoiled.usable, again.usable) == (False, True)
    assert spoiled.planned == again.planned
    assert tuple(spoiled.tally.sent) == tuple(again.tally.sent)
    content = evaluation.to_json()
    assert [p["paired_rounds"] for p in content["policies"].values()] == [2, 2, 2]
    assert content["accounting"]["discarded_blocks"] == 1
    always = judged(QueueTestbed(faults=dict.fromkeys(range(99), fault)), repeats=2).run()
    assert len(always.blocks) == 6 + 2


def test_a_server_that_the_scenario_kills_is_part_of_what_is_judged() -> None:
    fault = Fault("server_down", "does not answer", server="server-2:80")
    crash = SteadyScenario(behaviours=(Behaviour(0.5, 1, refused=True),))
    assert all(b.usable for b in judged(QueueTestbed(faults={1: fault}), crash, rounds=1).run().blocks)
    assert sum(not b.usable for b in judged(QueueTestbed(faults={1: fault}), rounds=1).run().blocks) == 1


def test_a_control_that_was_refused_spoils_its_block_and_nothing_else() -> None:
    evaluation = judged(QueueTestbed(refused={0}), rounds=1).run()
    assert [b.flags for b in evaluation.blocks if b.flags] == [("not_in_force: nginx -t said no",)]
    assert evaluation.blocks[0].flags


def interrupt_at(index: int) -> Callable[[JudgeProgress], None]:
    def progress(step: JudgeProgress) -> None:
        if step.index == index and step.phase == "measure":
            raise KeyboardInterrupt

    return progress


def test_finished_blocks_survive_an_interrupt_and_are_not_run_again() -> None:
    whole = judged(rounds=3).run()
    broken = Judge(QueueTestbed(), [*controllers()[:2], Fixed("inverse_latency", "random_two")], SteadyScenario(),
                   DEADLINES_S, options(rounds=3), progress=interrupt_at(4))  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    assert len(broken.blocks) == 4
    partial = broken.evaluation()
    assert [b.usable for b in partial.blocks] == [True, True, True, False]
    testbed = QueueTestbed()
    resumed = Judge(testbed, [*controllers()[:2], Fixed("inverse_latency", "random_two")], SteadyScenario(),
                    DEADLINES_S, options(rounds=3), finished=broken.blocks).run()  # fmt: skip
    assert len(resumed.blocks) == len(whole.blocks) == 9
    assert all(b.usable for b in resumed.blocks)
    assert sum(call.startswith("method") for call in testbed.calls) == 5


class Counting:
    """Learns one thing, the number of blocks it has had, and puts it in force as the weight of the first server."""

    def __init__(self) -> None:
        self.name, self.blocks = "inverse_latency", 0
        self.method: BalancingMethod = "least_conn"

    def begin(self, topology: Topology) -> Control:
        self.blocks += 1
        return Weights(topology, np.tile((self.blocks, 1, 1), (topology.shape[0], 1)))

    def decide(self, window: Window) -> Control | None:
        return None


def known(blocks: Sequence[Block]) -> list[int]:
    """What the learning policy knew in each of its blocks, in the order of the rounds."""
    own = [block for block in blocks if block.planned.policy == "inverse_latency"]
    return [block.windows[0]["weights"][0][0] for block in sorted(own, key=lambda block: block.planned.round)]


def resumed(
    kept: list[Block], *, progress: Callable[[JudgeProgress], None] | None = None, relearn: bool = True
) -> Judge:
    """Three policies, three rounds, two seeds; goes on with what is kept, and keeps more."""

    def make(seed: int) -> list[Controller]:
        return [*controllers()[:2], Counting()]

    chosen = options(rounds=3, seeds=2)
    return Judge(QueueTestbed(), make(chosen.seed), STEADY, DEADLINES_S, chosen, progress=progress,
                 finished=tuple(kept), relearn=relearn, keep=kept.append, remake=make)  # fmt: skip


def test_a_policy_that_learns_repeats_the_seed_in_which_it_was_interrupted() -> None:
    kept: list[Block] = []
    with pytest.raises(KeyboardInterrupt):
        resumed(kept, progress=interrupt_at(15)).run()
    assert (len(kept), known(kept)) == (15, [1, 2, 3, 1, 2])
    steps: list[JudgeProgress] = []
    judge = resumed(kept, progress=steps.append)
    evaluation = judge.run()
    assert known(evaluation.blocks) == [1, 2, 3, 1, 2, 3]
    ran = [step.planned for step in steps if step.phase == "measure"]
    assert [step.index for step in steps] == sorted(judge.plan.index(step.planned) for step in steps)
    assert [(planned.round, planned.policy) for planned in ran if planned.policy != "inverse_latency"] == [
        (5, planned.policy) for planned in judge.plan[15:] if planned.policy != "inverse_latency"
    ]
    assert [planned.round for planned in ran if planned.policy == "inverse_latency"] == [3, 4, 5]
    # The journal holds all, the evaluation each block once: the later one.
    assert len(kept) == 15 + 5
    assert sorted(block.planned.round for block in evaluation.blocks) == sorted(3 * [*range(6)])
    again = resumed(kept)
    assert again.run().to_json()["policies"] == evaluation.to_json()["policies"]
    assert len(kept) == 20
    assert [policy["discarded_blocks"] for policy in evaluation.to_json()["policies"].values()] == [0, 0, 0]


def test_a_policy_can_go_on_untrained_where_hours_were_measured() -> None:
    kept: list[Block] = []
    with pytest.raises(KeyboardInterrupt):
        resumed(kept, progress=interrupt_at(15)).run()
    assert known(resumed(kept, relearn=False).run().blocks) == [1, 2, 3, 1, 2, 1]
    assert len(kept) == 18


def test_a_repeated_block_that_is_spoiled_leaves_the_earlier_one_in_force() -> None:
    kept: list[Block] = []
    with pytest.raises(KeyboardInterrupt):
        resumed(kept, progress=interrupt_at(15)).run()
    first = next(block for block in kept if block.planned.round == 3 and block.planned.policy == "inverse_latency")
    kept.append(replace(first, flags=("stall: a window took 9 s",)))
    partial = resumed(kept).evaluation()
    own = [block for block in partial.blocks if block.planned == first.planned]
    assert [block.usable for block in own] == [True, False]
    assert partial.values["inverse_latency"]["mean_ms"] is not None


def test_an_evaluation_of_nothing_can_be_written(tmp_path: Path) -> None:
    content = judged().evaluation().write(tmp_path / "evaluation.json")
    assert content["policies"] == {}
    assert content["accounting"] is None


def test_a_broken_testbed_ends_the_run_and_keeps_what_was_measured() -> None:
    class Breaking(QueueTestbed):
        def set_method(self, method: BalancingMethod) -> None:
            super().set_method(method)
            if sum(call.startswith("method") for call in self.calls) == 3:
                raise TestbedError("the servers are gone")

    judge_ = judged(Breaking())
    with pytest.raises(TestbedError):
        judge_.run()
    assert len(judge_.blocks) == 2


def test_a_wrong_name_gets_the_closest_match() -> None:
    with pytest.raises(ConfigError, match="did you mean 'least_conn'"):
        judged(reference="least_con")
    with pytest.raises(ConfigError, match="name each policy once"):
        Judge(QueueTestbed(), [*controllers(), *controllers()], SteadyScenario(), DEADLINES_S, options(rounds=1))


def test_progress_says_what_is_next_and_for_how_long() -> None:
    steps: list[JudgeProgress] = []
    short = JudgeOptions(rounds=1, warm_up_s=0.2, measure_s=0.4, interval_s=0.2)
    Judge(QueueTestbed(), controllers(), SteadyScenario(), DEADLINES_S, short, progress=steps.append).run()
    assert [(s.phase, s.phase_s) for s in steps] == [("warm-up", 0.2), ("measure", 0.4)] * 3
    assert [s.index for s in steps] == [0, 0, 1, 1, 2, 2]
    assert {s.total for s in steps} == {3}
