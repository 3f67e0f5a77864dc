"""Sets and reads the control of an NGINX that balances in memory, over HTTP (lua/control.lua)."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from actuators.contract.admission import NEVER
from actuators.contract.control import (
    BY_TIMES,
    MAX_WEIGHT,
    BalancingMethod,
    Control,
    MemoryMethod,
    ServiceTimes,
    Weights,
)
from actuators.contract.late_binding import LateBinding, LateBindingNumbers
from actuators.contract.request_cost import RequestCost
from actuators.contract.testbed import Applied
from actuators.contract.topology import Group, Topology
from actuators.errors import ActuationError, ConfigError
from actuators.nginx.endpoint import TextEndpoint
from actuators.other_proxies import names_another

_METHODS: tuple[MemoryMethod, ...] = (*get_args(BalancingMethod), "configured")

_BASE = "\nbase\n"
"""The line between a new control and its base, in a text."""
_WATCH = "\nwatch\n"
"""The line before the slots and deadlines by which NGINX counts what it would hold."""
_UNKNOWN = Group("unknown", "unknown", "GET", "/", 2.0, ("unknown:1",))


@dataclass(frozen=True)
class Split:
    """A share of the requests is balanced by a new method and control, the others by those that were there before.

    All servers' requests in flight count for both. Raises ConfigError for a percentage out of range.

    Attributes:
        percent: 0 … 100, of the requests that go by `method` and `control`.
        base_method, base_control: for the other requests.
    """

    percent: float
    method: MemoryMethod
    control: Control
    base_method: MemoryMethod
    base_control: Control

    def __post_init__(self) -> None:
        if "late_binding" in (self.method, self.base_method):
            remedy = "put it in force for all requests, or leave it out"
            raise ConfigError("late_binding cannot have a part of the requests", where="canary", remedy=remedy)
        if not 0 <= self.percent <= 100:
            raise ConfigError(f"{self.percent:g} percent of the requests", where="canary", remedy="give 0 to 100")

    @property
    def whole(self) -> tuple[MemoryMethod, Control] | None:
        """What balances all requests, at 0 and 100 percent; else None."""
        if self.percent == 0:
            return self.base_method, self.base_control
        return (self.method, self.control) if self.percent == 100 else None


class MemoryControl:
    """One control endpoint over a kept connection; arguments and errors as of `TextEndpoint`.

    Attributes:
        watched: what is counted beside every control that is set from now on, unless that holds requests itself.
    """

    def __init__(self, url: str, token: str, topology: Topology) -> None:
        self._endpoint, self._token = TextEndpoint(url, token, "control_url"), token
        self.url, self.topology = url, topology
        self.watched: LateBinding | None = None
        self._shown = ""

    @classmethod
    def read(cls, url: str) -> str:
        """The text in force at an endpoint whose topology is not known yet. Raises ConfigError or ActuationError."""
        with contextlib.closing(cls(url, "", Topology((_UNKNOWN,)))) as endpoint:
            return endpoint._endpoint.request("GET")

    def put(self, method: MemoryMethod, control: Control, beside: Weights | None = None) -> None:
        """Returns when every worker uses the control: no later request is balanced by the old one.

        Args:
            beside: kept for a method by weights that is set later; servers that are down in it get no requests.

        Raises ActuationError when it is refused or reads back differently; then the old one is in force.
        """
        self._put(put_text(method, control, beside))

    def weights(self) -> Weights:
        """The weights in force, or beside service times those that were kept. Raises ActuationError."""
        self._shown = self._endpoint.request("GET")
        return _weights(_lines(_arms(self._shown)[0]), self.topology)

    def put_split(
        self, percent: float, method: MemoryMethod, control: Control, base_method: MemoryMethod, base_control: Control
    ) -> None:
        """As `put`, for `percent` of the requests; the others go by the base. At 0 and 100 one of them is alone.

        Raises ActuationError, or ConfigError for a percentage out of range.
        """
        split = Split(percent, method, control, base_method, base_control)
        if split.whole:
            self.put(*split.whole)
        else:
            new, base = to_text(method, control), to_text(base_method, base_control)
            self._put(f"{new}canary {float(percent)!r}{_BASE}{base}")

    def watch(self, holding: LateBinding | None) -> None:
        """Beside the control in force, NGINX counts which requests this would hold; None for nothing.

        Raises ActuationError, also for an NGINX whose locations ask for no slot; then all is as before.
        """
        before, self.watched = self.watched, holding
        try:
            self._put(_without_watch(self._endpoint.request("GET")))
        except ActuationError:
            self.watched = before
            raise

    def rotate(self, down: NDArray[np.bool_]) -> None:
        """These servers ``[groups, servers]`` are out of rotation from now on, also for the base of a split; everything
        else in force stays.

        Raises ActuationError; then all is as before.
        """
        head, watch_mark, watch = self._endpoint.request("GET").partition(_WATCH)
        new, base_mark, base = head.partition(_BASE)
        lines = _down_lines(self.topology, down)
        rotated = _with_down(new, lines) + base_mark + (_with_down(base, lines) if base_mark else "")
        self._put(rotated + watch_mark + watch)

    def sample(self, rate_rps: float | None) -> None:
        """Beside the control in force, NGINX keeps so many samples a second of what requests cost; None ends it.

        Raises ActuationError, also during a canary; then all is as before.
        """
        text = self._endpoint.request("GET")
        if is_split(text):
            remedy = "end it: deepsched steer mode shadow, or steer revert"
            raise ActuationError("a controller's canary is in force", where=self.url, remedy=remedy)
        lines = [line for line in text.splitlines() if not line.startswith("samples ")]
        lines[1:1] = [] if rate_rps is None else [f"samples {float(rate_rps)!r}"]
        self._put("\n".join(lines) + "\n")

    def samples_kept(self) -> bool:
        """Whether samples are kept. Raises ActuationError."""
        return any(line.startswith("samples ") for line in self._endpoint.request("GET").splitlines())

    def samples(self) -> list[str]:
        """The newest samples, a line each as lua/samples.lua writes them. Raises ActuationError."""
        with contextlib.closing(TextEndpoint(f"{self.url}?samples", self._token, "control_url")) as endpoint:
            return endpoint.request("GET").splitlines()

    def _put(self, text: str) -> None:
        if self.watched is not None and ("method", "late_binding") not in _lines(text):
            text += _watch_text(self.watched)
        before = self._shown or self._endpoint.request("GET")
        # A refused text changes nothing; the response to an accepted one is what the worker's tables now hold.
        shown = self._endpoint.request("POST", text)
        if not _shows(shown, text):
            self._shown = self._endpoint.request("POST", before)
            raise ActuationError("NGINX reports a control that differs from the one applied", where=self.url)
        self._shown = shown

    def apply(self, control: Control) -> Applied:
        """As `put`, under the method in force, of a split the new one; does nothing when that is so already.

        Raises ActuationError.
        """
        began_s = time.monotonic()
        method, old = self.get()
        if isinstance(control, ServiceTimes) != (method in BY_TIMES):
            wanted = "service times" if method in BY_TIMES else "weights"
            raise ActuationError(f"{method} takes {wanted}", where=self.url)
        changed = isinstance(control, ServiceTimes) or control != old or is_split(self._shown)
        if changed:
            self.put(method, control)
        return Applied(changed, time.monotonic() - began_s)

    def get(self) -> tuple[MemoryMethod, Control]:
        """The method and control in force, of a split the new ones, from a worker's tables. Raises ActuationError."""
        self._shown = self._endpoint.request("GET")
        return from_text(self._shown, self.topology)

    def get_split(self) -> Split | None:
        """The split in force; None when one method and control balance all requests. Raises ActuationError."""
        self._shown = self._endpoint.request("GET")
        if not is_split(self._shown):
            return None
        new, base = _arms(self._shown)
        percent = float(_lines(new)["canary",])
        return Split(percent, *from_text(new, self.topology), *from_text(base, self.topology))

    def forget_failures(self) -> None:
        """Puts all servers back in rotation and clears their error scores. Raises ActuationError."""
        self._endpoint.request("DELETE")

    def close(self) -> None:
        self._endpoint.close()


