"""Several testbeds at once on a Ray cluster: placed, conducted, leased, watched, and all ended together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actuators.contract.control import BalancingMethod
from actuators.contract.testbed import Testbed
from actuators.contract.topology import Topology
from actuators.errors import CapacityError
from actuators.testbed.parts import LiveOptions
from actuators.testbed.placement import PROXY_BUNDLE, check_capacity, start_remote_testbed, testbed_bundles
from tuning.live.conductor import CONDUCTOR, News
from tuning.live.leases import LEASE_DESK, Leaser

NAMESPACE = "deepsched"
PLACE_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 8.0
WATCH_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class LiveRecipe:
    """How a conductor builds its live testbed; every build gets a folder of its own."""

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


class Testbeds:
    """Conductors over testbeds that run until this is closed; a context manager.

    Args:
        makers: name → what builds that testbed (a number of build → Testbed), pickled to its conductor.
        places: name → placement group, and the first of its bundles that the testbed has; its proxy bundle holds
            the conductor. None places it anywhere.
        owned: placement groups to remove at the end.
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
        self.conductors = {
            name: CONDUCTOR.options(
                name=_free_name(name), namespace=NAMESPACE, scheduling_strategy=self._strategy(name)
            ).remote(name, make, method)
            for name, make in makers.items()
        }
        self.leaser = Leaser(LEASE_DESK.remote(list(makers)), self.conductors)

    @classmethod
    def live(
        cls, count: int, topology: Topology, options: LiveOptions, work_dir: Path, seed: int, method: BalancingMethod
    ) -> Testbeds:
        """`count` live testbeds, each in a placement group of its own; they start at their first reset.

        Raises CapacityError, in words, when they do not fit on the cluster at once.
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
        """Faults and repairs since the last call, as far as the conductors can be asked now."""
        asked = {c.news.remote(self._heard[name]): name for name, c in self.conductors.items()}
        found: list[News] = []
        for reference in ray.wait(list(asked), num_returns=len(asked), timeout=WATCH_TIMEOUT_S)[0]:
            name = asked[reference]
            try:
                fresh = ray.get(reference)
            except ray.exceptions.RayActorError:
                # It is being restarted, and then counts from 1 again.
                self._heard[name] = 0
                continue
            found += fresh
            self._heard[name] = max([self._heard[name], *(news.number for news in fresh)])
        return found

    def close(self) -> None:
        """Ends all testbeds at once, their actors and placement groups; may be called twice."""
        conductors, self.conductors = self.conductors, {}
        if conductors:
            closing = [conductor.close.remote() for conductor in conductors.values()]
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_TIMEOUT_S)
            for conductor in conductors.values():
                ray.kill(conductor)
            ray.kill(self.leaser.desk)
        for group in self._owned:
            remove_placement_group(group)
        self._owned = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _strategy(self, name: str) -> Any:
        if name not in self._places:
            return "DEFAULT"
        group, first_bundle = self._places[name]
        return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=first_bundle + PROXY_BUNDLE)


def running_testbeds() -> list[dict[str, Any]]:
    """What every testbed on the connected cluster says of itself (`Conductor.describe`), of all runs, by name."""
    named = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if actor["namespace"] == NAMESPACE]
    asked = [ray.get_actor(actor["name"], namespace=NAMESPACE).describe.remote() for actor in named]
    if not asked:
        return []
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=2 * WATCH_TIMEOUT_S)
    return sorted(ray.get(answered), key=lambda row: str(row["name"]))


def _await_placed(groups: dict[str, PlacementGroup]) -> None:
    """Capacity was there in sum; raises CapacityError when others hold it or no single node has a bundle's share."""
    ready = [group.ready() for group in groups.values()]
    placed, waiting = ray.wait(ready, num_returns=len(ready), timeout=PLACE_TIMEOUT_S)
    if waiting:
        free = ray.available_resources()
        shown = ", ".join(f"{name} {free.get(name, 0):g}" for name in ("proxy", "client", "server"))
        raise CapacityError(
            f"only {len(placed)} of {len(ready)} testbeds got their place within {PLACE_TIMEOUT_S:g} s",
            where=f"free now: {shown}",
            remedy="wait for other work to end, ask for fewer testbeds or add nodes",
        )


def _free_name(name: str) -> str:
    """A name that no other testbed on this cluster has: two runs may share a cluster."""
    taken = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}.{number}"
    return candidate
