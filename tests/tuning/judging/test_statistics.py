"""Metrics of a tally against hand-computed values; ratios whose intervals mean what they say.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from actuators.contract import histogram
from tests.support.queue_testbed import Fixed, QueueTestbed, SteadyScenario
from tuning.judging.judge import Judge
from tuning.judging.plan import JudgeOptions
from tuning.judging.statistics import METRICS, PairedRatio, Sample, compare
from tuning.judging.tally import BlockTally

DEADLINE_S = np.array([0.020])

DEADLINES_S = np.array([0.05, 0.02, 0.02])


def tally(latencies_ms: NDArray[np.float64], *, sent: int | None = None, **errors: int) -> BlockTally:
    counts = np.zeros((1, histogram.SIZE), dtype=np.int64)
    buckets = np.searchsorted(histogram.bounds_us()[0], latencies_ms * 1e3, side="right") - 1
    np.add.at(counts[0], buckets, 1)
    good, failed = len(latencies_ms), sum(errors.values())
    number = np.array([good + failed if sent is None else sent])
    zero = np.zeros(1, dtype=np.int64)
    classes = {name: np.array([count]) for name, count in errors.items()}
    return BlockTally(
        number, number, number, zero, zero, classes, counts, np.array([sum(latencies_ms) / 1e3]), number, zero, zero
    )


def lognormal(rng: np.random.Generator, size: int = 2000, factor: float = 1.0) -> NDArray[np.float64]:
    return rng.lognormal(np.log(6.0), 0.9, size) * factor


def test_values_of_a_known_block() -> None:
    latencies_ms = np.arange(1.0, 101.0)
    values = Sample([tally(latencies_ms)], DEADLINE_S).pooled()
    assert values["mean_ms"] == pytest.approx(50.5)
    for name, exact in (("p50_ms", 50), ("p90_ms", 90), ("p95_ms", 95), ("p99_ms", 99)):
        assert values[name] == pytest.approx(exact, rel=0.02)
    assert values["miss_ratio"] == pytest.approx(0.80, abs=0.011)
    exact_art = np.maximum(latencies_ms - 20, 0).sum() / 20 / 100
    assert values["art_per_request"] == pytest.approx(exact_art, rel=0.02)


def test_an_error_costs_a_second_at_least_and_never_less_than_the_worst_answer() -> None:
    fast = Sample([tally(np.full(99, 5.0), status_5xx=1)], DEADLINE_S).pooled()
    assert fast["errors"] == 1
    assert fast["art_per_request"] == pytest.approx((1.0 - 0.020) / 0.020 / 100)
    slow = tally(np.array([3000.0]), timeout=1).tardiness(DEADLINE_S)[0][0]
    worst = (3.0 - 0.020) / 0.020
    assert slow == pytest.approx(2 * worst, rel=0.02)


# Up to 980 ms: the bucket of a second reaches above it.
@given(st.lists(st.floats(0.1, 980), min_size=1, max_size=40), st.floats(0.005, 4.0))
@settings(max_examples=100, deadline=None)
def test_failing_a_request_that_took_less_than_a_second_never_lowers_the_tardiness(
    latencies_ms: list[float], deadline_s: float
) -> None:
    deadline = np.array([deadline_s])
    answered = tally(np.array(latencies_ms)).tardiness(deadline)[0][0]
    failed = tally(np.array(latencies_ms[1:]), status_5xx=1).tardiness(deadline)[0][0]
    assert failed >= answered


def test_requests_that_were_never_answered_count_as_errors() -> None:
    block = tally(np.full(8, 5.0), sent=10, status_5xx=2)
    assert int(block.error_count.sum()) == 2
    assert int(block.due.sum()) == 10


def test_the_ratio_is_of_pooled_values_and_the_median_of_the_rounds_own_ratios() -> None:
    ours = [tally(np.full(10, v)) for v in (2.0, 2.0, 8.0)]
    theirs = [tally(np.full(10, v)) for v in (4.0, 4.0, 4.0)]
    ratio = compare(Sample(ours, DEADLINE_S), Sample(theirs, DEADLINE_S), rounds=3, seed=1)["mean_ms"]
    assert ratio.value == pytest.approx(1.0)
    assert ratio.median == pytest.approx(0.5)
    assert ratio.verdict == "no measurable difference"


def test_one_round_gives_no_interval_and_no_verdict() -> None:
    sample = Sample([tally(np.full(10, 2.0))], DEADLINE_S)
    ratio = compare(sample, Sample([tally(np.full(10, 4.0))], DEADLINE_S), rounds=1, seed=1)["mean_ms"]
    assert ratio.value == pytest.approx(0.5)
    assert (ratio.low, ratio.high, ratio.verdict) == (None, None, "inconclusive")


@pytest.mark.parametrize(("rounds", "verdict"), [(2, "inconclusive"), (5, "inconclusive"), (6, "better")])
def test_none_against_some_is_judged_by_the_rounds(rounds: int, verdict: str) -> None:
    """Two rounds without errors against two with one each prove nothing, although every resample gives 0."""
    clean = Sample([tally(np.full(10, 2.0))] * rounds, DEADLINE_S)
    failing = Sample([tally(np.full(9, 2.0), status_5xx=1)] * rounds, DEADLINE_S)
    ratio = compare(clean, failing, rounds=rounds, seed=1)["errors"]
    assert (ratio.value, ratio.verdict) == (0.0, verdict)
    assert ratio.high is None or ratio.high == pytest.approx(1 - 0.025 ** (1 / rounds))


@pytest.mark.parametrize(
    ("rounds", "verdicts"), [(2, ("inconclusive",) * 2), (5, ("inconclusive",) * 2), (6, ("better", "worse"))]
)
def test_rounds_that_are_all_alike_are_judged_by_their_number(rounds: int, verdicts: tuple[str, str]) -> None:
    """One error per round against two: every resample gives one half, which two rounds do not prove."""
    one = Sample([tally(np.full(9, 2.0), status_5xx=1)] * rounds, DEADLINE_S)
    two = Sample([tally(np.full(8, 2.0), status_5xx=2)] * rounds, DEADLINE_S)
    fewer, more = (compare(a, b, rounds=rounds, seed=1)["errors"] for a, b in ((one, two), (two, one)))
    assert (fewer.value, more.value) == (0.5, 2.0)
    assert (fewer.verdict, more.verdict) == verdicts
    same = compare(one, one, rounds=rounds, seed=1)["errors"]
    assert (same.low, same.high, same.verdict) == (1.0, 1.0, "no measurable difference")
    if rounds == 6:
        reach = 1 - 0.025 ** (1 / rounds)
        assert (fewer.low, fewer.high) == pytest.approx((0.5, 0.5 + 0.5 * reach))
        assert (more.low, more.high) == pytest.approx((2.0 - reach, 2.0))


def test_a_ratio_without_meaning_is_none_not_a_number() -> None:
    clean = Sample([tally(np.full(10, 2.0))] * 2, DEADLINE_S)
    ratios = compare(clean, clean, rounds=2, seed=1)
    assert ratios["errors"] == PairedRatio(None, None, None, None, 2)
    assert ratios["art_per_request"].value is None
    empty = Sample([tally(np.array([]), status_5xx=5)] * 2, DEADLINE_S)
    assert empty.pooled()["mean_ms"] is None
    assert empty.pooled()["errors"] == 10
    assert compare(empty, clean, rounds=2, seed=1)["mean_ms"].verdict == "inconclusive"


def test_the_verdict_follows_the_interval_not_the_value() -> None:
    assert PairedRatio(0.9, 0.85, 0.97, 0.9, 8).verdict == "better"
    assert PairedRatio(0.9, 0.80, 1.01, 0.9, 8).verdict == "no measurable difference"
    assert PairedRatio(1.1, 1.02, 1.2, 1.1, 8).verdict == "worse"


@pytest.mark.parametrize("rounds", [3, 8])
def test_intervals_cover_the_truth_about_as_often_as_they_say(rounds: int) -> None:
    """Rounds differ by a machine-wide factor (paired) and each block by one of its own."""
    rng = np.random.default_rng(7)
    covered = dict.fromkeys(("mean_ms", "p95_ms"), 0)
    for _ in range(60):
        machine = rng.lognormal(0, 0.3, rounds)
        blocks = [[tally(lognormal(rng, 400, m * rng.lognormal(0, 0.05))) for m in machine] for _ in range(2)]
        ours, theirs = (Sample(side, DEADLINE_S) for side in blocks)
        ratios = compare(ours, theirs, rounds=rounds, seed=1)
        for name in covered:
            low, high = ratios[name].low, ratios[name].high
            covered[name] += low is not None and high is not None and low <= 1 <= high
    assert min(covered.values()) >= 54, covered


def test_a_policy_against_itself_shows_no_difference_in_17_of_20_evaluations() -> None:
    shown = dict.fromkeys(METRICS, 0)
    for seed in range(20):
        options = JudgeOptions(rounds=6, warm_up_s=0, measure_s=0.5, interval_s=0.5, seed=seed)
        policies = [Fixed("least_conn", "least_conn"), Fixed("again", "least_conn")]
        evaluation = Judge(QueueTestbed(), policies, SteadyScenario(duration_s=0.5), DEADLINES_S, options).run()
        ratios = evaluation.ratios("again", "least_conn")
        for name, ratio in ratios.items():
            shown[name] += ratio.verdict in ("better", "worse")
    assert max(shown.values()) <= 3, shown


def test_a_planted_slowdown_of_five_percent_is_found_in_16_blocks() -> None:
    options = JudgeOptions(rounds=8, warm_up_s=0, measure_s=4, interval_s=4, seed=3, reference="round_robin")
    policies = [Fixed("round_robin", "round_robin"), Fixed("slower", "random_two")]
    scenario = SteadyScenario("S1", rate_rps=250, speeds=(1.0, 1.0, 1.0))
    testbed = QueueTestbed(slower={"random_two": 1.05})
    evaluation = Judge(testbed, policies, scenario, DEADLINES_S, options).run()
    ratio = evaluation.ratios("slower", "round_robin")["mean_ms"]
    assert ratio.verdict == "worse", ratio
    assert evaluation.ratios("round_robin", "slower")["mean_ms"].verdict == "better"
