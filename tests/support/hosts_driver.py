"""The driver of test_namespaces: runs on the head's host, prints one JSON line per phase, waits for a line between."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import ray

from actuators.testbed.options import LiveOptions
from envs.heuristics.controllers import FixedController, PolicyController
from envs.scenarios.lookup import scenario
from tests.support.problems import TOPOLOGY, problem
from tuning.judging.judge import Judge
from tuning.judging.plan import JudgeOptions
from tuning.live.conductor import ConductedTestbed
from tuning.live.testbeds import Testbeds, running_testbeds
from tuning.live.training import ParallelTraining
from tuning.options import AlgorithmOptions, ParallelOptions, TrainingOptions
from tuning.policy.learned import LearnedPolicy

SCENARIO = scenario("demo", duration_s=600.0, work_scale=4.0)
STEPS, DURING = 8, 32


def say(**values: Any) -> None:
    print("JSON " + json.dumps(values), flush=True)


def main(address: str, folder: Path) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    algorithm = AlgorithmOptions(batch_steps=STEPS, minibatch_steps=STEPS, epochs=1)
    options = ParallelOptions(testbeds=1, env_runners=0, steps=STEPS, episode_steps=STEPS, algorithm=algorithm)
    with Testbeds.live(1, TOPOLOGY, LiveOptions(), folder / "testbeds", 1, "least_conn") as testbeds:
        training = ParallelTraining(problem(), TrainingOptions(interval_s=0.5), options, folder, 1)
        net = training.run(testbeds, SCENARIO)
        ((name, conductor),) = testbeds.conductors.items()
        testbed = ConductedTestbed(conductor, name)
        policy = PolicyController("learned", "least_conn", LearnedPolicy(net, problem()), problem().observer())
        judging = JudgeOptions(rounds=1, warm_up_s=0.5, measure_s=2.0, interval_s=0.5, learned="learned")
        controllers = [FixedController("least_conn", "least_conn"), policy]
        evaluation = Judge(testbed, controllers, SCENARIO, problem().deadlines_s, judging).run()
        (row,) = running_testbeds()
        say(
            trained=training.rows[-1].step,
            blocks=len(evaluation.blocks),
            requests=int(sum(block.tally.answered.sum() for block in evaluation.blocks)),
            servers=list(testbed.topology.servers),
            places=row["places"],
        )
        for seed, steps in ((2, DURING), (3, DURING), (4, STEPS)):
            sys.stdin.readline()
            changed = options.model_copy(update={"steps": steps})
            again = ParallelTraining(problem(), TrainingOptions(interval_s=0.5), changed, folder / f"{seed}", seed)
            again.run(testbeds, SCENARIO)
            (row,) = running_testbeds()
            say(trained=again.rows[-1].step, wanted=steps, builds=row["builds"], places=row["places"])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
