"""Fits scaler and Gaussian mixture to samples; K by BIC or ICL. Apart from `envs.encoding`: it needs scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from actuators.errors import DataError
from actuators.topology import Topology
from actuators.window import Window
from envs.encoding import Encoder, EncoderOptions
from envs.observation import Observer, sample_names, samples_of

FloatArray = NDArray[np.float64]

MIN_SAMPLES_PER_CLUSTER = 5


def fit_from_windows(
    windows: Sequence[Window], topology: Topology, deadlines_s: FloatArray, options: EncoderOptions, seed: int
) -> Encoder:
    """Scaler and mixture from the usable windows of an observation phase. Raises DataError when too few."""
    observer = Observer(topology, deadlines_s, None)
    features = np.array([observer.observe_window(window).features for window in windows if window.usable])
    names = sample_names(topology, options.kind)
    samples = samples_of(features, options.kind).reshape(-1, len(names)) if len(features) else np.zeros((0, len(names)))
    return fit_encoder(samples, names, options, seed)


def fit_encoder(samples: FloatArray, names: Sequence[str], options: EncoderOptions, seed: int) -> Encoder:
    """Fits scaler and mixture to samples ``[n, D]``; K is the tried one with the lowest criterion.

    Constant features get scale 1 and so add nothing. Samples with a nan are left out.

    Raises:
        DataError: fewer than 5 usable samples per cluster of the smallest K.
    """
    samples = samples[np.isfinite(samples).all(axis=1)]
    allowed = [k for k in options.clusters if k * MIN_SAMPLES_PER_CLUSTER <= len(samples)]
    if not allowed:
        raise DataError(
            f"{len(samples)} samples for {min(options.clusters)} clusters",
            where="encoder",
            remedy="observe longer or try fewer clusters",
        )
    center, spread = samples.mean(axis=0), samples.std(axis=0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    scaled = np.clip((samples - center) / scale, -10.0, 10.0)
    fits = {k: _fit(scaled, k, options, seed) for k in allowed}
    bic = {k: float(mixture.bic(scaled)) for k, mixture in fits.items()}
    score = bic if options.criterion == "bic" else {k: bic[k] + 2 * _entropy(fits[k], scaled) for k in fits}
    best = fits[min(score, key=lambda k: score[k])]
    cholesky = best.precisions_cholesky_
    if options.covariance == "diag":
        cholesky = np.einsum("kd,de->kde", cholesky, np.eye(cholesky.shape[1]))
    return Encoder(options.kind, tuple(names), center, scale, best.weights_, best.means_, cholesky, bic)


def _entropy(mixture: GaussianMixture, scaled: FloatArray) -> float:
    """Of the posteriors, summed over the samples: BIC plus twice it is ICL (Biernacki, Celeux & Govaert, 2000)."""
    posterior = mixture.predict_proba(scaled)
    return float(-(posterior * np.log(np.maximum(posterior, 1e-300))).sum())


def _fit(scaled: FloatArray, clusters: int, options: EncoderOptions, seed: int) -> GaussianMixture:
    mixture = GaussianMixture(
        clusters, covariance_type=options.covariance, n_init=options.restarts, reg_covar=1e-3, random_state=seed
    )
    with warnings.catch_warnings():
        # Not converging only means a slightly less likely mixture; BIC judges it like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(scaled)
