"""What an evaluation leaves behind: evaluation.json by its schema, windows.parquet, the terminal table."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actuators.contract import histogram
from actuators.errors import DataError
from tests.support.queue_testbed import Fixed, InverseLatency, QueueTestbed, SteadyScenario
from tuning.judging.blocks import Block
from tuning.judging.contenders import is_heuristic
from tuning.judging.evaluation import SCHEMA_PATH, Evaluation, describe_machine
from tuning.judging.judge import Judge
from tuning.judging.parquet import write_windows
from tuning.judging.plan import JudgeOptions
from tuning.judging.statistics import PairedRatio
from tuning.judging.tables import print_evaluation
from tuning.judging.tally import sides
from tuning.judging.verdicts import METRIC_NAMES, MetricComparison, digits, format_interval, verdicts


def evaluate(rounds: int = 4, learned: str = "learned", **testbed: Any) -> Evaluation:
    controllers = [
        Fixed("round_robin", "round_robin"),
        Fixed("least_conn", "least_conn"),
        InverseLatency(),
        Fixed("learned", "least_conn", (100, 60, 15)),
    ]
    options = JudgeOptions(rounds=rounds, warm_up_s=0.2, measure_s=1.0, interval_s=0.25, seed=11, learned=learned)
    deadlines_s = np.array([0.05, 0.02, 0.02])
    judge = Judge(QueueTestbed(**testbed), controllers, SteadyScenario(), deadlines_s, options,
                  machine=describe_machine())  # fmt: skip
    return judge.run()


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate()


@pytest.fixture(scope="module")
def content(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("run") / "evaluation.json"
    evaluation.write(path)
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def printed(content: dict[str, Any], width: int = 120) -> str:
    out = io.StringIO()
    print_evaluation(content, Console(file=out, width=width))
    return out.getvalue()


def test_the_file_is_what_the_schema_says(content: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA_PATH.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(content, schema)


def test_an_evaluation_with_failures_and_one_of_nothing_fit_the_schema_too() -> None:
    schema = json.loads(SCHEMA_PATH.read_text())
    failing = evaluate(rounds=1, failing_type=0).to_json()
    jsonschema.validate(failing, schema)
    assert failing["policies"]["learned"]["per_type"]["compose"]["mean_ms"] is None
    assert failing["policies"]["learned"]["errors"] > 0
    empty = {**failing, "policies": {}, "blocks": [], "windows": [], "accounting": None, "best_heuristic": None}
    jsonschema.validate(empty, schema)


def test_a_loaded_evaluation_computes_the_same_numbers(evaluation: Evaluation, content: dict[str, Any]) -> None:
    again = Evaluation.from_json(content).to_json()
    assert json.loads(json.dumps(again)) == content
    assert again["policies"]["learned"]["ratios"]["p99_ms"] == pytest.approx(
        evaluation.ratios("learned", "least_conn")["p99_ms"].value
    )


def test_another_format_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="evaluate again"):
        Evaluation.from_json({**content, "format_version": 0})


def test_equal_seeds_give_equal_files(content: dict[str, Any]) -> None:
    again = evaluate().to_json()
    different = {"created", "blocks"}
    left = {name: value for name, value in json.loads(json.dumps(again)).items() if name not in different}
    assert left == {name: value for name, value in content.items() if name not in different}


def test_a_full_disk_leaves_the_old_file(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text("old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        evaluation.write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_parquet_rows_sum_to_what_nginx_counted(
    evaluation: Evaluation, content: dict[str, Any], tmp_path: Path
) -> None:
    rows = write_windows(evaluation, tmp_path / "windows.parquet")
    table = pq.read_table(tmp_path / "windows.parquet").to_pylist()
    assert len(table) == rows == len(content["windows"]) * 9
    assert sum(row["requests"] for row in table) == content["accounting"]["nginx_requests"]
    assert {row["policy"] for row in table} == set(content["policies"])


def test_the_best_heuristic_is_neither_the_reference_nor_the_learned_policy(content: dict[str, Any]) -> None:
    others = {name: content["policies"][name]["art_per_request"] for name in ("round_robin", "inverse_latency")}
    assert content["best_heuristic"]["policy"] == min(others, key=others.__getitem__)
    assert content["best_heuristic"]["paired_rounds"] == 4


def failing_fast(block: Block) -> Block:
    """The same, had every second request been refused at once and every other one been answered in a millisecond."""
    answered = block.tally.latency_counts.sum(axis=1)
    counts = np.zeros_like(block.tally.latency_counts)
    counts[:, histogram.bucket_of(1000)] = answered // 2
    tally = replace(
        block.tally, latency_counts=counts, latency_s_sum=counts.sum(axis=1) * 1e-3,
        errors={"status_5xx": answered - answered // 2},
    )  # fmt: skip
    return replace(block, tally=tally)


@pytest.mark.parametrize("failing", ["round_robin", "inverse_latency"])
def test_the_best_heuristic_is_not_the_one_that_fails_fast(evaluation: Evaluation, failing: str) -> None:
    blocks = (failing_fast(b) if b.planned.policy == failing else b for b in evaluation.blocks)
    judged = replace(evaluation, blocks=tuple(blocks))
    assert judged.values[failing]["mean_ms"] == min(values["mean_ms"] for values in judged.values.values())
    assert judged.best_heuristic() == ({"round_robin", "inverse_latency"} - {failing}).pop()


def test_neither_oracles_nor_other_balancers_are_heuristics() -> None:
    foreign = [
        ("true_times", "expected_delay"), ("central", "central_queue"), ("peak_ewma", "peak_ewma"),
        ("envoy_least_request", "envoy_least_request"), ("nginx:mine.conf", "nginx:/etc/mine.conf"),
        ("stock:plan.json", "least_conn"),
    ]  # fmt: skip
    assert not [name for name, method in foreign if is_heuristic(name, method)]
    assert all(is_heuristic(name, method) for name, method in (("today", "least_conn"), ("ratio", "expected_delay")))
    policies = [Fixed("least_conn", "least_conn"), Fixed("random_two", "random_two"), Fixed("true_times", "least_conn")]
    options = JudgeOptions(rounds=1, warm_up_s=0, measure_s=0.5, interval_s=0.5, seed=3, learned="learned")
    slow, deadlines_s = QueueTestbed(slower={"random_two": 3.0}), np.array([0.05, 0.02, 0.02])
    policies.append(Fixed("learned", "least_conn"))
    assert Judge(slow, policies, SteadyScenario(), deadlines_s, options).run().best_heuristic() == "random_two"


def test_the_table_shows_every_policy_with_its_ratio_and_the_count_on_both_sides(content: dict[str, Any]) -> None:
    text = printed(content)
    for name, policy in content["policies"].items():
        row = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        assert digits(policy["p99_ms"]) in row
        assert f"{policy['requests']:,} requests" in text
    ratio = content["policies"]["learned"]["ratios"]["p99_ms"]
    assert f"{ratio:.2f}×" in text
    assert f"{content['accounting']['nginx_requests']:,} counted by the simulated balancer, none lost" in text
    assert "NGINX" not in text


def test_who_counted_is_told_as_it_was(content: dict[str, Any]) -> None:
    live = {**content, "testbed": "live"}
    counts = content["accounting"]
    assert sides(live) == f"{counts['sent']:,} requests sent, {counts['nginx_requests']:,} counted by NGINX"
    peer = {**content["policies"]["round_robin"], "accounting": {**counts, "uncounted": 1234}}
    silent = {**live, "accounting": {**counts, "uncounted": 1234}, "policies": {**content["policies"], "envoy": peer}}
    assert sides(silent).endswith(", 1,234 sent to envoy, which keep no count that we can read")


def test_every_row_that_is_not_won_is_said_so_against_the_reference_and_the_best_of_the_others(
    content: dict[str, Any],
) -> None:
    text = " ".join(printed(content, width=300).split())
    found = verdicts(content)
    assert list(found) == [
        "learned against least_conn",
        f"learned against {content['best_heuristic']['policy']}, the best of the other heuristics",
    ]
    for heading, rows in found.items():
        assert heading in text
        assert [row.metric for row in rows] == list(METRIC_NAMES)
        for row in rows:
            assert row.sentence in text
            assert (": better," in row.sentence) == (row.verdict == "better")


def test_goodput_is_a_column_and_told_by_type(content: dict[str, Any]) -> None:
    text = " ".join(printed(content, width=300).split())
    policies = content["policies"]
    assert f"{100 * (1 - policies['learned']['miss_ratio']):.2f} %" in text
    assert f"late {policies['learned']['ratios']['miss_ratio']:.2f}×" in text
    for request_type, values in policies["learned"]["per_type"].items():
        told = next(line for line in printed(content, width=300).splitlines() if line.startswith(f"  {request_type}: "))
        assert f"learned {100 * (1 - values['miss_ratio']):.2f} %" in told


def test_a_sentence_of_goodput_tells_what_its_ratio_is_of() -> None:
    def sentence(values: tuple[float, float], ratio: PairedRatio) -> str:
        return MetricComparison("miss_ratio", "learned", "least_conn", values, ratio).sentence

    better = sentence((0.015, 0.035), PairedRatio(0.43, 0.34, 0.53, 0.4, 8))
    told = "goodput: better, 98.50 % against 96.50 %, late requests 0.43× (95 % interval 0.34 to 0.53)."
    assert better == told
    none = PairedRatio(None, None, None, None, 8)
    assert sentence((0.0, 0.0), none) == "goodput: 100.00 % with either policy."


def test_one_round_claims_nothing() -> None:
    content = evaluate(rounds=1).to_json()
    assert all(interval is None for interval in content["policies"]["learned"]["intervals"].values())
    text = printed(content)
    assert ": better" not in text
    assert "inconclusive" in text


def comparison(ratio: PairedRatio, values: tuple[float, float] = (1.0, 1.0)) -> MetricComparison:
    return MetricComparison("p99_ms", "learned", "least_conn", values, ratio)


def test_sentences_say_no_more_than_the_interval() -> None:
    assert comparison(PairedRatio(0.8, 0.7, 0.9, 0.8, 8)).sentence == "p99: better, 0.80× (95 % interval 0.70 to 0.90)."
    equal = comparison(PairedRatio(0.8, 0.7, 1.01, 0.8, 8)).sentence
    assert equal == "p99: no measurable difference, 0.80× (95 % interval 0.70 to 1.01)."
    assert comparison(PairedRatio(1.2, 1.1, 1.3, 1.2, 8)).sentence.startswith("p99: worse, 1.20×")
    assert comparison(PairedRatio(0.5, None, None, 0.5, 1)).sentence == "p99: inconclusive; 0.50× from one round."
    assert "1.00 ms against 1.00 ms" in comparison(PairedRatio(None, None, None, None, 8)).sentence
    neither = MetricComparison("errors", "learned", "least_conn", (0, 0), PairedRatio(None, None, None, None, 8))
    assert neither.sentence == "errors: none with either policy."


def test_an_interval_end_is_never_rounded_onto_one() -> None:
    assert format_interval(PairedRatio(0.97, 0.95, 0.9987, 0.97, 8)) == "0.950 – 0.999"
    assert format_interval(PairedRatio(0.97, 0.95, 1.0012, 0.97, 8)) == "0.950 – 1.001"
    assert format_interval(PairedRatio(0.85, 0.8, 0.9, 0.85, 8)) == "0.80 – 0.90"
