"""What a single error or a single very long response may do to features, baseline and novelty: little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.window import Window
from envs.mixture.fit import fit_encoder
from envs.observation.encoder import Encoder, EncoderOptions
from envs.observation.features import SERVER_FEATURES, LatencyMemory, inverse_latency_shares, server_features
from envs.observation.observer import Observer, samples_of
from tests.support.windows import TOPOLOGY, window

DEADLINES_S = np.array([0.05, 0.02, 0.02])
HALF_HOUR_MS = 1_800_000


def with_a_long_one(seen: Window) -> Window:
    """The same with one more response of half an hour, of the first server of the first group."""
    requests, total, histogram, responses = (
        getattr(seen, name).copy() for name in ("requests", "response_ms_sum", "latency_histogram", "responses")
    )
    requests[0, 0] += 1
    responses[0, 0, 1] += 1
    total[0, 0] += HALF_HOUR_MS
    histogram[0, 0, -1] += 1
    return replace(
        seen, requests=requests, response_ms_sum=total, latency_histogram=histogram, responses=responses
    )  # fmt: skip


def without_buckets(seen: Window) -> Window:
    return replace(seen, bounds_ms=(), latency_histogram=seen.requests[..., None])


def shares_after(*windows: Window, version: int = 2) -> np.ndarray:
    memory = LatencyMemory.empty(TOPOLOGY.shape)
    for seen in windows:
        server_features(seen, DEADLINES_S, memory, version)  # type: ignore[arg-type]
    return inverse_latency_shares(memory.fast_s)


@pytest.mark.parametrize("requests", [3, 30, 300])
def test_one_response_of_half_an_hour_leaves_a_healthy_server_its_weight(requests: int) -> None:
    calm = [window(8.0, requests, seed=seed) for seed in range(10)]
    last = with_a_long_one(window(8.0, requests, seed=99))
    least = 0.7 if requests >= 30 else 0.2
    assert shares_after(*calm, last)[0, 0] > least
    assert shares_after(*calm, last, version=1)[0, 0] < 0.02, "what version 1 does, and old bundles keep"


def test_the_first_window_of_all_may_have_it() -> None:
    assert shares_after(with_a_long_one(window(8.0, 30)))[0, 0] > 0.5


def test_without_buckets_a_mean_may_triple() -> None:
    calm = [without_buckets(window(8.0, 30, seed=seed)) for seed in range(10)]
    assert shares_after(*calm, without_buckets(with_a_long_one(window(8.0, 30))))[0, 0] > 0.45


def test_a_server_that_is_really_slow_shows_at_once() -> None:
    calm = [window(8.0, 100, seed=seed) for seed in range(10)]
    slow = window(np.array([[80.0, 8.0, 8.0]] * 3), 100)
    assert shares_after(*calm, slow)[:, 0] == pytest.approx(shares_after(*calm, slow, version=1)[:, 0], rel=0.1)


def test_where_nothing_is_long_the_means_are_exact() -> None:
    seen = window(20.0, 200)
    found = server_features(seen, DEADLINES_S, LatencyMemory.empty(TOPOLOGY.shape))
    plain = server_features(seen, DEADLINES_S, LatencyMemory.empty(TOPOLOGY.shape), version=1)
    assert found[..., :3] == pytest.approx(plain[..., :3], rel=1e-12)


def test_without_buckets_every_feature_is_finite() -> None:
    for version in (1, 2):
        memory = LatencyMemory.empty(TOPOLOGY.shape)
        found = server_features(without_buckets(window(20.0, 50)), DEADLINES_S, memory, version)  # type: ignore[arg-type]
        assert np.isfinite(found).all()
        place = SERVER_FEATURES.index("log_p90")
        assert (found[..., place] > found[..., SERVER_FEATURES.index("log_mean")]).all()


@pytest.mark.parametrize("requests", [1, 5, 20, 100, 1000])
def test_one_error_is_a_small_error_ratio(requests: int) -> None:
    found = server_features(window(10.0, requests, errors=1), DEADLINES_S, LatencyMemory.empty(TOPOLOGY.shape))
    assert found[..., SERVER_FEATURES.index("error_ratio")].max() < 0.05


def test_one_error_in_the_observation_sets_no_scale() -> None:
    novelties = []
    for errors in (0, 1):
        generator = np.random.default_rng(0)
        ratio = np.r_[np.zeros(299), 0.01 * errors]
        samples = np.column_stack([generator.normal(size=300), ratio, generator.normal(size=300)])
        encoder = fit_encoder(samples, ["a", "error_ratio", "b"], EncoderOptions(), 1)
        novelties.append(float(encoder.encode(np.array([[0.0, 0.01, 0.0]]))[1][0]))
    assert novelties[0] == pytest.approx(novelties[1], abs=0.1)
    assert max(novelties) < 0.5


def observed(*, errors: int = 0) -> Encoder:
    """Fitted to 60 windows, of which one has errors."""
    observer = Observer(TOPOLOGY, DEADLINES_S, None)
    windows = [window(10.0, 100, seed=seed, errors=errors if seed == 30 else 0) for seed in range(60)]
    features = np.array([observer.observe_window(seen).features for seen in windows])
    names = [f"{kind}.{name}" for kind in TOPOLOGY.request_types for name in SERVER_FEATURES]
    return fit_encoder(samples_of(features, "server").reshape(-1, len(names)), names, EncoderOptions(), 1)


def novelty_of(encoder: Encoder, *windows: Window) -> float:
    observer = Observer(TOPOLOGY, DEADLINES_S, encoder)
    return float([observer.observe_window(seen).novelty.max() for seen in windows][-1])


@pytest.mark.parametrize("errors", [0, 1])
def test_one_error_or_one_long_response_is_not_novel_and_a_failing_server_is(errors: int) -> None:
    encoder = observed(errors=errors)
    calm = [window(10.0, 100, seed=100 + seed) for seed in range(5)]
    assert novelty_of(encoder, *calm) < 1
    assert novelty_of(encoder, *calm, window(10.0, 100, errors=np.array([[1, 0, 0]] * 3))) < 1
    assert novelty_of(encoder, *calm, with_a_long_one(window(10.0, 100))) < 1.5
    assert novelty_of(encoder, *calm, window(10.0, 100, errors=30)) > 1.5
    assert novelty_of(encoder, *calm, window(60.0, 100)) > 1.5


def test_other_weights_are_not_novel() -> None:
    uneven = window(10.0, np.array([[180, 90, 30]] * 3))
    calm = [window(10.0, 100, seed=100 + seed) for seed in range(5)]
    assert novelty_of(observed(), *calm, uneven) < 1
    first = replace(observed(), features_version=1)
    assert (
        first.encode(samples_of(Observer(TOPOLOGY, DEADLINES_S, None).observe_window(uneven).features, "server"))[
            1
        ].max()
        > 1
    ), "version 1 judges by shares too"


def test_the_version_is_kept_in_the_file(tmp_path: Path) -> None:
    for version in (1, 2):
        replace(observed(), features_version=version).save(tmp_path / "encoder.npz")  # type: ignore[arg-type]
        assert Encoder.load(tmp_path / "encoder.npz").features_version == version
