"""Rules of other balancers and of papers: small cases computed by hand from their sources, and whole scripts.

Seeds are fixed and the clock plays no part: a comparison repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from actuators.contract.script import Behaviour, RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import social_network
from envs.scenarios.lookup import scenario
from envs.simulator import lane as columns
from envs.simulator import prequal, rivals
from envs.simulator.batch import SimulatedBatch, SimulationOptions
from envs.simulator.compiling import compiled
from envs.simulator.rivals import RIVAL_CODES
from tests.support.simulated import line_of, run, script_of

TOPOLOGY = social_network()


class Pool:
    """Records of `[groups, servers]` as a balancer has them, weights 1, and where a compiled function answers."""

    def __init__(self, groups: int, servers: int) -> None:
        self.peers = np.zeros((groups, servers), columns.PEER)
        self.peers["weight"] = self.peers["effective"] = 1
        self.marks = np.zeros((groups, servers), columns.MARK)
        self.rules, self.state = np.zeros(1, columns.RULES), np.zeros(1, columns.STATE)
        self.rules["fail_timeout_s"], self.rules["max_fails"], self.rules["contexts"] = 10, 1, 1
        self.tried, self.answer = np.zeros(1, np.int64), np.zeros(2)

    def pick(self, name: str, group: int = 0, now_s: float = 0.0) -> int:
        method = RIVAL_CODES[name]
        _pick(method, self.peers, self.marks, group, self.tried, now_s, self.rules, self.state, self.answer)
        return int(self.answer[0])


@compiled
def _pick(
    method: int, peers: Any, marks: Any, group: int, tried: Any, now_s: float, rules: Any, state: Any, answer: Any
) -> None:
    clock = rivals.clock_s(now_s)
    if method <= rivals.LEAST_TIME_SHARED:
        now_ms = rivals.whole_ms(now_s)
        answer[0] = rivals.pick_least_time(peers, marks, method, group, tried, clock, now_ms, rules[0])
    elif method == rivals.PEAK_EWMA:
        answer[0] = rivals.pick_peak_ewma(peers, marks, method, group, tried, now_s, rules[0], state[0])
    elif method == rivals.LEAST_REQUEST:
        answer[0] = rivals.pick_least_request(peers, method, group, tried, clock, rules[0], state[0])
    elif method == rivals.RANDOM_CHOOSE:
        answer[0] = rivals.pick_random_choose(peers, method, group, tried, clock, rules[0], state[0])
    else:
        answer[0] = rivals.pick_c3(peers, marks, method, group, tried, clock, rules[0], state[0])


@compiled
def _note(what: int, marks: Any, one: float, other: float, third: float, answer: Any) -> None:
    mark = marks[0, 0]
    if what == 0:
        rivals.note_least_time(mark, int(one), int(other), third > 0.0)
    elif what == 1:
        rivals.observe_peak(mark, one, other)
    elif what == 2:
        answer[0] = rivals.peak_ewma_load(mark, int(one), other)
    elif what == 3:
        rivals.note_c3(mark, one, other, third)
    else:
        answer[0] = rivals.c3_score(mark, int(one), int(other))


def noted(pool: Pool, what: int, one: float, other: float, third: float = 0.0) -> float:
    _note(what, pool.marks, one, other, third, pool.answer)
    return float(pool.answer[0])


# Estimates are (time + 20 − time mod 20) × (1 + connections), above 5000 ms 5000 × (1 + connections).
LEAST_TIME_CASES = {
    "nothing known: round robin": ((0, 0), (0, 0), (1, 1), 0),
    "60 × 1 and 20 × 3: a tie": ((50, 5), (0, 2), (1, 1), 0),
    "60 × 1 and 20 × 2": ((50, 5), (0, 1), (1, 1), 1),
    "40 ms count 60 as 59 do": ((59, 40), (0, 0), (1, 1), 0),
    "39 ms count 40": ((40, 39), (0, 0), (1, 1), 1),
    "60 / 1 and 120 / 3": ((50, 50), (0, 1), (1, 3), 1),
    "5020 and 5000: above the cap is better than at it": ((5000, 5001), (0, 0), (1, 1), 1),
    "all above the cap: fewest connections": ((9000, 6000), (1, 2), (1, 1), 0),
}


@pytest.mark.parametrize("case", LEAST_TIME_CASES)
def test_least_time_takes_the_least_estimate(case: str) -> None:
    times_ms, conns, weights, expected = LEAST_TIME_CASES[case]
    pool = Pool(1, 2)
    pool.peers["checked"] = rivals.clock_s.py_func(0.0)
    pool.marks["time_ms"], pool.peers["conns"] = times_ms, conns
    pool.peers["weight"] = pool.peers["effective"] = weights
    assert pool.pick("least_time") == expected


def test_least_time_counts_how_long_requests_have_been_in_flight() -> None:
    pool = Pool(1, 2)
    pool.peers["checked"], pool.peers["conns"] = rivals.clock_s.py_func(0.0), (2, 0)
    pool.marks["time_ms"], pool.marks["inflight"] = (20, 300), (2, 0)
    pool.marks["inflight_sum_ms"], pool.marks["changed_ms"] = (100, 0), (1000, 0)
    # 100 / 2 + 100 = 150 ms → 160 × 3 against 320 × 1.
    assert pool.pick("least_time", now_s=1.1) == 1
    assert pool.marks["inflight_ms"].tolist() == [[150, 0]]
    # 50 + 200 = 250; 0.05 × 250 + 0.95 × 150 = 155 → 160 × 3 against 320 × 2.
    pool.peers["conns"] = (2, 1)
    assert pool.pick("least_time", now_s=1.2) == 0
    assert pool.marks["inflight_ms"][0, 0] == 155
    assert pool.marks[["inflight", "inflight_sum_ms", "changed_ms"]][0, 0].tolist() == (3, 100 + 2 * 200, 1200)


def test_least_time_averages_in_whole_milliseconds_and_forgets_what_failed() -> None:
    pool = Pool(1, 1)
    pool.marks["time_ms"], pool.marks["inflight"] = 90, 2
    pool.marks["inflight_sum_ms"], pool.marks["changed_ms"] = 100, 1000
    noted(pool, 0, 1000 - 50, 1100, 1.0)
    # 0.05 × 150 + 0.95 × 90 + 0.5 = 93.5 → 93; 100 + 2 × 100 − 150 ms stay in flight.
    assert pool.marks[["time_ms", "inflight", "inflight_sum_ms"]][0, 0].tolist() == (93, 1, 150)
    noted(pool, 0, 1050, 1100, 0.0)
    assert pool.marks[["time_ms", "inflight", "inflight_sum_ms"]][0, 0].tolist() == (93, 0, 0)


def test_least_time_shared_counts_connections_of_all_groups() -> None:
    pool = Pool(2, 2)
    pool.peers["checked"] = rivals.clock_s.py_func(0.0)
    pool.peers["conns"] = [[0, 1], [2, 0]]
    assert pool.pick("least_time", group=0) == 0
    assert pool.pick("least_time_shared", group=0) == 1


def picks_of(batch: SimulatedBatch, gap_s: float, count: int) -> list[int]:
    """The server of each arrival, one in every `gap_s`."""
    picks, before = [], 0
    for _ in range(count):
        window = batch.advance(gap_s)
        active = window.active[0, 0]
        now = window.requests[0, 0] + active - before
        picks.append(int(now.argmax()) if now.any() else -1)
        before = active
    return picks


def slow_and_fast(method: Any, times_s: tuple[float, ...], gap_s: float) -> SimulatedBatch:
    servers = tuple(ServerProfile((times_s[0] / time_s,), 4, 512) for time_s in times_s)
    steps = (RateStep(0.0, 1.0 / gap_s, "fixed"),)
    script = Script("two", 1, 1e6, (Stream("read", steps),), servers, (times_s[0],), "constant")
    batch = SimulatedBatch(line_of(len(times_s)), 1, method)
    batch.reset(0, script)
    return batch


def test_least_time_gives_a_slow_server_a_chance_as_its_time_is_halved() -> None:
    """30 and 90 ms, one request at a time: 90 ms are 100, after 11 s 60, after 22 s 40, which is a tie with 30 ms.

    In the first request of every eleventh second the fast server's own time is halved too, so that it comes first.
    """
    batch = slow_and_fast("least_time", (0.03, 0.0901), 0.25)
    batch.advance(0.125)
    picks = picks_of(batch, 0.25, 200)
    # At 0.5 s nothing is known of it; at 22.25 s the tie is its turn, at 44.25 s the other's, at 44.5 s its own.
    assert [0.25 * (place + 1) for place, pick in enumerate(picks) if pick == 1] == [0.5, 22.25, 44.5]


def test_peak_ewma_jumps_to_peaks_and_decays_with_time() -> None:
    pool = Pool(1, 1)
    noted(pool, 1, 0.1, 3.0)
    assert pool.marks[["cost_s", "stamp_s"]][0, 0].tolist() == (0.1, 3.0)
    noted(pool, 1, 0.05, 8.0)
    keep = math.exp(-0.5)
    assert pool.marks["cost_s"][0, 0] == pytest.approx(0.1 * keep + 0.05 * (1 - keep))
    noted(pool, 1, 0.2, 9.0)
    assert noted(pool, 2, 3.0, 19.0) == pytest.approx(0.2 * math.exp(-1.0) * 4)


def test_peak_ewma_takes_the_lower_load_and_penalises_first_answers_that_are_out() -> None:
    pool = Pool(1, 2)
    pool.marks["cost_s"], pool.peers["conns"] = (0.01, 0.03), (1, 0)
    assert {pool.pick("peak_ewma") for _ in range(20)} == {0}
    pool.peers["conns"] = (3, 0)
    assert {pool.pick("peak_ewma") for _ in range(20)} == {1}
    pool.marks["cost_s"], pool.peers["conns"] = (0.0, 5.0), (1, 9)
    assert {pool.pick("peak_ewma") for _ in range(20)} == {1}
    pool.peers["conns"] = (0, 9)
    assert {pool.pick("peak_ewma") for _ in range(20)} == {0}


def test_least_request_draws_twice_with_replacement() -> None:
    pool = Pool(1, 3)
    pool.peers["conns"] = (0, 2, 5)
    picks = np.bincount([pool.pick("least_request") for _ in range(9000)], minlength=3)
    # Of nine equally likely pairs five have server 0, three of the others server 1.
    assert picks == pytest.approx(np.array([5000, 3000, 1000]), abs=150)
    pool.tried[0] = 1
    assert {pool.pick("least_request") for _ in range(50)} == {1, 2}
    pool.peers["down"] = 1
    assert pool.pick("least_request") == -1


def test_random_choose_keeps_a_first_choice_with_more_requests() -> None:
    """The pairs are (0, 1), (0, 2) and (2, 1): the third server takes one of two places, or none."""
    pool = Pool(1, 3)

    def picks(*conns: int) -> Any:
        pool.peers["conns"] = conns
        return np.bincount([pool.pick("random_choose") for _ in range(9000)], minlength=3)

    # 250 are 5.3 standard deviations. Half of the first two pairs go to the fuller server, which stands first.
    assert picks(5, 2, 1) == pytest.approx(np.array([3000, 1500, 4500]), abs=250)
    # A server without requests is taken whenever it is one of the two.
    assert picks(5, 0, 1) == pytest.approx(np.array([1500, 6000, 1500]), abs=250)
    pool.tried[0] = 2
    assert {pool.pick("random_choose") for _ in range(50)} == {0, 2}
    pool.tried[0] = 3
    assert pool.pick("random_choose") == 2
    pool.peers["down"] = 1
    assert pool.pick("random_choose") == -1


def test_c3_scores_the_cube_of_the_estimated_queue() -> None:
    pool = Pool(1, 1)
    assert noted(pool, 4, 7.0, 3.0) == 0.0
    noted(pool, 3, 0.03, 0.02, 1.0)
    # 0.01 + (1 + 2 × 3 + 1)³ × 0.02.
    assert noted(pool, 4, 2.0, 3.0) == pytest.approx(0.01 + 512 * 0.02)
    noted(pool, 3, 0.05, 0.04, 11.0)
    assert pool.marks["service_s"][0, 0] == pytest.approx(0.9 * 0.04 + 0.1 * 0.02)
    assert pool.marks["queue"][0, 0] == pytest.approx(0.9 * 11 + 0.1)


def test_c3_asks_what_is_unknown_first_and_then_the_least_score() -> None:
    pool = Pool(2, 3)
    pool.marks[0]["known"], pool.marks[0]["service_s"] = (1, 1, 0), (0.01, 0.05, 0.0)
    assert pool.pick("c3", group=1) == 2
    pool.marks[0]["known"], pool.marks[0]["service_s"] = 1, (0.01, 0.05, 0.02)
    assert pool.pick("c3", group=1) == 0
    # 2³ × 0.01 against 0.05 and 0.02, in whatever group the request is in flight.
    pool.peers["conns"][0, 0] = 1
    assert pool.pick("c3", group=1) == 2


def test_idle_workers_stand_in_line_and_are_taken_in_turn() -> None:
    batch = slow_and_fast("join_idle_queue", (0.03, 0.03, 0.03), 0.25)
    batch.advance(0.125)
    assert picks_of(batch, 0.25, 60) == [0, 1, 2] * 20


@compiled
def _pick_prequal(marks: Any, probes: Any, counts: Any, now_s: float, state: Any, answer: Any) -> None:
    answer[0] = prequal.pick_prequal(marks, probes, counts, now_s, state[0])
    answer[1] = prequal.uses_of(len(marks), state[0])


class Probed:
    """A pool of servers, all with probes, after 64 probes of which the last 60 found less than `busy` requests."""

    def __init__(self, rif: tuple[int, ...], latency_s: tuple[float, ...], busy: int) -> None:
        self.marks = np.zeros(len(rif), columns.MARK)
        self.marks["known"], self.marks["usable"], self.marks["uses"] = 1, 1, 9
        self.marks["rif"], self.marks["latency_s"] = rif, latency_s
        self.probes, self.counts = np.zeros(prequal.RING, columns.PROBE), np.zeros(prequal.COUNTS, np.int64)
        self.probes["rif"][:64] = busy - 1
        self.probes["rif"][:4] = 99
        self.counts[[prequal.SENT, prequal.RECEIVED]] = 64
        self.state, self.answer = np.zeros(1, columns.STATE), np.zeros(2)

    def pick(self, now_s: float = 0.0) -> int:
        _pick_prequal(self.marks, self.probes, self.counts, now_s, self.state, self.answer)
        return int(self.answer[0])


def test_prequal_prefers_cold_servers_by_latency_and_hot_ones_by_requests_in_flight() -> None:
    assert Probed((5, 1, 1), (0.001, 0.009, 0.003), busy=5).pick() == 2
    assert Probed((7, 6, 8), (0.001, 0.009, 0.003), busy=5).pick() == 1
    assert Probed((4, 4, 4), (0.001, 0.009, 0.003), busy=5).pick() == 0


def test_prequal_counts_what_it_sends_and_drops_the_worst_and_the_oldest_by_turns() -> None:
    probed = Probed((1, 9, 1), (0.001, 0.002, 0.003), busy=5)
    probed.marks["stamp_s"] = (0.2, 0.3, 0.1)
    assert probed.pick(0.4) == 0
    assert (probed.marks["rif"].tolist(), probed.marks["known"].tolist()) == ([2, 9, 1], [1, 0, 1])
    assert probed.pick(0.4) == 0
    assert probed.marks["known"].tolist() == [1, 0, 0]


def test_prequal_uses_no_probe_that_is_on_its_way_or_too_old() -> None:
    probed = Probed((1, 1, 1), (0.003, 0.002, 0.001), busy=5)
    back = probed.probes[64]
    back["server"], back["rif"], back["due_s"], back["latency_s"] = 0, 1, 0.5, 0.0001
    probed.counts[prequal.SENT] = 65
    assert probed.pick(0.4) == 2
    probed.marks["known"] = 1
    assert probed.pick(0.6) == 0
    probed.marks["known"], probed.marks["stamp_s"] = 1, (0.0, 0.0, 0.1)
    assert {probed.pick(9.0) for _ in range(50)} == {0, 1, 2}  # nothing is known: at random


def test_prequals_reuse_budget_is_that_of_the_paper() -> None:
    few, many = Probed((1,) * 3, (0.1,) * 3, 5), Probed((1,) * 100, (0.1,) * 100, 5)
    few.pick()
    assert few.answer[1] == 1_000_000
    budgets = []
    for _ in range(2000):
        many.pick()
        budgets.append(many.answer[1])
    assert set(budgets) == {1, 2}
    assert np.mean(budgets) == pytest.approx(2 / ((1 - 0.16) * 3 - 1), abs=0.05)


@compiled
def _estimate(recent_s: Any, recents: Any, rif: int, answer: Any) -> None:
    answer[0] = prequal.estimate_s(recent_s, recents, rif)


def test_prequal_estimates_by_the_median_at_the_nearest_number_in_flight() -> None:
    recent_s, recents = np.zeros((prequal.BINS, prequal.RECENT)), np.zeros(prequal.BINS, np.int64)
    recent_s[2, :3], recents[2] = (5.0, 1.0, 3.0), 3
    recent_s[7, :2], recents[7] = (8.0, 6.0), 2
    answer = np.zeros(1)
    found = []
    for rif in (0, 4, 5, 7, 1000):
        _estimate(recent_s, recents, rif, answer)
        found.append(float(answer[0]))
    assert found == [3.0, 3.0, 6.0, 6.0, 6.0]


def _shares_of_equal_servers(method: Any) -> Any:
    batch = SimulatedBatch(TOPOLOGY, 1, method)
    batch.reset(0, scenario("S1", 60.0).script(TOPOLOGY, 3))
    shares = batch.advance(60.0).requests[0].sum(axis=0)
    return shares / shares.sum()


@pytest.mark.parametrize("method", [method for method in RIVAL_CODES if method != "random_choose"])
def test_equal_servers_get_equal_shares(method: str) -> None:
    assert _shares_of_equal_servers(method) == pytest.approx(np.full(3, 1 / 3), abs=0.03)


def test_random_choose_prefers_the_first_of_equal_servers() -> None:
    """The first of its two that is idle is taken: the first server in two of three pairs, the second in none."""
    shares = _shares_of_equal_servers("random_choose")
    assert shares[0] > 0.36 > shares[2] > 0.30 > shares[1]


@pytest.mark.parametrize("method", RIVAL_CODES)
def test_a_server_that_refuses_is_passed_over_until_it_comes_back(method: str) -> None:
    crash = (Behaviour(2.0, 0, refused=True), Behaviour(4.0, 0))
    batch = SimulatedBatch(line_of(3), 1, method, options=SimulationOptions(fail_timeout_s=1))  # type: ignore[arg-type]
    batch.reset(0, script_of(200.0, 0.01, servers=3, workers=2, behaviours=crash))
    windows = [batch.advance(2.0) for _ in range(4)]
    assert sum(int(window.failed.sum()) for window in windows) == 0
    shares = [window.requests[0, 0, 0] / window.requests.sum() for window in windows]
    assert shares[1] < 0.02
    assert shares[3] > 0.25


def test_a_method_that_is_set_later_begins_anew_and_counts_to_zero() -> None:
    batch = SimulatedBatch(TOPOLOGY, 1, "least_conn")
    batch.reset(0, scenario("S2", 20.0).script(TOPOLOGY, 3))
    for method in ("least_time", "prequal", "least_time_shared", "join_idle_queue", "c3", "peak_ewma"):
        batch.advance(2.0)
        batch.set_method(method)  # type: ignore[arg-type]
    batch.advance(2.0)
    assert batch.drain(10.0).active.sum() == 0


def test_all_rivals_take_the_same_work_to_one_server() -> None:
    script = script_of(50.0, 0.01, service="lognormal")
    sums = {
        method: run(line_of(1), script, 50.0, method).latency_s_sum.sum() for method in ("least_conn", *RIVAL_CODES)
    }
    assert len(set(sums.values())) == 1, sums
