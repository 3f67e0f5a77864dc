"""`deepsched holding show|set|off`: late binding of an NGINX whose snippet has it, by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from actuators.contract.arrays import FloatArray
from actuators.contract.control import Control, MemoryMethod, ServiceTimes
from actuators.contract.late_binding import LateBinding, LateBindingNumbers, LateBindingPlan
from actuators.contract.request_cost import RequestCost
from actuators.contract.topology import Topology
from actuators.errors import ActuationError, ConfigError
from actuators.files import read_token
from actuators.nginx.control_endpoint import MemoryControl, beside, is_split, put_text, topology_from_text
from actuators.options import NOT_GIVEN, Never, Only, Options
from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import Balancer, HoldEntry
from rayjobs.cli.console import console_out, log_line
from rayjobs.cli.main import Verb
from rayjobs.cli.restarts import kept_for_restarts
from rayjobs.holding.slots import require_slots

if TYPE_CHECKING:
    from envs.calibration.result import Calibration

_log = partial(log_line, "holding")

UNTIL_CHANGED_S = 1e8
"""Validity of what is set by hand, which no controller renews: three years."""
_WORDS = {
    "holding": "requests wait for a slot",
    "watching": "requests that would be held are counted, none is held",
    "off": "no request is held: another method is in force",
    "unset": "no request is held: service times or slots are missing",
    "stale": "no request is held: the control was not renewed in time, and least_conn balances",
    "failing": "no request is held for 10 s after an error of the Lua code; see NGINX's error log",
    "absent": "no location of this NGINX asks for a slot: write its snippet with --set memory.late_binding=true",
}


class ShowOptions(Options):
    """Which NGINX."""

    control_url: str
    """Control endpoint of an NGINX whose snippet has late binding, as http://127.0.0.1:8090/control; /status beside it
    is used."""


class ChangeOptions(ShowOptions):
    """Which NGINX."""

    token_file: Path | None = None
    """File with the token of the control endpoint; changes are refused when not given."""
    keep: Path | None = None
    """SNIPPET.holding beside the snippet: a restarted NGINX loads late binding from this file. When not given, it does
    not change."""


class OffOptions(ChangeOptions):
    """Which NGINX, and what balances it from then on."""

    method: Literal["configured", "expected_delay", "least_conn", "round_robin"] = "configured"
    """`configured`: each group as its upstream block says; `expected_delay` keeps the service times in force."""


class SetOptions(ChangeOptions, LateBindingPlan):
    """How requests are held, and by which service times."""

    only: ClassVar = {
        "numbers.valid_s": Never("what is set by hand is valid until it is changed"),
        "numbers": Only(numbers_file=NOT_GIVEN),
        "keep": Only(hold=True),
    }

    calibration: Path | None = None
    """`calibration.json` of the system, as `onboard` and `calibrate` write it: its service times, and its deadlines.
    When not given, the service times in force stay, and `deadlines_ms` has every deadline."""
    workers: Annotated[float | None, Field(ge=1, le=1e4)] = None
    """Requests that a server serves at once, for servers without `slots`; those of the calibration when not given. Too
    few leave servers idle while requests wait."""
    numbers_file: Path | None = None
    """What `deepsched holding tune` has found: `holding.json`, or the folder of a search; `numbers` when not given."""
    cost_file: Path | None = None
    """What `deepsched holding learn` has found of the cost of requests: `cost.json`, or the folder of a bundle with it;
    all requests of a group cost the same when not given."""
    hold: bool = False
    """Hold requests; as long as it is false, what would be held is only counted, and the method in force stays."""


def show(options: ShowOptions) -> int:
    """Prints whether requests are held, and what was counted since NGINX started; 1 where no location asks for a
    slot.
    """
    with StatusReader(beside(options.control_url, "status")) as reader:
        balancer = reader.snapshot().balancer
    state = "absent" if balancer is None or balancer.holding is None else balancer.holding.state
    if balancer is None or state == "absent":
        _log(_WORDS["absent"])
        return 1
    for line in _lines(balancer, MemoryControl.read(options.control_url)):
        console_out().print(line, markup=False, soft_wrap=True)
    return 0


def set_holding(options: SetOptions) -> int:
    """Counts what would be held, or holds it."""
    with _endpoint(options) as endpoint:
        method, present = endpoint.get()
        if endpoint.get_split() is not None:
            remedy = "end it: deepsched steer mode shadow, or steer revert"
            raise ActuationError("a controller's canary is in force", where=options.control_url, remedy=remedy)
        if not options.hold and method == "late_binding":
            # Another method has to balance while requests are only counted; the slots before would stay in force.
            remedy = "--hold changes how; deepsched holding off ends it"
            raise ActuationError("requests are held", where=options.control_url, remedy=remedy)
        times, weights = _times(options, endpoint, present), endpoint.weights()
        with _keeping(options, put_text("late_binding", times, weights)):
            if options.hold:
                endpoint.put("late_binding", times, beside=weights)
            else:
                endpoint.watch(times.holding)
    assert times.holding is not None
    for line in _told(times.holding, options.hold, method):
        _log(line)
    return 0


def off(options: OffOptions) -> int:
    """Nothing is held or counted any more."""
    with _endpoint(options) as endpoint, _keeping(options, None):
        method, present = endpoint.get()
        if method != "late_binding":
            endpoint.watch(None)
            _log(f"nothing is held; {method} is in force, as before")
            return 0
        weights = endpoint.weights()
        if options.method == "expected_delay" and isinstance(present, ServiceTimes):
            endpoint.put(options.method, replace(present, holding=None), beside=weights)
        else:
            endpoint.put(options.method, weights)
    _log(f"nothing is held; {options.method} is in force")
    return 0


@contextlib.contextmanager
def _endpoint(options: ChangeOptions) -> Iterator[MemoryControl]:
    token = read_token(options.token_file)
    topology = topology_from_text(MemoryControl.read(options.control_url))
    require_slots(options.control_url)
    with contextlib.closing(MemoryControl(options.control_url, token, topology)) as endpoint:
        yield endpoint


@contextlib.contextmanager
def _keeping(options: ChangeOptions, text: str | None) -> Iterator[None]:
    """As `kept_for_restarts`."""
    with StatusReader(beside(options.control_url, "status")) as reader:
        balancer = reader.snapshot().balancer
    read = balancer.holding.kept if balancer is not None and balancer.holding is not None else ""
    begins = "as its configuration says" if text is None else f"so, by {options.keep}"
    with kept_for_restarts(options.keep, read, text, begins, _log):
        yield


def _times(options: SetOptions, endpoint: MemoryControl, present: Control) -> ServiceTimes:
    """Service times, and what is held. Raises ConfigError for what is not known or not there."""
    topology = endpoint.topology
    chosen = options.numbers if options.numbers_file is None else _tuned(options.numbers_file, topology)
    numbers = LateBindingNumbers.model_validate({**chosen.model_dump(), "valid_s": UNTIL_CHANGED_S})
    plan = options.model_copy(update={"numbers": numbers})
    costs = RequestCost() if options.cost_file is None else RequestCost.load(options.cost_file)
    if options.calibration is None:
        if not isinstance(present, ServiceTimes):
            remedy = "give --calibration"
            raise ConfigError("no service times are in force", where="calibration", remedy=remedy)
        each = present.workers if options.workers is None else np.full(len(topology.servers), options.workers)
        unknown = np.full(len(topology.groups), np.nan)
        return replace(present, workers=each, holding=replace(plan.binding(topology, unknown, each), costs=costs))
    # The calibration's readers load numpy's statistics, which `holding show` does without.
    from envs.calibration.result import Calibration

    known = Calibration.load(options.calibration)
    workers = np.full(len(topology.servers), options.workers or float(known.parameters.workers))
    tau_s, deadlines_s = _calibrated(known, endpoint)
    holding = replace(plan.binding(topology, deadlines_s, workers), costs=costs)
    return ServiceTimes(topology, tau_s, workers, holding)


def _tuned(path: Path, topology: Topology) -> LateBindingNumbers:
    """Raises ConfigError for numbers of another system."""
    from envs.calibration.tuned_holding import TunedHolding

    tuned = TunedHolding.load(path)
    if set(tuned.groups) != {group.name for group in topology.groups}:
        what = f"numbers for the groups {', '.join(tuned.groups)[:200]}"
        raise ConfigError(what, where="numbers_file", remedy="tune this system: deepsched holding tune")
    return tuned.numbers


def _calibrated(known: Calibration, endpoint: MemoryControl) -> tuple[FloatArray, FloatArray]:
    """Service times ``[groups, servers]`` and deadlines ``[groups]`` of a calibration, in the order of NGINX."""
    topology, where = endpoint.topology, "calibration"
    tau_s, deadlines_s = np.ones(topology.shape), np.full(len(topology.groups), np.nan)
    for g, group in enumerate(topology.groups):
        if group.name not in known.groups:
            raise ConfigError(
                f"it has no group '{group.name}'", where=where, remedy="calibrate all groups of the snippet"
            )
        at = known.groups.index(group.name)
        if known.response_times:
            deadlines_s[g] = known.response_times[at].deadline_ms / 1e3
        for server in group.servers:
            if server not in known.servers:
                remedy = "calibrate again with the servers that there are"
                raise ConfigError(f"it has no server '{server}'", where=where, remedy=remedy)
            service_ms = known.parameters.service_ms[at][known.servers.index(server)]
            tau_s[g, topology.server_index(server)] = service_ms / 1e3
    return tau_s, deadlines_s


def _told(holding: LateBinding, holds: bool, before: MemoryMethod) -> Iterator[str]:
    slots = ", ".join(
        f"{server} {slots}" for server, slots in zip(holding.topology.servers, holding.slots, strict=True)
    )
    yield f"{'requests wait' if holds else 'it is counted which requests would wait'} for a slot; slots: {slots}"
    for group, deadline_s in zip(holding.topology.groups, holding.deadlines_s, strict=True):
        model = holding.costs.groups.get(group.name)
        known = f", costs of requests learned (R² {model.r2:.2f})" if model is not None and model.counts else ""
        yield f"{group.name}: deadline {1e3 * deadline_s:.0f} ms{known}"
    if holds:
        yield f"{before} was in force; back to the upstream blocks' methods: deepsched holding off"


def _lines(balancer: Balancer, text: str) -> Iterator[str]:
    assert balancer.holding is not None
    yield f"{balancer.holding.state}: {_WORDS.get(balancer.holding.state, 'unknown')}"
    yield f"method: {balancer.method}{' for a part of the requests' if is_split(text) else ''}"
    slots = [line.split()[1:] for line in text.splitlines() if line.startswith("slots ")]
    if slots:
        yield f"slots: {', '.join(f'{server} {float(number):g}' for server, number in slots)}"
    width = max(len(entry.group) for entry in balancer.holding.groups)
    for entry in balancer.holding.groups:
        yield f"{entry.group:<{width}}  {_counts(entry)}"


def _counts(entry: HoldEntry) -> str:
    asked, answered = max(entry.asked, 1), max(entry.answered, 1)
    mean_ms = 1e3 * entry.held_s / max(entry.held, 1)
    return (
        f"{entry.asked} requests, held {entry.held / asked:.2%} for {mean_ms:.0f} ms on average, would have been held"
        f" {entry.would / asked:.2%}, refused {entry.refused / asked:.2%} (too late {entry.hopeless / asked:.2%}),"
        f" late {entry.late / answered:.2%};"
        f" {entry.in_line} waiting now"
    )


SHOW = Verb(
    name="holding show",
    example="deepsched holding show --control-url http://127.0.0.1:8090/control",
    options=ShowOptions,
    run=show,
)
SET = Verb(
    name="holding set",
    example="deepsched holding set --control-url http://127.0.0.1:8090/control --token-file deepsched.conf.token"
    " --calibration DIR/onboard/calibration.json",
    options=SetOptions,
    run=set_holding,
    common=(
        "control_url", "token_file", "keep", "calibration", "workers", "hold", "slots", "deadlines_ms",
        "load_balancers", "numbers.order", "numbers_file", "cost_file",
    ),
)  # fmt: skip
OFF = Verb(
    name="holding off",
    example="deepsched holding off --control-url http://127.0.0.1:8090/control --token-file deepsched.conf.token",
    options=OffOptions,
    run=off,
)
