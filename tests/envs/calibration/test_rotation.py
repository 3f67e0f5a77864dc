"""Servers that get no requests: they are not calibrated, and nothing that is simulated counts on them.

Seeds are fixed and the clock plays no part: what is simulated repeats exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from actuators.contract.topology import Topology, group_of
from actuators.errors import ConfigError, DataError
from actuators.statistics.recording import from_json
from envs.calibration.calibrate import Recorded, windows_topology
from envs.calibration.fit import fit
from envs.calibration.options import FitOptions
from envs.calibration.replay import Evidence, Replay, gather
from envs.calibration.result import Parameters
from tests.support.windows import window

TOPOLOGY = Topology((group_of("app", ("a:1", "b:1", "c:1")),))
QUIET = np.array([[100, 100, 0]])
THIRD = np.array([[False, False, True]])


def server(requests: int, **more: object) -> dict[str, object]:
    return {"requestCounter": requests, "responses": {"2xx": requests}, "inBytes": 0, "outBytes": 0, "weight": 1} | more


def recorded(*lines: Mapping[str, object], chosen: tuple[str, ...] = ()) -> Recorded:
    return windows_topology([from_json(line) for line in lines], chosen, in_rotation=True)


def evidence(*, down: bool = False, backup: bool = False) -> Evidence:
    """Twelve seconds in which the third server answers nothing."""
    windows = [window(requests=QUIET, topology=TOPOLOGY, seed=i, start_s=float(i)) for i in range(12)]
    if down:
        windows = [replace(each, down=THIRD) for each in windows]
    return gather([replace(each, backup=THIRD if backup else None) for each in windows], TOPOLOGY)


def test_servers_that_balancing_gives_no_requests_are_left_out() -> None:
    first, later = (
        {
            "app": {
                "a:1": server(n), "spare:1": server(n, backup=True), "out:1": server(7, down=True),
                "idle:1": server(0), "left:1": server(n, down=n > 5),
            },
        }
        for n in (1, 9)
    )  # fmt: skip
    first["app"]["gone:1"] = server(3)
    found = recorded(first, later)
    assert found.topology.servers == ("a:1", "left:1")
    assert found.spare == {
        "app": {"spare:1": "backup", "out:1": "down", "idle:1": "without requests", "gone:1": "gone"}
    }
    assert found.left_out == {}


def test_a_group_whose_backups_alone_answer_is_left_out() -> None:
    first, later = (
        {"app": {"a:1": server(n)}, "old": {"b:1": server(2, down=True), "c:1": server(n, backup=True)}} for n in (1, 9)
    )
    found = recorded(first, later)
    assert found.topology.servers == ("a:1",)
    assert found.left_out == {"old": "had no requests at servers in rotation"}
    with pytest.raises(ConfigError, match="group old had no requests at servers in rotation"):
        recorded(first, later, chosen=("old",))
    with pytest.raises(DataError, match="old had no requests at servers in rotation"):
        recorded({"old": first["old"]}, {"old": later["old"]})


def test_a_backup_gets_no_simulated_requests_while_another_server_is_up() -> None:
    parameters = Parameters(service_ms=((5.0, 5.0, 5.0),), workers=2, service_cv=1.0, overhead_ms=0.0)

    def share(of: Evidence) -> float:
        requests = Replay(of, "least_conn", 1, 1, seed=1).play(parameters).requests
        return float(requests[..., 2].sum() / requests.sum())

    assert share(evidence()) > 0.2
    assert share(evidence(backup=True)) == 0.0
    alone = evidence(backup=True)
    others_down = replace(alone, windows=tuple(replace(each, down=~THIRD) for each in alone.windows))
    assert share(others_down) == 1.0


@pytest.mark.parametrize("why", ["down", "backup"])
def test_a_server_without_simulated_requests_is_like_its_group(why: str) -> None:
    options = FitOptions(workers=2, replicas=1, rounds=3)
    found = fit(evidence(**{why: True}), options, np.ones(12), seed=1).best.parameters.service_array_ms
    assert found[0, 2] == pytest.approx(found[0, :2].mean())
