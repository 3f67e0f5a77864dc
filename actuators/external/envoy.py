"""The weights of an Envoy, read from its admin endpoint and set in the files that its clusters take their servers from.

https://www.envoyproxy.io/docs/envoy/latest/start/quick-start/configuration-dynamic-filesystem. A cluster is a group. A
file is replaced by a move, which Envoy watches; only `load_balancing_weight` and `health_status` change in it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from actuators.contract.control import Control, MemoryMethod, Weights
from actuators.contract.testbed import Applied, Restored
from actuators.credentials import without_credentials
from actuators.envoy_admin import OUT_BY_EDS, ClusterSource, EnvoyAdmin, Host, address_of, spelt
from actuators.errors import ActuationError, ConfigError
from actuators.external.choice import Member, chosen, unusable
from actuators.external.large_weights import LargeWeights
from actuators.external.restoring import names_of, restoration
from actuators.files import REMEDIES, exclusive, read_regular
from actuators.nginx.reload import write_atomically
from actuators.yaml_files import parse_yaml

OUT = "UNHEALTHY"
"""`health_status` of a server that gets no requests; a weight of 0 is not allowed."""
_SUFFIXES = (".json", ".yaml", ".yml")
_MOST_BYTES = 2**24
_IN_FORCE_S, _LOOK_S = 5.0, 0.02
_LOCK_S = 5.0
_BY_FILE = "let it take its servers from a file that is not a link: `type: EDS` with `path_config_source`"


@dataclass(frozen=True)
class _Wanted:
    weight: int
    down: bool


class EnvoyActuator:
    """The weights of an Envoy (`actuators.external.actuator.Actuator`).

    Args:
        url: ``http://HOST:PORT`` of the admin endpoint. The files must be on this machine, under the paths that Envoy
            knows.
        groups: clusters that are read and set, all whose servers can be set when empty.

    Attributes:
        left_out: clusters whose weights cannot be set because of their servers, and why; only without `groups`, which
            name what must be usable.

    Raises:
        ConfigError: no cluster has servers that can be set, or a named one is unknown or cannot be set, or `url` is not
            an HTTP address.
        ActuationError: the admin endpoint does not answer.
    """

    in_memory = True

    def __init__(self, url: str, groups: Sequence[str] = ()) -> None:
        self._url, self._where, self._large = url, without_credentials(url), LargeWeights()
        clusters = self._clusters()
        if not clusters:
            raise ConfigError(
                "Envoy has no cluster with servers", where=self._where, remedy="give the address of another"
            )
        self.topology, self.left_out = chosen(_members(clusters), groups, self._where)

    def control(self) -> Weights:
        """The weights in force, 1…100: larger ones are scaled.

        Raises ActuationError, and ConfigError when all servers of a cluster are out of rotation.
        """
        values, down = np.zeros(self.topology.shape), np.zeros(self.topology.shape, bool)
        for (g, s), host in self._cells().items():
            values[g, s], down[g, s] = host.weight, host.out
        return self._large.scaled(self.topology, values, down)

    @property
    def balance(self) -> str:
        """The balancing policy of all groups in Envoy's words, several of them with commas. Raises ActuationError."""
        return ", ".join(sorted(set(self.methods().values())))

    def methods(self) -> dict[str, str]:
        """Group → its balancing policy in Envoy's words. Raises ActuationError."""
        return {name: source.policy for name, source in self.sources().items()}

    def sources(self) -> dict[str, ClusterSource]:
        """Where each group has its servers from. Raises ActuationError."""
        with EnvoyAdmin(self._url) as admin:
            sources = admin.sources()
        names = [group.name for group in self.topology.groups]
        missing = [name for name in names if name not in sources]
        if missing:
            raise ActuationError(
                f"the configuration dump has no cluster '{missing[0]}'", where=self._where, remedy="start again"
            )
        return {name: sources[name] for name in names}

    def without_weights(self) -> dict[str, str]:
        """Group → why its weights cannot be changed; empty when all can. Raises ActuationError."""
        reasons = {name: _reason(source) for name, source in self.sources().items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def apply(self, control: Control) -> Applied:
        """As `Actuator.apply`; service times are refused, because Envoy has no such method."""
        began_s = time.monotonic()
        if not isinstance(control, Weights):
            raise ActuationError("Envoy takes weights, not service times", where=self._where)
        if control.topology != self.topology:
            raise ActuationError("the control is of another topology", where=self._where)
        wanted: dict[str, dict[str, _Wanted]] = {}
        taken_out: set[str] = set()
        values = self._large.unscaled(control)
        for (g, s), host in self._cells().items():
            weight, down = int(values[g, s]), bool(control.down[g, s])
            if (host.weight, host.out) != (weight, down):
                wanted.setdefault(self.topology.groups[g].name, {})[host.server] = _Wanted(weight, down)
            if down and not host.out:
                taken_out.add(self.topology.groups[g].name)
        if not wanted:
            return Applied(False, time.monotonic() - began_s)
        sources = self.sources()
        for name in wanted:
            self._check(sources[name])
            if name in taken_out:
                self._check_panic(sources[name], control.down[self.topology.group_index(name)])
        with contextlib.ExitStack() as stack:
            files = {source.file for name, source in sources.items() if name in wanted and source.file is not None}
            for file in sorted(files):
                stack.enter_context(_changing(file))
            self._put(wanted, sources)
        return Applied(True, time.monotonic() - began_s)

    def restore(self, first: Control, method: MemoryMethod | None = None) -> Restored:
        """As `Actuator.restore`, also when servers or clusters came or went meanwhile; those of a cluster that cannot
        be set now (`left_out`) are `missing`. The method is that of Envoy's configuration.
        """
        began_s, clusters = time.monotonic(), _members(self._clusters())
        reasons, groups = unusable(clusters, self._where), {group.name for group in first.topology.groups}
        names = [name for name in clusters if name in groups and name not in reasons]
        if not names:
            return Restored(False, time.monotonic() - began_s, missing=tuple(names_of(first.topology)))
        present = EnvoyActuator(self._url, names)
        present._large = self._large
        found = restoration(first, present.control())
        changed = present.apply(found.control).changed
        return Restored(changed, time.monotonic() - began_s, found.restored, found.missing, found.added)

    def _put(self, wanted: Mapping[str, Mapping[str, _Wanted]], sources: Mapping[str, ClusterSource]) -> None:
        """Replaces the files, waits, and puts the old ones back when Envoy does not take the new ones up."""
        old: dict[Path, bytes] = {}
        new: dict[Path, bytes] = {}
        for name, servers in wanted.items():
            source = sources[name]
            assert source.file is not None
            if source.file not in old:
                old[source.file] = new[source.file] = read_regular(source.file, _MOST_BYTES)
            new[source.file] = _edited(new[source.file], source, servers)
        try:
            for file, text in new.items():
                write_atomically(file, text)
            self._await(wanted)
        except (ActuationError, OSError):
            for file, text in old.items():
                # Somebody else may have written another one meanwhile.
                if read_regular(file, _MOST_BYTES) == new[file]:
                    write_atomically(file, text)
            raise

    def _await(self, wanted: Mapping[str, Mapping[str, _Wanted]]) -> None:
        """Returns when Envoy shows these. Raises ActuationError."""
        deadline_s = time.monotonic() + _IN_FORCE_S
        with EnvoyAdmin(self._url) as admin:
            while differ := _differ(admin.clusters(), wanted):
                if time.monotonic() > deadline_s:
                    raise ActuationError(
                        f"Envoy has not taken up the weight of {differ} after {_IN_FORCE_S:g} s", where=self._where,
                        remedy="see its log; it watches the move of a file, in the folder that it knows",
                    )  # fmt: skip
                time.sleep(_LOOK_S)

    def _check(self, source: ClusterSource) -> None:
        """Raises ActuationError where the cluster's weights cannot be changed."""
        if reason := _reason(source):
            raise ActuationError(f"{source.name}: {reason}", where=self._where, remedy=_BY_FILE)

    def _check_panic(self, source: ClusterSource, down: np.ndarray) -> None:
        """Raises ActuationError where Envoy would not obey a change that takes servers out."""
        own = self.topology.mask[self.topology.group_index(source.name)]
        healthy = 100 * float((~down[own]).mean())
        if healthy < source.panic_percent:
            raise ActuationError(
                f"with {healthy:.0f} % of the servers of {source.name} left, Envoy would send requests to all of them",
                where=self._where, remedy=f"healthy_panic_threshold is {source.panic_percent:g} there; set it to 0",
            )  # fmt: skip

    def _clusters(self) -> dict[str, tuple[Host, ...]]:
        with EnvoyAdmin(self._url) as admin:
            return admin.clusters()

    def _cells(self) -> dict[tuple[int, int], Host]:
        """The server of every group and server index. Raises ActuationError when servers came or went."""
        clusters = self._clusters()
        cells: dict[tuple[int, int], Host] = {}
        for g, group in enumerate(self.topology.groups):
            hosts = {host.server: host for host in clusters.get(group.name, ())}
            if set(hosts) != set(group.servers):
                raise ActuationError("the servers of Envoy have changed", where=self._where, remedy="start again")
            cells.update({(g, self.topology.server_index(server)): hosts[server] for server in group.servers})
        return cells


def _members(clusters: Mapping[str, Sequence[Host]]) -> dict[str, list[Member]]:
    return {name: [Member(host.server, host.out) for host in hosts] for name, hosts in clusters.items()}


def _differ(clusters: Mapping[str, Sequence[Host]], wanted: Mapping[str, Mapping[str, _Wanted]]) -> str:
    """The first server that is not as wanted; empty when all are."""
    for name, servers in wanted.items():
        for host in clusters.get(name, ()):
            if host.server in servers and _Wanted(host.weight, host.out) != servers[host.server]:
                return f"{name}/{host.server}"
    return ""


@contextlib.contextmanager
def _changing(file: Path) -> Iterator[None]:
    """Holds the lock beside the file. Raises ActuationError when it cannot be read or written."""
    try:
        with exclusive(file.with_name(f".{file.name}.deepsched-lock"), _LOCK_S):
            yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "run as root, or as the owner of the file and its folder")
        where = str(error.filename or file)
        raise ActuationError(
            f"Envoy's file of endpoints: {error.strerror or error}", where=where, remedy=remedy
        ) from error