def to_text(method: MemoryMethod, control: Control) -> str:
    """The control as lua/control.lua reads it; a text is complete, nothing of an earlier one remains."""
    head = f"method {method}\n"
    if isinstance(control, Weights):
        return head + _weight_lines(control)
    lines, topology = [], control.topology
    for g, group in enumerate(topology.groups):
        for server in group.servers:
            lines += [f"tau {group.name} {server} {float(control.tau_s[g, topology.server_index(server)])!r}"]
    lines += _down_lines(topology, control.down)
    workers = zip(topology.servers, control.workers, strict=True)
    lines.extend(f"workers {server} {float(number)!r}" for server, number in workers)
    lines.extend(_holding_lines(control.holding) if control.holding is not None else ())
    return head + "\n".join(lines) + "\n"


def _with_down(arm: str, lines: list[str]) -> str:
    """The lines of one control, in which exactly these servers are down."""
    kept = [line for line in arm.split("\n") if not line.startswith("down ")]
    return "\n".join([kept[0], *lines, *kept[1:]])


def put_text(method: MemoryMethod, control: Control, beside: Weights | None) -> str:
    """What `MemoryControl.put` sets: the control, and weights for a method that is set later."""
    return to_text(method, control) + ("" if beside is None else _weight_lines(beside))


