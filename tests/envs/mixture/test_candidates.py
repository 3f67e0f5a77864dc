"""How many clusters: BIC describes the samples best, ICL asks for clusters that are apart.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import numpy as np
import pytest

from envs.mixture.fit import candidates, fit_encoder, fit_mixture, held_out_novelty
from envs.observation.encoder import EncoderOptions


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


def test_clusters_that_are_apart_are_stable_and_too_many_are_not() -> None:
    generator = np.random.default_rng(3)
    samples = np.concatenate([generator.normal(at, 0.3, (150, 2)) for at in (-5.0, 0.0, 5.0)])
    options = EncoderOptions(clusters=(2, 3, 6))
    found = {candidate.clusters: candidate for candidate in candidates(samples, options, seed=1)}
    assert found[3].stability > 0.99
    assert found[6].stability < 0.8
    assert found[3].bic < found[2].bic
    assert all(candidate.icl >= candidate.bic for candidate in found.values())
    assert found == {candidate.clusters: candidate for candidate in candidates(samples, options, seed=1)}


def test_unstable_numbers_of_clusters_can_be_refused() -> None:
    generator = np.random.default_rng(4)
    cloud = np.concatenate([generator.normal(0.0, 0.6, (200, 2)), generator.normal(0.0, 1.5, (200, 2))])
    apart = np.concatenate([cloud - 6, cloud + 6])
    picky = EncoderOptions(clusters=(2, 4, 5), least_stability=0.9)
    assert fit_encoder(apart, ("x", "y"), picky.model_copy(update={"least_stability": 0.0}), seed=1).clusters > 2
    assert fit_encoder(apart, ("x", "y"), picky, seed=1).clusters == 2
    none = EncoderOptions(clusters=(5, 6), least_stability=1.0)
    assert fit_encoder(apart, ("x", "y"), none, seed=1).clusters in (5, 6)


def test_the_likelihood_is_scikit_learns() -> None:
    generator = np.random.default_rng(5)
    samples = generator.normal(0.0, 1.0, (300, 2))
    options = EncoderOptions(clusters=(2,))
    encoder = fit_encoder(samples, ("x", "y"), options, seed=1)
    scaled = encoder.standardise(samples)
    theirs = fit_mixture(scaled, 2, options, 1).score_samples(scaled)
    assert encoder.log_likelihood(samples) - np.log(2 * np.pi) == pytest.approx(theirs)


@pytest.mark.parametrize(("count", "low", "high"), [(2000, 0.9, 1.2), (45, 1.2, 20.0)])
def test_few_samples_underrate_how_wide_their_clusters_are(count: int, low: float, high: float) -> None:
    generator = np.random.default_rng(6)
    samples = generator.normal(0.0, 1.0, (count, 8))
    options = EncoderOptions(clusters=(2,))
    assert low < held_out_novelty(samples, tuple("abcdefgh"), options, seed=1) < high
