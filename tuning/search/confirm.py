"""Confirms the best policies of a sweep: evaluates each of them on several live testbeds in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actuators.contract.script import Scenario
from actuators.errors import DeepSchedError
from actuators.testbed.options import LiveOptions
from actuators.testbed.placement import check_capacity, start_remote_testbed
from envs.heuristics.controllers import Controller, FixedController
from envs.scenarios.lookup import topology_of
from tuning.judging.contenders import baseline_of, learned_controller
from tuning.judging.judge import Judge
from tuning.judging.plan import BlockOptions, JudgeOptions
from tuning.policy.bundle import load_bundle

LEARNED, REFERENCE = "learned", "least_conn"


def confirm(
    bundles: Sequence[Path],
    testbeds: int,
    scenario: Scenario,
    blocks: BlockOptions,
    live: LiveOptions,
    work_dir: Path,
    seed: int,
) -> list[dict[str, Any]]:
    """Evaluates every bundle on each of `testbeds` testbeds.

    Bundles are evaluated one after the other, each on all testbeds in parallel. Testbed n uses seed + n - 1, so
    arrivals differ between testbeds. A policy decides at the interval that it was trained with.

    Returns:
        One `Evaluation.to_json` per bundle and testbed, with the additional keys `bundle` and `testbed` (from 1).

    Raises:
        CapacityError: the cluster cannot hold that many testbeds at once.
        DeepSchedError: a testbed did not start or failed during an evaluation.
    """
    check_capacity(testbeds, len(topology_of([scenario]).servers))
    # The bundles are on the disk of this node, and another one need not see it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    judge = judge_live.options(scheduling_strategy=here)
    evaluations = []
    for bundle in bundles:
        running = [
            judge.remote(
                bundle, scenario, blocks, live, work_dir / bundle.name / f"testbed-{number + 1}", seed + number
            )
            for number in range(testbeds)
        ]
        try:
            results = ray.get(running)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, DeepSchedError) else error) from error
        for number, result in enumerate(results):
            evaluations.append({**result, "bundle": str(bundle), "testbed": number + 1})
    return evaluations


@ray.remote(num_cpus=0, max_retries=3)
def judge_live(
    bundle: Path, scenario: Scenario, blocks: BlockOptions, live: LiveOptions, work_dir: Path, seed: int
) -> dict[str, Any]:
    """The evaluation of a bundle on a live testbed that starts for it, as `Evaluation.to_json`; a Ray task."""
    # All testbeds of a bundle start at once, in folders with one parent.
    label = f"{work_dir.parent.name} {work_dir.name}"
    with start_remote_testbed(topology_of([scenario]), live, work_dir, seed, label=label) as testbed:
        loaded = load_bundle(bundle, testbed.topology)
        problem, method = loaded.problem, loaded.provenance["method"]
        # Bundles of earlier versions do not hold the interval; those were judged at the default.
        interval_s = float(loaded.provenance.get("interval_s", JudgeOptions().interval_s))
        judge = blocks.extended(JudgeOptions, interval_s=interval_s, seed=seed, learned=LEARNED)
        controllers: list[Controller] = [
            FixedController(REFERENCE, "least_conn"),
            baseline_of(problem, method),
            learned_controller(LEARNED, method, loaded.policy(), problem),
        ]
        return Judge(testbed, controllers, scenario, problem.deadlines_s, judge, kind="live").run().to_json()