def _weight_lines(weights: Weights) -> str:
    lines, topology = [], weights.topology
    for g, group in enumerate(topology.groups):
        for server in group.servers:
            lines += [f"weight {group.name} {server} {weights.values[g, topology.server_index(server)]}"]
    return "".join(f"{line}\n" for line in (*lines, *_down_lines(topology, weights.down)))


def _down_lines(topology: Topology, down: NDArray[np.bool_]) -> list[str]:
    return [
        f"down {group.name} {server}"
        for g, group in enumerate(topology.groups)
        for server in group.servers
        if down[g, topology.server_index(server)]
    ]


def from_text(text: str, topology: Topology) -> tuple[MemoryMethod, Control]:
    """The method and control of a text, of a split the new ones. Raises ActuationError for a text without a method."""
    lines = _lines(_arms(text)[0])
    method = next((name for name in _METHODS if ("method", name) in lines), None)
    if method is None:
        raise ActuationError("the control has no known method", where="control in memory", evidence=text[:80])
    tau_s, workers = np.zeros(topology.shape), np.ones(topology.shape[1])
    for g, group in enumerate(topology.groups):
        for server in group.servers:
            s = topology.server_index(server)
            tau_s[g, s] = float(lines.get(("tau", group.name, server), "0"))
            workers[s] = float(lines.get(("workers", server), "1"))
    if method in BY_TIMES and (tau_s[topology.mask] > 0).all():
        return method, ServiceTimes(topology, tau_s, workers, _holding(lines, topology), _down(lines, topology))
    return method, _weights(lines, topology)


def _weights(lines: dict[tuple[str, ...], str], topology: Topology) -> Weights:
    values = np.zeros(topology.shape, np.int64)
    for g, group in enumerate(topology.groups):
        for server in group.servers:
            values[g, topology.server_index(server)] = int(lines.get(("weight", group.name, server), "1"))
    return Weights(topology, _scaled(values), _down(lines, topology))


def _down(lines: dict[tuple[str, ...], str], topology: Topology) -> NDArray[np.bool_]:
    down = np.zeros(topology.shape, bool)
    for g, group in enumerate(topology.groups):
        for server in group.servers:
            down[g, topology.server_index(server)] = ("down", group.name, server) in lines
    return down


def _holding_lines(holding: LateBinding) -> list[str]:
    """What lua/control.lua reads of late binding."""
    topology = holding.topology
    return [
        f"order {holding.numbers.order}",
        *(f"number {name} {value!r}" for name, value in holding.numbers.in_nginx().items()),
        *(f"slots {server} {slots}" for server, slots in zip(topology.servers, holding.slots, strict=True)),
        *(
            f"deadline {group.name} {float(deadline_s)!r}"
            for group, deadline_s in zip(topology.groups, holding.deadlines_s, strict=True)
        ),
        *(
            f"importance {group.name} {float(weight)!r}"
            for group, weight in zip(topology.groups, holding.weights(), strict=True)
            if weight != 1.0
        ),
        *(
            f"never {group.name}"
            for group, importance in zip(topology.groups, holding.importance, strict=True)
            if importance == NEVER
        ),
        *(
            f"cost {group} {feature} {weight!r}"
            for group, terms in holding.costs.in_force().items()
            if group in {each.name for each in topology.groups}
            for feature, weight in terms.items()
        ),
    ]


def _holding(lines: dict[tuple[str, ...], str], topology: Topology) -> LateBinding | None:
    """None without slots."""
    order = next((words[1] for words in lines if words[0] == "order"), None)
    if order is None:
        return None
    numbers = {words[1]: float(value) for words, value in lines.items() if words[0] == "number"}
    return LateBinding(
        topology,
        np.array([float(lines["deadline", group.name]) for group in topology.groups]),
        np.array([int(float(lines["slots", server])) for server in topology.servers]),
        LateBindingNumbers.model_validate({"order": order, **numbers}),
        np.array([_importance(lines, group.name) for group in topology.groups]),
        _costs(lines),
    )


