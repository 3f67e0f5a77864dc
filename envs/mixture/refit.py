"""Refits a mixture to old and new samples and decides whether it may replace the old one.

The refit starts from the old clusters, keeps the scaler and appends clusters for new samples, so that the inputs of a
trained policy keep their place and meaning.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.errors import BundleError, DataError
from actuators.files import write_atomic
from actuators.plain_arrays import load_arrays
from envs.mixture.fit import (
    MIN_SAMPLES_PER_CLUSTER,
    STABILITY_FITS,
    agreement,
    fit_mixture,
    least_spread,
    precisions_cholesky,
)  # fmt: skip
from envs.observation.encoder import Encoder, EncoderOptions

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

SAMPLES = "samples.npz"
"""File with the samples of a mixture, beside its `encoder.npz`."""
MAX_BYTES = 2**28
"""Of that file, unpacked."""
MOST_NEW_CLUSTERS = 3
BLOCK = 5
"""Windows are held out in blocks of this size, because neighbours in time are correlated."""
HELD_OUT = 4
"""Every n-th block is held out."""
LEAST_WINDOWS = 20
MOST_FORGOTTEN = 1.0
"""Maximum loss of log likelihood (nats) per old sample."""
LEAST_STABILITY = 0.5
DRAWN_SAMPLES = 600


@dataclass(frozen=True)
class RefitProof:
    """Comparison of a refitted mixture with the old one on held-out samples.

    Attributes:
        novel, novel_before: share of the held-out new windows in which a server lies outside every cluster of the new
            mixture, of the old one.
        gained: log likelihood per held-out new sample, new mixture minus old.
        forgotten: log likelihood per held-out old sample, old mixture minus new, the weight of new clusters apart.
        stability: mean adjusted Rand index between refits to resamples with other seeds.
        reasons: why the new mixture is refused; empty when it is accepted.
    """

    novel: float
    novel_before: float
    gained: float
    forgotten: float
    stability: float
    reasons: tuple[str, ...]

    @property
    def proven(self) -> bool:
        """Whether the new mixture may take the old one's place."""
        return not self.reasons


