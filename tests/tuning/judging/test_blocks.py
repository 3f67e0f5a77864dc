"""An evaluation that is interrupted: finished blocks are kept, a full disk is one line, the rest goes on as planned."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.window import Window
from actuators.errors import DataError
from tests.support.queue_testbed import Fixed, QueueTestbed, SteadyScenario
from tuning.judging.agreement import agreement, within
from tuning.judging.blocks import Journal
from tuning.judging.evaluation import Evaluation
from tuning.judging.judge import Judge
from tuning.judging.parquet import result_rows, write_results
from tuning.judging.plan import JudgeOptions
from tuning.judging.statistics import PairedRatio

OPTIONS = JudgeOptions(rounds=2, warm_up_s=0.2, measure_s=0.6, interval_s=0.2, seed=3, seeds=2)


def judge(journal: Journal, seen: list[int] | None = None) -> Judge:
    def make(seed: int) -> list[Fixed]:
        if seen is not None:
            seen.append(seed)
        return [Fixed("round_robin", "round_robin"), Fixed("least_conn", "least_conn", (5, 3, 1))]

    return Judge(
        QueueTestbed(), make(OPTIONS.seed), SteadyScenario(), np.array([0.05, 0.02, 0.02]), OPTIONS,
        finished=journal.read(), keep=journal.append, remake=make, kind="simulated",
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    path = tmp_path_factory.mktemp("whole") / "blocks.jsonl"
    return path, judge(Journal(path)).run()


def test_blocks_come_back_from_the_file_as_they_were(whole: tuple[Path, Evaluation]) -> None:
    path, evaluation = whole
    read = Journal(path).read()
    assert [block.to_json() for block in read] == [block.to_json() for block in evaluation.blocks]
    assert [block.windows for block in read] == [block.windows for block in evaluation.blocks]


def test_what_is_missing_is_run_again_and_nothing_else(whole: tuple[Path, Evaluation], tmp_path: Path) -> None:
    path, evaluation = whole
    lines = path.read_text().splitlines(keepends=True)
    broken = tmp_path / "blocks.jsonl"
    broken.write_text("".join(lines[:5]) + lines[5][:300])
    resumed = judge(Journal(broken)).run()
    assert [block.planned for block in resumed.blocks] == [block.planned for block in evaluation.blocks]
    assert [b.to_json() for b in resumed.blocks[:5]] == [b.to_json() for b in evaluation.blocks[:5]]
    assert [b.tally.sent.tolist() for b in resumed.blocks] == [b.tally.sent.tolist() for b in evaluation.blocks]
    assert len(broken.read_text().splitlines()) == len(lines) == 8


def test_a_line_that_is_no_block_is_named(tmp_path: Path) -> None:
    (tmp_path / "blocks.jsonl").write_text('{"round": 0}\n')
    with pytest.raises(DataError, match=r"blocks\.jsonl:1"):
        Journal(tmp_path / "blocks.jsonl").read()


def test_a_full_disk_is_one_line_that_says_how_to_go_on(whole: tuple[Path, Evaluation]) -> None:
    with pytest.raises(DataError, match="No space left on device") as caught:
        Journal(Path("/dev/full")).append(whole[1].blocks[0])
    assert "--resume" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_policies_start_anew_with_each_seed_and_rounds_are_numbered_through(tmp_path: Path) -> None:
    seen: list[int] = []
    evaluation = judge(Journal(tmp_path / "blocks.jsonl"), seen).run()
    assert seen == [3, 4]
    assert [(b.planned.round, b.planned.run_seed) for b in evaluation.blocks[::2]] == [(0, 3), (1, 3), (2, 4), (3, 4)]
    content = evaluation.to_json()
    assert (content["rounds"], content["seeds"], content["testbed"]) == (4, 2, "simulated")
    assert content["policies"]["round_robin"]["paired_rounds"] == 4


def test_every_policy_type_and_metric_is_a_row(whole: tuple[Path, Evaluation], tmp_path: Path) -> None:
    content = whole[1].to_json()
    rows = list(result_rows(content))
    assert write_results([content], tmp_path / "evaluation.parquet") == len(rows)
    assert {row["request_type"] for row in rows} == {"all", *content["deadlines_ms"]}
    (jain,) = [row for row in rows if row["metric"] == "jain_utilisation" and row["policy"] == "least_conn"]
    assert 1 / 3 < jain["value"] <= 1
    (p99,) = [r for r in rows if (r["policy"], r["request_type"], r["metric"]) == ("round_robin", "all", "p99_ms")]
    assert [p99["low"], p99["high"]] == content["policies"]["round_robin"]["intervals"]["p99_ms"]


def test_another_number_is_found_and_live_ratios_may_differ_within_their_intervals(
    whole: tuple[Path, Evaluation],
) -> None:
    content = json.loads(json.dumps(whole[1].to_json()))
    changed = json.loads(json.dumps(content))
    changed["policies"]["round_robin"]["p99_ms"] += 1e-9
    found = agreement("steady", content, changed)
    assert len(found.differences) == 1
    assert "round_robin.p99_ms" in found.sentence
    live = [{**one, "testbed": "live"} for one in (content, changed)]
    agreed = agreement("steady", *live)
    assert (agreed.differences, agreed.compared, agreed.unknown, agreed.agrees) == ((), 2, 0, True)
    assert not within(PairedRatio(0.8, 0.78, 0.82, 0.8, 8), PairedRatio(0.9, 0.88, 0.92, 0.9, 8))
    assert within(PairedRatio(0.8, 0.7, 0.9, 0.8, 8), PairedRatio(0.9, 0.8, 1.0, 0.9, 8))
    assert within(PairedRatio(0.8, None, None, 0.8, 1), PairedRatio(0.9, 0.8, 1.0, 0.9, 8)) is None


def test_a_block_is_spoiled_by_a_large_scheduling_delay() -> None:
    """The load engine runs ahead of everything else and would not notice."""
    strict = OPTIONS.model_copy(update={"max_core_wait_ms": 1e-9, "rounds": 1, "seeds": 1, "repeats": 1})
    policies = [Fixed("round_robin", "round_robin"), Fixed("least_conn", "least_conn")]
    for kind, spoiled in (("live", 3), ("simulated", 0)):
        testbed = SlowQueues()
        blocks = Judge(testbed, policies, SteadyScenario(), np.full(3, 0.05), strict, kind=kind).run().blocks
        assert sum("scheduling delay" in flag for block in blocks for flag in block.flags) == spoiled
        assert all((block.core_wait_ms is None) == (kind == "simulated") for block in blocks)


class SlowQueues(QueueTestbed):
    """Takes a little real time, as live testbeds do."""

    def advance(self, interval_s: float) -> Window:
        time.sleep(0.02)
        return super().advance(interval_s)
