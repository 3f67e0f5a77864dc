"""A set of testbeds on a Ray cluster: places them, starts a conductor for each, leases them and closes them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actuators.closing import Closing
from actuators.contract.control import BalancingMethod
from actuators.contract.testbed import Testbed
from actuators.contract.topology import Topology
from actuators.errors import CapacityError
from actuators.testbed.options import LiveOptions
from actuators.testbed.placement import (
    NAMESPACE,
    PROXY_BUNDLE,
    check_capacity,
    create_named,
    start_remote_testbed,
    taken_names,
    testbed_bundles,
)
from tuning.live.conductor import CONDUCTOR, News
from tuning.live.leases import LEASE_DESK, Leaser

PLACE_TIMEOUT_S, PLACE_PER_TESTBED_S = 60.0, 0.5
CLOSE_TIMEOUT_S, CLOSE_PER_TESTBED_S = 8.0, 0.1
WATCH_TIMEOUT_S, WATCH_PER_TESTBED_S = 2.0, 0.01
"""How long placing, closing and asking all testbeds may take; the second of each for every testbed."""


@dataclass(frozen=True)
class LiveRecipe:
    """Builds the live testbed of a conductor; every build writes to a new folder."""

    topology: Topology
    options: LiveOptions
    work_dir: Path
    seed: int
    group: PlacementGroup
    first_bundle: int = 0

    def __call__(self, build: int) -> Testbed:
        folder = self.work_dir if build == 0 else self.work_dir.with_name(f"{self.work_dir.name}-build{build + 1}")
        return start_remote_testbed(
            self.topology, self.options, folder, self.seed, self.group, self.first_bundle, hold_proxy=True
        )


class Testbeds(Closing):
    """Starts a conductor per testbed and ends them all in `close`; a context manager.

    Args:
        makers: name → function that builds the testbed from the build number; pickled to its conductor.
        places: name → placement group and index of the testbed's first bundle; the conductor runs in its proxy
            bundle. None lets Ray place the conductors.
        owned: placement groups that `close` removes.
    """

    def __init__(
        self,
        makers: dict[str, Callable[[int], Testbed]],
        method: BalancingMethod,
        places: dict[str, tuple[PlacementGroup, int]] | None = None,
        owned: Sequence[PlacementGroup] = (),
    ) -> None:
        self._places, self._owned = places or {}, owned
        self._heard = dict.fromkeys(makers, 0)
        taken = taken_names()
        self.conductors = {
            name: create_named(name, partial(self._start, name, make, method), taken)[1]
            for name, make in makers.items()
        }
        self._state = tempfile.TemporaryDirectory(prefix="deepsched-leases-")
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        desk = LEASE_DESK.options(scheduling_strategy=here).remote(list(makers), Path(self._state.name) / "leases.json")
        self.leaser = Leaser(desk, self.conductors)

    @classmethod
    def live(
        cls, count: int, topology: Topology, options: LiveOptions, work_dir: Path, seed: int, method: BalancingMethod
    ) -> Testbeds:
        """`count` live testbeds, each in its own placement group; they start at their first reset.

        Raises:
            CapacityError: they do not fit on the cluster at once.
        """
        check_capacity(count, len(topology.servers))
        names = [f"testbed-{number + 1}" for number in range(count)]
        groups = {name: placement_group(testbed_bundles(len(topology.servers))) for name in names}
        recipes: dict[str, Callable[[int], Testbed]] = {
            name: LiveRecipe(topology, options, work_dir.absolute() / name, seed + number, groups[name])
            for number, name in enumerate(names)
        }
        try:
            _await_placed(groups)
            return cls(recipes, method, {name: (group, 0) for name, group in groups.items()}, list(groups.values()))
        except BaseException:
            for group in groups.values():
                remove_placement_group(group)
            raise

    def news(self) -> list[News]:
        """Faults and repairs since the last call, of the conductors that answer in time (2 s for a few)."""
        timeout_s = WATCH_TIMEOUT_S + WATCH_PER_TESTBED_S * len(self.conductors)
        requests = {c.news.remote(self._heard[name]): name for name, c in self.conductors.items()}
        news: list[News] = []
        for reference in ray.wait(list(requests), num_returns=len(requests), timeout=timeout_s)[0]:
            name = requests[reference]
            try:
                fresh = ray.get(reference)
            except ray.exceptions.RayActorError:
                continue  # Ray is restarting it
            news += fresh
            self._heard[name] = max([self._heard[name], *(news.number for news in fresh)])
        return news

    def close(self) -> None:
        """Ends all testbeds in parallel and removes their actors and placement groups; idempotent."""
        conductors, self.conductors = self.conductors, {}
        if conductors:
            closing = [conductor.close.remote() for conductor in conductors.values()]
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_TIMEOUT_S + CLOSE_PER_TESTBED_S * len(closing))
            for conductor in conductors.values():
                ray.kill(conductor)
            ray.kill(self.leaser.desk)
            self._state.cleanup()
        for group in self._owned:
            remove_placement_group(group)
        self._owned = ()

    def _start(self, name: str, make: Callable[[int], Testbed], method: BalancingMethod, shown: str) -> Any:
        """The conductor of a testbed, under the name that `deepsched testbeds` shows."""
        options = CONDUCTOR.options(name=shown, namespace=NAMESPACE, scheduling_strategy=self._strategy(name))
        return options.remote(name, make, method)

    def _strategy(self, name: str) -> Any:
        if name not in self._places:
            return "DEFAULT"
        group, first_bundle = self._places[name]
        return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=first_bundle + PROXY_BUNDLE)


def running_testbeds() -> list[dict[str, Any]]:
    """The state of every testbed and controller on the connected cluster, of all runs, sorted by name.

    Keys as `Conductor.describe` has them; `doing` says when one does not answer.
    """
    named = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)
             if actor["namespace"] == NAMESPACE}  # fmt: skip
    asked = {name: _asked(name) for name in sorted(named)}
    waiting = [reference for reference in asked.values() if reference is not None]
    if waiting:
        timeout_s = 2 * WATCH_TIMEOUT_S + WATCH_PER_TESTBED_S * len(waiting)
        ray.wait(waiting, num_returns=len(waiting), timeout=timeout_s)
    return [_described(name, reference) for name, reference in asked.items()]


def _asked(name: str) -> Any:
    """A reference to the state of an actor; None when it has ended, or is one of another version."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE).describe.remote()
    except (ValueError, AttributeError):
        return None


def _described(name: str, reference: Any) -> dict[str, Any]:
    unknown = {"name": name, "doing": "does not answer", "method": "", "windows": "", "faults": "", "builds": "",
               "places": {}}  # fmt: skip
    if reference is None:
        return unknown
    try:
        state: dict[str, Any] = ray.get(reference, timeout=0)
        return unknown | state
    except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
        return unknown


def _await_placed(groups: dict[str, PlacementGroup]) -> None:
    """Waits for the placement; raises CapacityError when other jobs hold the resources or a bundle fits on no node."""
    ready = [group.ready() for group in groups.values()]
    timeout_s = PLACE_TIMEOUT_S + PLACE_PER_TESTBED_S * len(ready)
    placed, waiting = ray.wait(ready, num_returns=len(ready), timeout=timeout_s)
    if waiting:
        free = ray.available_resources()
        shown = ", ".join(f"{name} {free.get(name, 0):g}" for name in ("proxy", "client", "server"))
        raise CapacityError(
            f"only {len(placed)} of {len(ready)} testbeds were placed within {timeout_s:g} s",
            where=f"free now: {shown}",
            remedy="wait for other jobs to end, use fewer testbeds or add nodes",
        )