def refit(old: Encoder, known: FloatArray, new: FloatArray, seed: int) -> Encoder:
    """Fits a mixture to old and new samples ``[n, D]``, with 0 to 3 clusters more than the old one by BIC."""
    scaled = old.standardise(np.concatenate([known, new]))
    _, novelty = old.encode(new)
    novel_samples = old.standardise(new[novelty > 1.0])
    most = min(MOST_NEW_CLUSTERS, len(novel_samples) // MIN_SAMPLES_PER_CLUSTER)
    fits = [_grown(old, scaled, novel_samples, more, seed) for more in range(most + 1)]
    bic = {len(fit.weights_): float(fit.bic(scaled)) for fit in fits}
    best = min(fits, key=lambda fit: bic[len(fit.weights_)])
    noise = least_spread(old.names, old.features_version) / old.scale
    return replace(
        old, weights=best.weights_, means=best.means_, precisions_cholesky=precisions_cholesky(best, noise), bic=bic
    )


def recalibrate(
    old: Encoder, known: FloatArray, new: FloatArray, novel_limit: float, seed: int
) -> tuple[Encoder, RefitProof]:
    """The mixture refitted to all samples, and the proof: a refit to three quarters of them, judged on the rest.

    Args:
        known: ``[n, D]``, the samples of the old mixture.
        new: ``[windows, rows, D]``, a row per server, or one if joint.
        novel_limit: largest share of novel windows, 0…1.

    Raises:
        DataError: fewer than 20 new windows, or fewer than 4 old samples, of which none could be held out.
    """
    if len(new) < LEAST_WINDOWS:
        remedy = f"record until there are {LEAST_WINDOWS}"
        raise DataError(f"{len(new)} new windows", where="recalibration", remedy=remedy)
    if len(known) < HELD_OUT:
        what, remedy = f"{len(known)} samples of the old encoder", "observe for longer, or remove samples.npz beside it"
        raise DataError(what, where="recalibration", remedy=remedy)
    rows, size = new.shape[1:]
    known_out, new_out = _held_out(len(known), rows), _held_out(len(new), 1)
    candidate = refit(old, known[~known_out], new[~new_out].reshape(-1, size), seed)
    flat = new.reshape(-1, size)
    proof = prove(old, candidate, known[known_out], new[new_out], novel_limit, _stability(old, known, flat, seed))
    return refit(old, known, flat, seed), proof


def prove(
    old: Encoder, candidate: Encoder, known: FloatArray, new: FloatArray, novel_limit: float, stability: float
) -> RefitProof:
    """Compares a candidate with the old mixture on held-out samples ``[n, D]`` and ``[windows, rows, D]``.

    A comparison with nothing proves nothing.
    """
    novel, before = (float((e.encode(new)[1].max(axis=1) > 1.0).mean()) for e in (candidate, old))
    gained = float((candidate.log_likelihood(new) - old.log_likelihood(new)).mean())
    # Weight that moved to new clusters does not count as forgetting.
    diluted = -float(np.log(candidate.weights[: old.clusters].sum()))
    forgotten = float((old.log_likelihood(known) - candidate.log_likelihood(known)).mean()) - diluted
    reasons = []
    if novel > novel_limit:
        reasons.append(f"{novel:.0%} of the held-out new windows are still novel, the limit is {novel_limit:.0%}")
    if gained < 0:
        reasons.append(f"held-out new samples are less likely than before, by {-gained:.2f} per sample")
    if not forgotten <= MOST_FORGOTTEN:  # not a number without old samples
        reasons.append(f"old samples are less likely by {forgotten:.2f} per sample, the limit is {MOST_FORGOTTEN:g}")
    if stability < LEAST_STABILITY:
        reasons.append(f"refits disagree: adjusted Rand index {stability:.2f}, at least {LEAST_STABILITY:g} is needed")
    return RefitProof(novel, before, gained, forgotten, stability, tuple(reasons))


def drawn_samples(encoder: Encoder, seed: int) -> FloatArray:
    """Samples ``[600, D]`` drawn from the mixture, in place of lost original samples."""
    generator = np.random.default_rng(seed)
    chosen = generator.choice(encoder.clusters, DRAWN_SAMPLES, p=encoder.weights / encoder.weights.sum())
    # precision = L Lᵀ, so that L⁻ᵀ z has its covariance.
    spread = np.linalg.inv(np.swapaxes(encoder.precisions_cholesky, 1, 2))
    noise = generator.normal(size=(DRAWN_SAMPLES, len(encoder.names)))
    scaled = encoder.means[chosen] + np.einsum("nde,ne->nd", spread[chosen], noise)
    drawn: FloatArray = scaled * encoder.scale + encoder.center
    return drawn


def save_samples(path: Path, samples: FloatArray, names: Sequence[str]) -> None:
    """Writes samples ``[n, D]`` atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, names=np.array(names), samples=samples)
    write_atomic(path, buffer.getvalue())


def load_samples(path: Path, names: Sequence[str]) -> FloatArray:
    """Reads samples ``[n, D]``. Raises BundleError for another kind of file or other features."""
    try:
        data = load_arrays(path, MAX_BYTES)
        samples: FloatArray = np.asarray(data["samples"], float)
        saved_names = tuple(str(name) for name in data["names"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"no samples: {error}", where=str(path), remedy="remove the file to continue without it"
        ) from error
    if saved_names != tuple(names) or samples.ndim != 2 or samples.shape[1] != len(names):
        raise BundleError("samples of other features", where=str(path), remedy="remove the file to continue without it")
    if not np.isfinite(samples).all():
        raise BundleError("a sample is not finite", where=str(path), remedy="remove the file to continue without it")
    return samples


def _grown(old: Encoder, scaled: FloatArray, novel_samples: FloatArray, more: int, seed: int) -> GaussianMixture:
    """EM, started from the old clusters and `more` new ones among the novel samples."""
    from sklearn.cluster import kmeans_plusplus  # noqa: PLC0415 - like `envs.mixture.fit`
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415

    precisions = np.einsum("kde,kfe->kdf", old.precisions_cholesky, old.precisions_cholesky)
    means, weights = old.means, old.weights
    if more:
        places, _ = kmeans_plusplus(novel_samples, more, random_state=seed)
        means = np.concatenate([means, places])
        # A new cluster starts with the average width of the old ones.
        wide = np.linalg.inv(np.linalg.inv(precisions).mean(axis=0))
        precisions = np.concatenate([precisions, np.repeat(wide[None], more, axis=0)])
        share = len(novel_samples) / len(scaled)
        weights = np.concatenate([weights * (1 - share), np.full(more, share / more)])
    diagonal = _is_diagonal(old)
    if diagonal:
        precisions = np.diagonal(precisions, axis1=1, axis2=2)
    start = GaussianMixture(
        len(means), covariance_type="diag" if diagonal else "full", reg_covar=1e-3, random_state=seed,
        weights_init=weights / weights.sum(), means_init=means, precisions_init=precisions,
    )  # fmt: skip
    return fit_mixture(scaled, len(means), EncoderOptions(), seed, start)


def _is_diagonal(encoder: Encoder) -> bool:
    cholesky = encoder.precisions_cholesky
    return bool((cholesky == np.einsum("kdd->kd", cholesky)[..., None] * np.eye(cholesky.shape[1])).all())


def _stability(old: Encoder, known: FloatArray, new: FloatArray, seed: int) -> float:
    everything, generator = np.concatenate([known, new]), np.random.default_rng(seed)
    labels = []
    for number in range(STABILITY_FITS):
        some, others = (samples[generator.integers(len(samples), size=len(samples))] for samples in (known, new))
        posterior, _ = refit(old, some, others, seed + number).encode(everything)
        labels.append(posterior.argmax(axis=-1))
    return agreement(labels)


def _held_out(count: int, rows: int) -> NDArray[np.bool_]:
    """Mask of every fourth block of 5 windows of `rows` rows each; shorter blocks where there would be no fourth."""
    block = max(min(BLOCK * rows, count // HELD_OUT), 1)
    held: NDArray[np.bool_] = (np.arange(count) // block) % HELD_OUT == HELD_OUT - 1
    return held
