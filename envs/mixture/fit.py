"""Fits scaler and Gaussian mixture to samples, chooses K by BIC or ICL and rates the stability of the clusters.

Apart from `envs.observation.encoder`, which steering imports, because it needs scikit-learn. That is imported where it
is used: its import takes seconds, and most processes that know this module fit nothing.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import DataError
from envs.observation.encoder import SIGMA_RULE, Encoder, EncoderOptions
from envs.observation.features import FEATURES_VERSION, LEAST_SPREAD, FeaturesVersion
from envs.observation.observer import Observer, sample_names, samples_of

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

MIN_SAMPLES_PER_CLUSTER = 5
HELD_OUT_PARTS = 5
FARTHEST = 5.0
"""Robust deviations from the median beyond which a sample counts as this far away."""
STABILITY_FITS = 6
"""Number of fits to compare pairwise, each with another seed and resample: 15 pairs."""


@dataclass(frozen=True)
class Candidate:
    """The criteria of one number of clusters.

    Attributes:
        bic, icl: lower is better; ICL adds twice the entropy of the posteriors.
        stability: mean adjusted Rand index (Hubert & Arabie, 1985) between the labels of the same samples by fits with
            other seeds and resamples: 1 for identical clusters, 0 for agreement by chance.
    """

    clusters: int
    bic: float
    icl: float
    stability: float


def fit_from_windows(
    windows: Sequence[Window], topology: Topology, deadlines_s: FloatArray, options: EncoderOptions, seed: int
) -> Encoder:
    """Scaler and mixture from the usable windows of an observation phase. Raises DataError when too few."""
    names = sample_names(topology, options.kind)
    samples = window_samples(windows, topology, deadlines_s, options.kind, options.features_version)
    return fit_encoder(samples, names, options, seed)


def window_samples(
    windows: Sequence[Window],
    topology: Topology,
    deadlines_s: FloatArray,
    kind: str,
    version: FeaturesVersion = FEATURES_VERSION,
) -> FloatArray:
    """Samples ``[n, D]`` of the usable windows, from which a mixture is fitted (`samples_of`)."""
    observer = Observer(topology, deadlines_s, None, features_version=version)
    features = np.array([observer.observe_window(window).features for window in windows if window.usable])
    size = len(sample_names(topology, kind))
    return samples_of(features, kind).reshape(-1, size) if len(features) else np.zeros((0, size))


def fit_encoder(samples: FloatArray, names: Sequence[str], options: EncoderOptions, seed: int) -> Encoder:
    """Fits scaler and mixture to samples ``[n, D]``; K is the one with the lowest criterion.

    Constant features get scale 1, so that they have no effect. Samples with a nan are left out. With
    `least_stability`, K is chosen among those that reach it, or the most stable one when none does. With features of
    version 2 no scale and no cluster is narrower than counting noise (`LEAST_SPREAD`), and single far samples count
    as near ones.

    Raises:
        DataError: fewer than 5 usable samples per cluster of the smallest K.
    """
    samples, allowed = _usable(samples, options)
    least = least_spread(names, options.features_version)
    samples = winsorised(samples, least)
    center, scale = scaler(samples, least)
    scaled = _scaled(samples, center, scale)
    fits = {k: fit_mixture(scaled, k, options, seed) for k in allowed}
    bic = {k: float(mixture.bic(scaled)) for k, mixture in fits.items()}
    score = bic if options.criterion == "bic" else {k: bic[k] + 2 * _entropy(fits[k], scaled) for k in fits}
    chosen = min(_stable(scaled, allowed, options, seed), key=lambda k: score[k])
    best = fits[chosen]
    return Encoder(
        options.kind, tuple(names), center, scale, best.weights_, best.means_,
        precisions_cholesky(best, least / scale), bic, options.features_version,
    )  # fmt: skip


def held_out_novelty(samples: FloatArray, names: Sequence[str], options: EncoderOptions, seed: int) -> float:
    """Novelty below which 99.73 % of held-out samples stay, by five-fold cross-validation over samples ``[n, D]``.

    About 1 with many samples; larger with few, because clusters fitted to few samples are too narrow. Raises
    DataError like `fit_encoder`.
    """
    samples, _ = _usable(samples, options)
    part = np.arange(len(samples)) * HELD_OUT_PARTS // len(samples)
    novelties = [
        fit_encoder(samples[part != held_out], names, options, seed).encode(samples[part == held_out])[1]
        for held_out in range(HELD_OUT_PARTS)
    ]
    return float(np.quantile(np.concatenate(novelties), SIGMA_RULE))


def candidates(
    samples: FloatArray, options: EncoderOptions, seed: int, names: Sequence[str] = ()
) -> tuple[Candidate, ...]:
    """BIC, ICL and stability of every K that the samples ``[n, D]`` allow. Raises DataError like `fit_encoder`.

    Args:
        names: of the features, as `fit_encoder` gets them.
    """
    samples, allowed = _usable(samples, options)
    least = least_spread(names or [""] * samples.shape[1], options.features_version)
    samples = winsorised(samples, least)
    scaled = _scaled(samples, *scaler(samples, least))
    tried = []
    for k in allowed:
        mixture = fit_mixture(scaled, k, options, seed)
        bic = float(mixture.bic(scaled))
        tried.append(Candidate(k, bic, bic + 2 * _entropy(mixture, scaled), stability(scaled, k, options, seed)))
    return tuple(tried)


def stability(scaled: FloatArray, clusters: int, options: EncoderOptions, seed: int) -> float:
    """See `Candidate.stability`; `scaled`: standardised samples ``[n, D]``."""
    generator = np.random.default_rng([seed, clusters])
    labels = []
    for number in range(STABILITY_FITS):
        drawn = scaled[generator.integers(len(scaled), size=len(scaled))]
        labels.append(fit_mixture(drawn, clusters, options, seed + number).predict(scaled))
    return agreement(labels)


def agreement(labels: Sequence[NDArray[np.int64]]) -> float:
    """Mean adjusted Rand index over all pairs of labellings of the same samples."""
    from sklearn.metrics import adjusted_rand_score  # noqa: PLC0415

    return float(np.mean([adjusted_rand_score(one, other) for one, other in itertools.combinations(labels, 2)]))


def least_spread(names: Sequence[str], version: FeaturesVersion) -> FloatArray:
    """``[D]``: how far counting noise moves each feature; 0 for version 1 and for features that it does not know."""
    known = LEAST_SPREAD if version > 1 else {}
    return np.array([known.get(name.rpartition(".")[2], 0.0) for name in names])


def winsorised(samples: FloatArray, least: FloatArray) -> FloatArray:
    """Samples ``[n, D]`` within 5 robust deviations of the median where `least` is above 0, else unchanged.

    A deviation is the interquartile range over 1.35, at least `least`.
    """
    if not least.any():
        return samples
    low, median, high = np.quantile(samples, (0.25, 0.5, 0.75), axis=0)
    reach = np.where(least > 0, FARTHEST * np.maximum((high - low) / 1.349, least), np.inf)
    return np.clip(samples, median - reach, median + reach)


def scaler(samples: FloatArray, least: FloatArray | float = 0.0) -> tuple[FloatArray, FloatArray]:
    """Center and scale ``[D]`` of samples ``[n, D]``; no scale is below `least`."""
    spread = np.maximum(samples.std(axis=0), least)
    return samples.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)


def precisions_cholesky(mixture: GaussianMixture, noise: FloatArray | None = None) -> FloatArray:
    """``[K, D, D]`` for every covariance type, each cluster widened by independent noise of deviation ``[D]``."""
    if noise is not None and noise.any():
        covariances = mixture.covariances_
        if covariances.ndim == 2:
            covariances = np.einsum("kd,de->kde", covariances, np.eye(covariances.shape[1]))
        wide = np.linalg.cholesky(covariances + np.diag(noise**2))
        return np.asarray(np.swapaxes(np.linalg.inv(wide), 1, 2))
    cholesky: FloatArray = mixture.precisions_cholesky_
    return np.einsum("kd,de->kde", cholesky, np.eye(cholesky.shape[1])) if cholesky.ndim == 2 else cholesky


def fit_mixture(
    scaled: FloatArray, clusters: int, options: EncoderOptions, seed: int, start: GaussianMixture | None = None
) -> GaussianMixture:
    """Fits a mixture of `clusters` clusters, or continues from `start`, an unfitted mixture with initial values."""
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415

    mixture = start or GaussianMixture(
        clusters, covariance_type=options.covariance, n_init=options.restarts, reg_covar=1e-3, random_state=seed
    )
    with warnings.catch_warnings():
        # A mixture that has not converged is slightly less likely; BIC compares it like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(scaled)


def _usable(samples: FloatArray, options: EncoderOptions) -> tuple[FloatArray, list[int]]:
    """Samples without a nan, and the cluster counts that they allow."""
    samples = samples[np.isfinite(samples).all(axis=1)]
    allowed = [k for k in options.clusters if k * MIN_SAMPLES_PER_CLUSTER <= len(samples)]
    if not allowed:
        raise DataError(
            f"{len(samples)} samples for {min(options.clusters)} clusters",
            where="encoder",
            remedy="observe longer or try fewer clusters",
        )
    return samples, allowed


def _scaled(samples: FloatArray, center: FloatArray, scale: FloatArray) -> FloatArray:
    return np.clip((samples - center) / scale, -10.0, 10.0)


def _stable(scaled: FloatArray, allowed: list[int], options: EncoderOptions, seed: int) -> list[int]:
    """The cluster counts among which the criterion decides."""
    if options.least_stability <= 0 or len(allowed) == 1:
        return allowed
    stabilities = {k: stability(scaled, k, options, seed) for k in allowed}
    enough = [k for k in allowed if stabilities[k] >= options.least_stability]
    return enough or [max(allowed, key=lambda k: stabilities[k])]


def _entropy(mixture: GaussianMixture, scaled: FloatArray) -> float:
    """Of the posteriors, summed over the samples: BIC plus twice it is ICL (Biernacki, Celeux & Govaert, 2000)."""
    posterior = mixture.predict_proba(scaled)
    return float(-(posterior * np.log(np.maximum(posterior, 1e-300))).sum())
