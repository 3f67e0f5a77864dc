"""The numbers of token buckets, found by search over training draws of family H."""

from __future__ import annotations

import numpy as np
import optuna

from actuators.contract.topology import Topology
from envs.environment.entry import WINDOW_S, EntryTask
from envs.environment.rates import RateNumbers
from envs.scenarios.lookup import scenario
from tuning.learning.entry import learned_goodput

MIMD = RateNumbers(late_share=0.01, cut=0.95**WINDOW_S, growth=1.01**WINDOW_S)
"""As TopFull's own rule without learning: 5 % less per second while the 99th percentile is late, else 1 % more."""
AIMD = RateNumbers(late_share=0.104, cut=0.767, rise=0.117, most=1.154, burst_s=0.024)
"""What `searched` found with seed 1."""
TRIALS, DRAWS, FIRST = 80, 64, 1000


def searched(topology: Topology, seed: int) -> RateNumbers:
    """The best of 80 trials (Optuna's TPE) on 64 draws, by U."""
    scripts = [scenario("H").script(topology, FIRST + index) for index in range(DRAWS)]

    def goodput(trial: optuna.Trial) -> float:
        task = EntryTask(topology, _suggested(trial))
        return float(np.mean(learned_goodput(task, None, scripts, threads=2).shares()))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True))
    study.optimize(goodput, n_trials=TRIALS)
    return RateNumbers(growth=1.0, **study.best_params)


def _suggested(trial: optuna.Trial) -> RateNumbers:
    return RateNumbers(
        late_share=trial.suggest_float("late_share", 0.02, 0.5, log=True),
        cut=trial.suggest_float("cut", 0.3, 0.97),
        rise=trial.suggest_float("rise", 0.003, 0.4, log=True),
        most=trial.suggest_float("most", 1.0, 3.0),
        burst_s=trial.suggest_float("burst_s", 0.02, 0.6, log=True),
    )
