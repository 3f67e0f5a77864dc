"""A pytest plugin that plants an out-of-range write into every simulated testbed, for the drill of the bounds.

`pytest -p tests.support.planted_write`: the first change of a server's behaviour writes past the servers' array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs.simulator import batch, lane


def pytest_configure(config: pytest.Config) -> None:
    real = lane.build_lane

    def planted(*arguments: Any) -> lane.Lane:
        built = real(*arguments)
        change = np.zeros(1, lane.BEHAVIOUR)
        change["server"], change["speed"] = len(built.servers) + 3, 1.0
        return built._replace(behaviours=np.concatenate([change, built.behaviours]))

    batch.build_lane = planted  # type: ignore[attr-defined]
