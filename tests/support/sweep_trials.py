"""The table of a sweep whose result is known."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tuning.search.space import Range

PATHS = ["training.algorithm.learning_rate", "encoder.covariance"]
SPACE = {PATHS[0]: Range(low=1e-4, high=1e-2, log=True), PATHS[1]: ("diag", "full")}


def trials(count: int) -> pd.DataFrame:
    """Trials whose score depends on the learning rate only."""
    generator = np.random.default_rng(1)
    rates = 10 ** generator.uniform(-4, -2, count)
    return pd.DataFrame(
        {
            "trial": [f"trial-{index}" for index in range(count)],
            PATHS[0]: rates,
            PATHS[1]: generator.choice(["diag", "full"], count),
            "score": -((np.log10(rates) + 3) ** 2),
            "art_per_request": 0.1,
            "bic": generator.normal(size=count),
            "clusters": 3,
            "steps_trained": 100,
            "seconds": 1.0,
            "error": "",
        }
    ).sort_values("score", ascending=False)