def _reason(source: ClusterSource) -> str:
    """Why the weights of a cluster cannot be changed; empty when they can."""
    if source.file is None:
        return f"its servers do not come from a file ({source.kind})"
    if source.file.suffix not in _SUFFIXES:
        return f"{source.file} is neither JSON nor YAML"
    if not source.file.exists():
        return f"{source.file} is not on this machine"
    if source.file.is_symlink():
        return f"{source.file} is a symbolic link"
    return ""


def _edited(text: bytes, source: ClusterSource, servers: Mapping[str, _Wanted]) -> bytes:
    """The file with the weights and health of these servers. Raises ActuationError for one that is not there."""
    file = source.file
    assert file is not None
    in_json = file.suffix == ".json"
    try:
        document = json.loads(text) if in_json else parse_yaml(text.decode())
        missing = set(servers) - _edit(document, source.service, servers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"Envoy's file of endpoints cannot be read: {error!r}"[:300]
        raise ActuationError(what, where=str(file), remedy="it must hold ClusterLoadAssignment resources") from error
    if missing:
        what = f"the file has no server {min(missing)} in {source.service}"
        raise ActuationError(what, where=str(file), remedy="write its address into lb_endpoints")
    return (json.dumps(document, indent=1) + "\n" if in_json else yaml.safe_dump(document, sort_keys=False)).encode()


def _edit(document: Any, service: str, servers: Mapping[str, _Wanted]) -> set[str]:
    """Changes these servers in place; those that were found."""
    found: set[str] = set()
    for resource in document["resources"]:
        # A resource may be wrapped in its name and version.
        assignment = resource.get("resource", resource)
        if assignment.get(spelt(assignment, "cluster_name")) != service:
            continue
        for locality in assignment.get("endpoints") or ():
            for endpoint in locality.get(spelt(locality, "lb_endpoints")) or ():
                server = address_of(endpoint["endpoint"]["address"])
                if server in servers:
                    _set(endpoint, servers[server])
                    found.add(server)
    return found


def _set(endpoint: dict[str, Any], wanted: _Wanted) -> None:
    weight, health = spelt(endpoint, "load_balancing_weight"), spelt(endpoint, "health_status")
    # An absent weight is 1.
    if wanted.weight != 1 or weight in endpoint:
        endpoint[weight] = wanted.weight
    if wanted.down:
        # An operator's DRAINING or TIMEOUT stays.
        if endpoint.get(health) not in OUT_BY_EDS:
            endpoint[health] = OUT
    elif endpoint.get(health) in OUT_BY_EDS:
        del endpoint[health]
