"""The programs that are installed pick as the simulator's copies of them, with the same requests in flight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actuators.testbed.peers import why_missing
from rayjobs.bench.peers.copies import COPIES, LEAST_P, Copy, alike, bars_of
from rayjobs.bench.peers.picks import SERVERS, simulated_picks

PICKS = 300


@pytest.mark.nginx
@pytest.mark.parametrize("copy", COPIES, ids=lambda copy: copy.program)
def test_a_program_picks_as_its_copy(copy: Copy, tmp_path: Path) -> None:
    """Wrong once in 100,000 runs for each that draws at random."""
    if reason := why_missing(copy.program):
        pytest.skip(reason)
    bars = list(bars_of(copy, tmp_path, PICKS, 7))
    assert [bar.bar for bar in bars if not bar.holds] == []
    assert any(bar.limit is not None for bar in bars)


def test_the_comparison_tells_near_rules_apart() -> None:
    in_flight = np.random.default_rng(1).integers(0, 6, (5000, SERVERS))
    two = simulated_picks("random_two", in_flight, 1)
    assert alike(two, simulated_picks("random_two", in_flight, 2)) > LEAST_P
    assert alike(two, simulated_picks("least_request", in_flight, 2)) < LEAST_P
    least = simulated_picks("shared_least_conn", in_flight, 1)
    assert least.ranks.max() == 0
