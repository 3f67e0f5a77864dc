"""The mixture: K by BIC, posteriors equal to scikit-learn's, novelty, degenerate data, files without pickle.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from actuators.errors import BundleError, DataError
from envs.mixture.fit import fit_encoder
from envs.observation.encoder import Encoder, EncoderOptions

CENTERS = np.array([[0.0, 0.0, 0.0], [6.0, 0.0, 1.0], [0.0, 8.0, -1.0]])
NAMES = ("a", "b", "c")


def three_clusters(count: int = 300, seed: int = 1) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return CENTERS[generator.integers(3, size=count)] + generator.normal(0, 0.7, (count, 3))


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_bic_finds_the_three_clusters(covariance: str) -> None:
    options = EncoderOptions.model_validate({"covariance": covariance})
    encoder = fit_encoder(three_clusters(), NAMES, options, seed=0)
    assert encoder.clusters == 3
    assert set(encoder.bic) == {2, 3, 4, 5, 6}
    posterior, novelty = encoder.encode(CENTERS)
    assert posterior.max(axis=1) == pytest.approx(np.ones(3), abs=1e-3)
    assert len(set(posterior.argmax(axis=1))) == 3
    assert (novelty < 0.5).all()


def test_posterior_equals_scikit_learn() -> None:
    samples = three_clusters()
    encoder = fit_encoder(samples, NAMES, EncoderOptions(clusters=(3,), covariance="full", restarts=1), seed=4)
    reference = GaussianMixture(3, covariance_type="full", n_init=1, reg_covar=1e-3, random_state=4)
    reference.fit(encoder.standardise(samples))
    expected = reference.predict_proba(encoder.standardise(samples))
    assert encoder.encode(samples)[0] == pytest.approx(expected, abs=1e-9)


def test_novelty_follows_the_three_sigma_rule() -> None:
    encoder = fit_encoder(three_clusters(3000), NAMES, EncoderOptions(clusters=(3,)), seed=0)
    _, seen = encoder.encode(three_clusters(3000, seed=2))
    assert (seen > 1).mean() < 0.01
    _, strange = encoder.encode(np.array([[30.0, 30.0, 30.0], [3.0, 4.0, 0.0]]))
    assert (strange > 1).all()


def test_a_constant_feature_and_nan_rows_do_no_harm() -> None:
    samples = np.column_stack([three_clusters(), np.full(300, 7.0)])
    samples[5] = np.nan
    encoder = fit_encoder(samples, (*NAMES, "constant"), EncoderOptions(), seed=0)
    posterior, novelty = encoder.encode(samples[:5])
    assert np.isfinite(posterior).all()
    assert np.isfinite(novelty).all()


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(DataError, match="7 samples for 2 clusters"):
        fit_encoder(np.ones((7, 3)), NAMES, EncoderOptions(), seed=0)


def test_same_seed_same_encoder() -> None:
    first, second = (fit_encoder(three_clusters(), NAMES, EncoderOptions(), seed=3) for _ in range(2))
    assert np.array_equal(first.means, second.means)
    assert np.array_equal(first.precisions_cholesky, second.precisions_cholesky)


def test_saved_and_loaded_it_encodes_the_same(tmp_path: Path) -> None:
    encoder = fit_encoder(three_clusters(), NAMES, EncoderOptions(covariance="full"), seed=0)
    encoder.save(tmp_path / "encoder.npz")
    loaded = Encoder.load(tmp_path / "encoder.npz")
    assert loaded.names == NAMES
    assert loaded.bic == encoder.bic
    assert np.array_equal(loaded.encode(CENTERS)[0], encoder.encode(CENTERS)[0])


@pytest.mark.parametrize("content", [b"", b"not an archive"])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "encoder.npz").write_bytes(content)
    with pytest.raises(BundleError, match="not an encoder"):
        Encoder.load(tmp_path / "encoder.npz")


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "encoder.npz", format_version=np.array([{"evil": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BundleError):
        Encoder.load(tmp_path / "encoder.npz")
