"""What a live sweep has observed stays with it, so that one that goes on keeps its problem."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actuators.errors import DataError
from envs.environment.phase import Watched
from rayjobs.sweep import OBSERVED, read_windows, write_windows
from tests.support.windows import TOPOLOGY, window


def test_windows_are_read_as_they_were_kept(tmp_path: Path) -> None:
    watched = Watched((window(10.0), window(20.0)), (window(5.0),))
    write_windows(watched, tmp_path / OBSERVED)
    # Another start of the testbed has other addresses.
    elsewhere = TOPOLOGY.with_servers(tuple(f"10.0.0.{n}:80" for n in range(len(TOPOLOGY.servers))))
    found = read_windows(tmp_path / OBSERVED, elsewhere)
    assert (len(found.equal), len(found.exploring)) == (2, 1)
    for before, after in zip((*watched.equal, *watched.exploring), (*found.equal, *found.exploring), strict=True):
        assert (after.start_s, after.end_s, after.bounds_ms) == (before.start_s, before.end_s, before.bounds_ms)
        for name in ("requests", "response_ms_sum", "latency_histogram", "server_errors", "weight", "down"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)


@pytest.mark.parametrize("text", ["", "[]", '{"equal": []}', '{"equal": [{}], "exploring": []}'])
def test_another_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / OBSERVED).write_text(text)
    with pytest.raises(DataError, match="not the windows of an observation phase"):
        read_windows(tmp_path / OBSERVED, TOPOLOGY)
