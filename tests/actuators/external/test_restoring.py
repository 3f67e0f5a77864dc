"""An earlier control on other servers: what still exists gets it back, the rest is named."""

from __future__ import annotations

import numpy as np

from actuators.contract.control import ServiceTimes, Weights
from actuators.contract.topology import Group, Topology
from actuators.external.restoring import restoration


def topology(**groups: str) -> Topology:
    return Topology(tuple(Group(name, name, "GET", "/", 2.0, tuple(text.split())) for name, text in groups.items()))


FIRST = topology(g="a:1 b:1", h="a:1 c:1")
NOW = topology(h="c:1 d:1", g="b:1 a:1")


def test_weights_go_back_by_name() -> None:
    first = Weights(FIRST, np.array([[2, 3, 0], [4, 0, 5]]), np.array([[True, False, False], [False, False, True]]))
    present = Weights(NOW, np.array([[60, 70, 0, 0], [0, 0, 80, 90]]))
    found = restoration(first, present)
    assert found.restored == ("h/c:1", "g/b:1", "g/a:1")
    assert found.missing == ("h/a:1",)
    assert found.added == ("h/d:1",)
    down = np.array([[True, False, False, False], [False, False, False, True]])
    assert found.control == Weights(NOW, np.array([[5, 70, 0, 0], [0, 0, 3, 2]]), down)


def test_a_group_never_loses_its_last_usable_server() -> None:
    first = Weights(FIRST, np.ones((2, 3)), np.array([[False, True, False], [False, False, False]]))
    found = restoration(first, Weights(topology(g="b:1"), np.array([[9]])))
    assert found.control == Weights(topology(g="b:1"), np.array([[1]]))
    assert found.missing == ("g/a:1", "h/a:1", "h/c:1")


def test_service_times_go_back_and_new_servers_get_the_mean() -> None:
    tau_s = np.array([[0.1, 0.2, 1.0], [0.4, 1.0, 0.6]])
    first = ServiceTimes(FIRST, tau_s, np.array([1.0, 2.0, 3.0]))
    found = restoration(first, Weights.equal(NOW)).control
    assert isinstance(found, ServiceTimes)
    assert np.where(NOW.mask, found.tau_s, 0).tolist() == [[0.6, 0.6, 0, 0], [0, 0, 0.2, 0.1]]
    assert found.workers.tolist() == [3.0, 1.0, 2.0, 1.0]
    present = ServiceTimes(NOW, np.where(NOW.mask, 0.9, 0.0), np.full(4, 4.0))
    again = restoration(first, present).control
    assert isinstance(again, ServiceTimes)
    assert np.where(NOW.mask, again.tau_s, 0).tolist() == [[0.6, 0.9, 0, 0], [0, 0, 0.2, 0.1]]
    assert again.workers.tolist() == [3.0, 4.0, 2.0, 1.0]


def test_service_times_bring_back_who_was_out_of_rotation() -> None:
    out = np.array([[False, True, False], [True, False, False]])
    first = ServiceTimes(FIRST, np.full((2, 3), 0.1), np.ones(3), down=out)
    found = restoration(first, Weights.equal(NOW)).control
    names = {
        f"{group.name}/{server}"
        for g, group in enumerate(NOW.groups)
        for server in group.servers
        if found.down[g, NOW.server_index(server)]
    }
    gone = {f"{FIRST.groups[g].name}/{FIRST.servers[s]}" for g, s in np.argwhere(out)}
    there = {f"{group.name}/{server}" for group in NOW.groups for server in group.servers}
    assert names == gone & there
    assert names