def _costs(lines: dict[tuple[str, ...], str]) -> RequestCost:
    terms: dict[str, dict[str, float]] = {}
    for words, value in lines.items():
        if words[0] == "cost":
            terms.setdefault(words[1], {})[words[2]] = float(value)
    return RequestCost.of_terms(terms)


def _importance(lines: dict[tuple[str, ...], str], group: str) -> float:
    return NEVER if ("never", group) in lines else float(lines.get(("importance", group), "1"))


def _watch_text(holding: LateBinding) -> str:
    """The lines beneath `watch` that lua/control.lua reads, with that one."""
    lines = _holding_lines(holding)
    return "\n".join(["watch", *(line for line in lines if line.split()[0] in ("slots", "deadline"))]) + "\n"


def _without_watch(text: str) -> str:
    head, mark, _ = text.partition(_WATCH)
    return head + "\n" if mark else head


def is_watching(text: str) -> bool:
    """Whether what late binding would hold is counted beside the control of a text."""
    return _WATCH in text


def _scaled(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Weights in lowest terms where one of the group exceeds MAX_WEIGHT; if it still does, nearest to their ratios."""
    largest = values.max(axis=1, keepdims=True)
    lowest = values // np.where(largest > MAX_WEIGHT, np.gcd.reduce(values, axis=1, keepdims=True), 1)
    largest = lowest.max(axis=1, keepdims=True)
    scaled = np.maximum(np.rint(lowest * MAX_WEIGHT / largest), 1).astype(np.int64)
    return np.where(largest > MAX_WEIGHT, scaled, lowest)


def beside(control_url: str, name: str) -> str:
    """The address of another location beside the control endpoint; the URL of an HAProxy or Envoy serves all.

    Raises ConfigError for what is not an endpoint.
    """
    if names_another(control_url):
        return control_url
    head, slash, last = control_url.rpartition("/")
    if not slash or not last or "://" not in head:
        raise ConfigError(
            f"'{control_url}' is not a control endpoint", where="control_url",
            remedy="give it as http://127.0.0.1:8090/control",
        )  # fmt: skip
    return f"{head}/{name}"


def topology_from_text(text: str) -> Topology:
    """Groups and servers of a control text, in its order. Raises ActuationError when it has none."""
    groups: dict[str, list[str]] = {}
    for words in _lines(_arms(text)[0]):
        if words[0] == "weight" and len(words) == 3:
            groups.setdefault(words[1], []).append(words[2])
    if not groups:
        raise ActuationError("not a control text", where="control in memory", evidence=text[:80])
    return Topology(tuple(Group(name, name, "GET", "/", 2.0, tuple(servers)) for name, servers in groups.items()))


def _arms(text: str) -> tuple[str, str]:
    """The lines of the new control and those of its base; the latter is empty without a split."""
    new, _, base = _without_watch(text).partition(_BASE)
    return new, base


def is_split(text: str) -> bool:
    """Whether a text has a base beside the new control."""
    return bool(_arms(text)[1])


def _lines(text: str) -> dict[tuple[str, ...], str]:
    """(word, names…) → value; '' for a flag such as `down`."""
    table = {}
    for line in text.splitlines():
        words = tuple(line.split())
        flag = words[:1] in (("down",), ("method",), ("order",), ("never",))
        table[words if flag else words[:-1]] = "" if flag else words[-1]
    return table


def _shows(shown: str, wanted: str) -> bool:
    """Whether all of the wanted text is in force, and nothing of another one."""
    present, expected = (_lines(text.partition(_WATCH)[2]) for text in (shown, wanted))
    watches = present.keys() == expected.keys() and all(_equal(present[words], expected[words]) for words in expected)
    return is_split(shown) == is_split(wanted) and watches and all(map(_arm_shows, _arms(shown), _arms(wanted)))


def _arm_shows(shown: str, wanted: str) -> bool:
    """Whether all of the wanted lines are in force, and no server is down that should be up."""
    present, expected = _lines(shown), _lines(wanted)
    extra = {words for words in present if words[:1] in (("down",), ("never",))} - set(expected)
    same = all(words in present and _equal(present[words], value) for words, value in expected.items())
    return same and not extra


def _equal(shown: str, wanted: str) -> bool:
    return shown == wanted or (shown != "" and wanted != "" and float(shown) == float(wanted))
