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
            "began_s": 1.8e9 + 30.0 * np.arange(count),
            "ended_s": 1.8e9 + 30.0 * np.arange(count) + 50.0,
            "error": "",
        }
    ).sort_values("score", ascending=False)


def finalists() -> pd.DataFrame:
    """Two settings with three fresh seeds each: the second is the better one, though the search said otherwise."""
    return pd.DataFrame(
        {
            "trial": ["trial-1"] * 3 + ["trial-2"] * 3,
            "training": [f"trial-again-{number}" for number in range(6)],
            "searched": [0.3] * 3 + [0.2] * 3,
            "seed": [1, 2, 3] * 2,
            "score": [0.1, 0.2, 0.0, 0.18, 0.22, 0.2],
            "bundle": ["there"] * 6,
            "error": [""] * 6,
        }
    )
