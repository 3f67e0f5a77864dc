"""Random kills while live testbeds train one policy: it ends with all its steps, and nothing is left.

Three kills in a test run; `DEEPSCHED_DRILL_KILLS=20 DEEPSCHED_DRILL_STEPS=1400 pytest tests/tuning/live/test_drill.py`
is the full drill of about ten minutes. `DEEPSCHED_DRILL_RECORD=FILE` keeps what was killed and what was said about it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from actuators.testbed.options import LiveOptions
from envs.scenarios.lookup import scenario
from rayjobs.runs.local_ray import local_ray
from tests.support.orphans import SESSION, processes_with, wait_gone
from tests.support.problems import TOPOLOGY, problem
from tuning.live.testbeds import Testbeds
from tuning.live.training import ParallelTraining
from tuning.options import AlgorithmOptions, ParallelOptions, TrainingOptions

pytestmark = [pytest.mark.ray, pytest.mark.nginx, pytest.mark.slow]
KILLS = int(os.environ.get("DEEPSCHED_DRILL_KILLS", "3"))
STEPS = int(os.environ.get("DEEPSCHED_DRILL_STEPS", "48"))
RECORD = os.environ.get("DEEPSCHED_DRILL_RECORD")
INTERVAL_S = 0.5
BATCH_STEPS = 8
VICTIMS = (
    "ray::ArrayEnvRunner", "ray::Conductor", "ray::LoadGenerator", "ray::SocialNetworkNode",
    "nginx: master", "gen_load", "actuators.social_network",
)  # fmt: skip


class Killer(threading.Thread):
    """Kills one random process, each kind in turn in random order, evenly spread over the training's iterations."""

    def __init__(self, run: ParallelTraining, folder: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self._run_, self._folder = run, folder
        self._generator = np.random.default_rng(seed)
        # The kinds that `test_parallel_live` does not kill come first, so that a short drill has them.
        self._waiting = ["ray::Conductor", "ray::ArrayEnvRunner"]
        self.killed: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        apart = max(STEPS // BATCH_STEPS // (KILLS + 1), 1)
        due = 1
        while len(self.killed) < KILLS and not self.over.wait(0.1):
            if len(self._run_.rows) >= due and self._kill():
                due = len(self._run_.rows) + apart

    def _kill(self) -> bool:
        if not self._waiting:
            self._waiting = [str(word) for word in self._generator.permutation(VICTIMS)]
        word = self._waiting[-1]
        # NGINX overwrites its environment with its title; its command line still shows the folder it runs in.
        found = {**processes_with(SESSION), **processes_with(f"{self._folder}/")}
        pids = [pid for pid, command in found.items() if word in command and "guardian" not in command]
        if not pids:
            return False
        try:
            os.kill(int(self._generator.choice(pids)), signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.killed.append(self._waiting.pop())
        return True


def keep_record(run: ParallelTraining, killer: Killer, said: list[str], seconds: float) -> None:
    if RECORD:
        steps, faults = (run.rows[-1].step, run.rows[-1].faults) if run.rows else (0, 0)
        told = {"killed": killer.killed, "steps": steps, "wanted": STEPS, "faults": faults, "seconds": seconds}
        Path(RECORD).write_text(json.dumps({**told, "said": said}, indent=1))


def test_training_ends_with_all_its_steps_whatever_is_killed(tmp_path: Path) -> None:
    algorithm = AlgorithmOptions(batch_steps=BATCH_STEPS, minibatch_steps=BATCH_STEPS, epochs=1)
    options = ParallelOptions(testbeds=2, env_runners=1, steps=STEPS, episode_steps=8, algorithm=algorithm)
    said: list[str] = []
    run = ParallelTraining(problem(), TrainingOptions(interval_s=INTERVAL_S), options, tmp_path, 1, say=said.append)
    killer = Killer(run, tmp_path, seed=1)
    played = scenario("demo", duration_s=3600.0, work_scale=4.0)
    began_s = time.monotonic()
    with local_ray(testbeds=2, cpus=3):
        with Testbeds.live(2, TOPOLOGY, LiveOptions(), tmp_path / "testbeds", 1, "least_conn") as testbeds:
            killer.start()
            try:
                run.run(testbeds, played)
            finally:
                killer.over.set()
                killer.join()
                keep_record(run, killer, said, time.monotonic() - began_s)
        assert wait_gone(f"{tmp_path}/") == {}
    assert run.rows[-1].step >= STEPS
    assert len(killer.killed) == KILLS, killer.killed
    assert said, "nothing was said about the kills"
