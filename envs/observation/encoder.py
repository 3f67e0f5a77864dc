"""Features → Gaussian mixture → posterior over clusters and novelty; saved and loaded without pickle.

One mixture describes each server by its features over all groups, or a joint mixture describes the whole system.
Needs numpy only, for bundles; `envs.mixture.fit` fits with scikit-learn.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from actuators.contract.arrays import FloatArray, IntArray
from actuators.errors import BundleError
from actuators.files import write_atomic
from actuators.options import Options
from actuators.plain_arrays import load_arrays
from envs.observation.features import FEATURES_VERSION, MOVED_BY_WEIGHTS, FeaturesVersion

FORMAT_VERSION = 1
MAX_BYTES = 2**26
"""Of a saved encoder, unpacked."""
MOST = 1e9
"""Largest absolute value in a saved encoder: beyond it sums and products would overflow."""
_REMEDY = "export the bundle again"
SIGMA_RULE = 0.9973
"""Coverage of μ ± 3σ in one dimension; the same coverage bounds the distance in many."""


def _number(value: Any) -> Any:
    """A version as a command line gives it."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class EncoderOptions(Options):
    """How the Gaussian mixture is fitted."""

    kind: Literal["server", "joint"] = "server"
    """One mixture shared by all servers, or one over all servers together."""
    clusters: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(default=(2, 3, 4, 5, 6), min_length=1)
    """Cluster counts K to try; the one with the lowest criterion is taken."""
    criterion: Literal["bic", "icl"] = "bic"
    """bic: how well K clusters describe the samples; icl: also how clearly they are apart, which takes fewer."""
    least_stability: float = Field(default=0.0, ge=0, le=1)
    """Only K whose clusters come out so much alike under other seeds and resamples (mean adjusted Rand index) are
    taken; 0 takes any and saves the time."""
    covariance: Literal["full", "diag"] = "diag"
    """Covariance type of each cluster."""
    restarts: int = Field(default=3, ge=1, le=1000)
    """Initialisations per K; the most likely one is kept."""
    features_version: Annotated[FeaturesVersion, BeforeValidator(_number)] = FEATURES_VERSION
    """1: as in version 0.1; 2: features and scales that a single error or a single long response moves little."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """A fitted scaler and mixture.

    Attributes:
        names: feature names of a sample, ``[D]``.
        center, scale: ``[D]``, of the fitted samples.
        weights: ``[K]`` mixture weights; means: ``[K, D]``; precisions_cholesky: ``[K, D, D]``, scaled space.
        bic: BIC by cluster count, of every K that was tried.
        features_version: of the features that it was fitted to.
    """

    kind: Literal["server", "joint"]
    names: tuple[str, ...]
    center: FloatArray
    scale: FloatArray
    weights: FloatArray
    means: FloatArray
    precisions_cholesky: FloatArray
    bic: dict[int, float] = field(default_factory=dict)
    features_version: FeaturesVersion = 1

    @property
    def clusters(self) -> int:
        return len(self.weights)

    def standardise(self, samples: FloatArray) -> FloatArray:
        """``[..., D]`` samples, centred and scaled, clipped to ±10 scales."""
        return np.clip((samples - self.center) / self.scale, -10.0, 10.0)

    def log_likelihood(self, samples: FloatArray) -> FloatArray:
        """Log density ``[...]`` of samples ``[..., D]`` in the scaled space, up to a constant of the dimension."""
        log_joint, _ = self._log_joint(samples)
        most: FloatArray = log_joint.max(axis=-1)
        total: FloatArray = most + np.log(np.exp(log_joint - most[..., None]).sum(axis=-1))
        return total

    def encode(self, samples: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Posterior ``[..., K]`` and novelty ``[...]`` of samples ``[..., D]``.

        Novelty is the Mahalanobis distance to the nearest cluster divided by the distance that holds
        99.73 % of a Gaussian of this dimension (the project's 3σ rule); above 1 is novel. With features of version 2
        the distance leaves out traffic shares: weights move them, so that steering itself would be novel.
        """
        log_joint, squared = self._log_joint(samples)
        log_joint -= log_joint.max(axis=-1, keepdims=True)
        joint = np.exp(log_joint)
        judged, precision = self._judged
        if len(judged) < len(self.names):
            offset = self.standardise(samples)[..., None, judged] - self.means[:, judged]
            squared = (np.einsum("...kd,kde->...ke", offset, precision) ** 2).sum(axis=-1)
        limit = _novelty_limit(len(judged))
        return joint / joint.sum(axis=-1, keepdims=True), np.sqrt(squared.min(axis=-1)) / limit

    @cached_property
    def _judged(self) -> tuple[IntArray, FloatArray]:
        """Features that novelty is judged by, and each cluster's precision of these alone, as `precisions_cholesky`."""
        moved = MOVED_BY_WEIGHTS if self.features_version > 1 else ()
        kept = np.array(
            [i for i, name in enumerate(self.names) if name.rpartition(".")[2] not in moved], dtype=np.int64
        )
        if len(kept) in (0, len(self.names)):
            return np.arange(len(self.names)), self.precisions_cholesky
        covariance = np.linalg.inv(np.einsum("kde,kfe->kdf", self.precisions_cholesky, self.precisions_cholesky))
        marginal = covariance[:, kept[:, None], kept[None, :]]
        return kept, np.swapaxes(np.linalg.inv(np.linalg.cholesky(marginal)), -1, -2)

    def _log_joint(self, samples: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Log of weight times density, and squared Mahalanobis distance, each ``[..., K]``."""
        offset = self.standardise(samples)[..., None, :] - self.means
        whitened = np.einsum("...kd,kde->...ke", offset, self.precisions_cholesky)
        squared = (whitened**2).sum(axis=-1)
        log_det = np.log(np.diagonal(self.precisions_cholesky, axis1=1, axis2=2)).sum(axis=-1)
        return np.log(self.weights) + log_det - 0.5 * squared, squared

    def fisher(self, samples: FloatArray, posterior: FloatArray) -> FloatArray:
        """``[..., K * D]``: for each cluster the whitened offset from its mean, times the posterior ``[..., K]``.

        The part of the mixture's Fisher vector that belongs to the means (Perronnin & Dance, 2007); it
        keeps where in a cluster a sample lies, which posterior and label lose.
        """
        offset = self.standardise(samples)[..., None, :] - self.means
        whitened = np.einsum("...kd,kde->...ke", offset, self.precisions_cholesky)
        weighted = np.clip(whitened, -10.0, 10.0) * posterior[..., None]
        vector: FloatArray = weighted.reshape(*weighted.shape[:-2], -1)
        return vector

    def ranks(self) -> FloatArray:
        """How slow each cluster is, ``[K]`` from 0 (fastest) to 1: the place of its mean + 3σ of log latency.

        Over all types (and servers, if joint); the project's plan ranked its 27 states so.
        """
        column = [index for index, name in enumerate(self.names) if name.endswith(".log_mean")]
        covariance = np.linalg.inv(np.einsum("kde,kfe->kdf", self.precisions_cholesky, self.precisions_cholesky))
        deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        slowness = ((self.means + 3 * deviation) * self.scale + self.center)[:, column].mean(axis=1)
        places: FloatArray = slowness.argsort().argsort() / max(self.clusters - 1, 1)
        return places

    def save(self, path: Path) -> None:
        """Writes one `.npz` of plain arrays, atomically."""
        buffer = io.BytesIO()
        np.savez(
            buffer, format_version=FORMAT_VERSION, kind=self.kind, names=np.array(self.names),
            center=self.center, scale=self.scale, weights=self.weights, means=self.means,
            precisions_cholesky=self.precisions_cholesky,
            bic=np.array(sorted(self.bic.items()), dtype=float).reshape(-1, 2),
            features_version=self.features_version,
        )  # fmt: skip
        write_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Encoder:
        """Raises BundleError for a file that is missing, pickled, of another format or inconsistent."""
        try:
            data = load_arrays(path, MAX_BYTES)
            _check_types(data)
            if int(data["format_version"]) != FORMAT_VERSION:
                raise BundleError(f"encoder format {data['format_version']}", where=str(path), remedy=_REMEDY)
            encoder = cls(
                kind="joint" if str(data["kind"]) == "joint" else "server",
                names=tuple(str(name) for name in data["names"]),
                bic={int(k): float(v) for k, v in data["bic"]},
                # Version 0.1 did not write it.
                features_version=_version(data.get("features_version", 1)),
                **{key: data[key] for key in _ARRAYS},
            )
            problem = encoder._problem()
        except KeyError as error:
            raise BundleError(f"not an encoder: it lacks {error}", where=str(path), remedy=_REMEDY) from error
        except (OSError, ValueError, TypeError, OverflowError) as error:
            raise BundleError(f"not an encoder: {error}", where=str(path), remedy=_REMEDY) from error
        if problem:
            raise BundleError(f"encoder arrays do not fit together: {problem}", where=str(path), remedy=_REMEDY)
        return encoder

    def _problem(self) -> str:
        """The first array of another type, shape or range than it should have; empty when there is none."""
        size, clusters = len(self.names), self.weights.size
        shapes = {
            "center": (size,), "scale": (size,), "weights": (clusters,), "means": (clusters, size),
            "precisions_cholesky": (clusters, size, size),
        }  # fmt: skip
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or not array.size:
                return f"{name} has shape {array.shape}, expected {shape}"
            if not (np.abs(array) <= MOST).all():
                return f"{name} is not within ±{MOST:g}"
        if not (self.scale >= 1 / MOST).all():
            return "scale is not positive"
        if not (self.weights > 0).all() or abs(float(self.weights.sum()) - 1.0) > 1e-3:
            return "weights are not positive with a sum of 1"
        if not (np.diagonal(self.precisions_cholesky, axis1=1, axis2=2) > 0).all():
            return "precisions_cholesky is not positive on its diagonal"
        return "" if self._is_invertible() else "precisions_cholesky describes no clusters"

    def _is_invertible(self) -> bool:
        try:
            np.linalg.inv(np.einsum("kde,kfe->kdf", self.precisions_cholesky, self.precisions_cholesky))
            return bool(np.isfinite(self._judged[1]).all())
        except np.linalg.LinAlgError:
            return False


_ARRAYS = ("center", "scale", "weights", "means", "precisions_cholesky")
_TYPES = {"names": ("U", 1), "kind": ("U", 0), "format_version": ("iu", 0), "features_version": ("iu", 0)}
"""Kind of dtype and number of axes of the others that are not floats."""


def _check_types(data: Mapping[str, NDArray[Any]]) -> None:
    """Raises ValueError for an array that holds something else than it should, KeyError for one that is missing."""
    for name in (*_ARRAYS, "bic"):
        if data[name].dtype.kind != "f" or data[name].dtype.itemsize < 4:
            raise ValueError(f"{name} holds {data[name].dtype.name}, not numbers of 4 or 8 bytes")
    if data["bic"].ndim != 2 or data["bic"].shape[1] != 2:
        raise ValueError(f"bic has shape {data['bic'].shape}, expected (K, 2)")
    for name, (kinds, axes) in _TYPES.items():
        if name in data and (data[name].dtype.kind not in kinds or data[name].ndim != axes):
            raise ValueError(f"{name} holds {data[name].dtype.name} in {data[name].ndim} dimensions")


def _version(stored: Any) -> FeaturesVersion:
    """Raises ValueError for one that this release does not know."""
    number = int(stored)
    if number not in get_args(FeaturesVersion):
        raise ValueError(f"features of version {number}, which this release does not know")
    return cast("FeaturesVersion", number)


@cache
def _novelty_limit(dimensions: int) -> Any:
    """Mahalanobis distance that holds SIGMA_RULE of a Gaussian: from the quantile of the chi-squared distribution."""
    from scipy.special import gammaincinv  # noqa: PLC0415 - `--help` reads EncoderOptions and must answer at once

    return np.sqrt(2.0 * gammaincinv(dimensions / 2, SIGMA_RULE))
