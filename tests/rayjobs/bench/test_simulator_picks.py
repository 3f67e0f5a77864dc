"""A real NGINX and the simulated one pick the same servers, request by request."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayjobs.bench.simulator.agreement import nginx_over, real_picks, simulated_picks

pytestmark = pytest.mark.nginx


@pytest.mark.parametrize("weights", [[1, 1, 1], [5, 1, 1], [5, 3, 2], [100, 61, 7], [13, 100, 1, 42, 8]])
@pytest.mark.parametrize("method", ["", "least_conn;"])
def test_weighted_picks(short_dir: Path, weights: list[int], method: str) -> None:
    with nginx_over(short_dir, [f"weight={w}" for w in weights], method) as connection:
        assert real_picks(connection) == simulated_picks(weights, least_conn=bool(method))


def test_picks_without_a_server_that_is_down(short_dir: Path) -> None:
    with nginx_over(short_dir, ["weight=5", "weight=3 down", "weight=2"]) as connection:
        assert real_picks(connection) == simulated_picks([5, 3, 2], down=(1,))


@pytest.mark.parametrize("max_fails", [0, 1, 3])
def test_picks_beside_a_dead_server(short_dir: Path, max_fails: int) -> None:
    # The dead server's effective weight falls and recovers; passed over, it stays out of the sequence.
    options = [f"weight={w} max_fails={max_fails} fail_timeout=100000s" for w in (5, 3, 2, 4)]
    with nginx_over(short_dir, options, alive=3) as connection:
        assert real_picks(connection) == simulated_picks([5, 3, 2, 4], alive=3, max_fails=max_fails)
