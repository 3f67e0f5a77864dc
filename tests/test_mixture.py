"""How many clusters: BIC describes the samples best, ICL asks for clusters that are apart."""

from __future__ import annotations

import numpy as np

from envs.encoding import EncoderOptions
from envs.mixture import fit_encoder


def clusters_by(criterion: str, samples: np.ndarray) -> int:
    options = EncoderOptions.model_validate({"clusters": (1, 2, 3, 4), "criterion": criterion})
    return fit_encoder(samples, ("x", "y"), options, seed=1).clusters


def test_both_find_clusters_that_are_apart() -> None:
    generator = np.random.default_rng(1)
    samples = np.concatenate([generator.normal(at, 0.3, (200, 2)) for at in (-5.0, 0.0, 5.0)])
    assert clusters_by("bic", samples) == clusters_by("icl", samples) == 3


def test_icl_does_not_split_one_cloud_that_is_no_gaussian() -> None:
    generator = np.random.default_rng(2)
    wide = np.concatenate([generator.normal(0.0, 0.6, (300, 2)), generator.normal(0.0, 1.5, (300, 2))])
    assert clusters_by("bic", wide) == 2
    assert clusters_by("icl", wide) == 1
