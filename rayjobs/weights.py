"""`deepsched weights get|set|explore|suggest|snippet`: the weights of an NGINX, changed by reload or in memory."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from actuators.contract.control import MAX_WEIGHT, Control, ServiceTimes, Weights
from actuators.errors import ActuationError, ConfigError
from actuators.external.actuator import (
    EXPLORED_VALUES,
    Actuator,
    ActuatorOptions,
    MemoryActuator,
    exploration,
    open_actuator,
    parse_weights,
    ratio_vectors,
    sets_rotation,
)
from actuators.external.config_reader import read_config
from actuators.external.envoy import EnvoyActuator
from actuators.external.haproxy import HaproxyActuator
from actuators.external.nginx import ExternalNginx, ExternalNginxOptions
from actuators.external.snippet import (
    Asking,
    asking_locations,
    asking_notes,
    changes,
    kept_rule,
    memory_groups,
    notes,
    render_snippet,
    unified_diff,
)
from actuators.files import REMEDIES, read_token, write_private
from actuators.nginx.config import NginxOptions
from actuators.nginx.detect import detect
from actuators.options import NOT_GIVEN, Moved, Never, Only, Options
from actuators.statistics.names import server_names
from actuators.statistics.reader import StatusReader
from rayjobs.cli.console import console_out, log_line
from rayjobs.cli.main import Verb, main

if TYPE_CHECKING:
    from rich.table import Table

    from envs.study.stock import Suggestion

_log = partial(log_line, "weights")

_LEAVING_OUT = ExternalNginx | HaproxyActuator | EnvoyActuator
"""Those that know groups whose weights cannot be set."""

_OTHERS = "Other parameters of your server lines, and servers that are not listed, stay as they are."

_NOTHING_CHANGES = {
    f"reload.{name}": Never("nothing is changed here")
    for name in ExternalNginxOptions.model_fields
    if name not in ("config", "groups", "binary")
}


class GroupOptions(ActuatorOptions):
    """Which NGINX, and which of its groups."""

    only: ClassVar = {
        "reload": Only(haproxy_socket=NOT_GIVEN, control_url=NOT_GIVEN),
        "control_url": Only(haproxy_socket=NOT_GIVEN),
        "reload.groups": Never("give --groups"),
    }
    moved: ClassVar = {"reload.groups": Moved("groups")}

    groups: tuple[str, ...] = ()
    """Upstreams that are read and set, others are left alone; all whose weights can be set when not given."""
    haproxy_socket: Annotated[Path | None, Only(control_url=NOT_GIVEN)] = None
    """Unix socket of the runtime API of an HAProxy, in place of an NGINX; its backends are the groups."""


class GetOptions(GroupOptions):
    """Which NGINX, and which of its groups."""

    only: ClassVar = {**_NOTHING_CHANGES, **GroupOptions.only}


class SetOptions(GroupOptions):
    """What is changed, and in which NGINX."""

    only: ClassVar = {**GroupOptions.only, "reload.min_reload_interval_s": Never("it reloads once")}

    changes: tuple[str, ...] = Field(min_length=1)
    """[GROUP/]SERVER=WEIGHT, =down or =up; other servers keep their weights."""


class ExploreOptions(GroupOptions):
    """Which ratios are applied, and in which NGINX."""

    interval_s: float = Field(2.0, gt=0)
    """Time between two changes."""
    values: tuple[Annotated[int, Field(ge=1, le=MAX_WEIGHT)], ...] = Field(EXPLORED_VALUES, min_length=1)
    """Weights whose distinct ratios are applied."""
    seed: int = Field(1, ge=0)
    """Fixes the order."""
    rounds: int = Field(1, ge=1)
    """How often all ratios are applied, each time in another order."""


class SnippetOptions(Options):
    """Which NGINX the snippet is for, and what is in it."""

    only: ClassVar = {
        **_NOTHING_CHANGES,
        "reload.groups": Never("give --groups"),
        "reload.binary": Never("give memory.binary"),
        **{
            f"memory.{name}": Never("it stands in the configuration that includes the snippet")
            for name in (
                "statistics", "actuation", "worker_processes", "worker_connections", "upstream_keepalive", "max_fails",
                "fail_timeout_s", "connect_timeout_s", "read_timeout_s", "shutdown_timeout_s", "max_body_bytes",
                "start_timeout_s",
            )
        },
    }  # fmt: skip

    moved: ClassVar = GroupOptions.moved

    reload: ExternalNginxOptions = ExternalNginxOptions()
    """The configuration."""
    groups: tuple[str, ...] = ()
    """Upstreams that are to be balanced in memory; all when not given."""
    out: Path = Path("deepsched.conf")
    """The file; FILE.token beside it receives the token for --token-file."""
    port: int = Field(8090, ge=1, le=65535)
    """Loopback port of the statistics and the control endpoint."""
    memory: NginxOptions = NginxOptions()
    """How the balancer in memory works; every upstream keeps its method unless memory.method is given."""
    exempt: Annotated[tuple[str, ...], Only(**{"memory.admission": True}), Only(**{"memory.late_binding": True})] = ()
    """Locations, as the configuration writes them, whose requests are neither refused nor held, as health checks; named
    ones only when not given."""


def get(options: GetOptions) -> int:
    """Prints GROUP/SERVER=WEIGHT lines, or service times where NGINX balances by those; of a canary, both controls."""
    actuator = _opened(options)
    split = actuator.split_in_force() if isinstance(actuator, MemoryActuator) else None
    if split is None:
        _print_control(actuator.control(), options.groups)
        return 0
    console_out().print(f"canary: {split.percent:g} % of the requests by {split.method}", markup=False)
    _print_control(split.control, options.groups)
    console_out().print(f"the other requests by {split.base_method}", markup=False)
    _print_control(split.base_control, options.groups)
    return 0


def _print_control(control: Control, groups: tuple[str, ...]) -> None:
    topology = control.topology
    for g, group in enumerate(topology.groups):
        for server in group.servers if group.name in groups or not groups else ():
            s = topology.server_index(server)
            if control.down[g, s]:
                value = "down"
            elif isinstance(control, ServiceTimes):
                value = f"tau {control.tau_s[g, s] * 1e3:.3f} ms, {control.workers[s]:g} workers"
                value += "" if control.holding is None else f", {control.holding.slots[s]} slots"
            else:
                value = str(control.values[g, s])
            console_out().print(f"{group.name}/{server}={value}", markup=False)


def set_weights(options: SetOptions) -> int:
    """Applies the changes; a refused change raises and leaves the old weights in force."""
    actuator = _opened(options, options.changes)
    if isinstance(actuator, MemoryActuator) and sets_rotation(options.changes):
        applied = actuator.rotate(options.changes)
    else:
        applied = actuator.apply(parse_weights(options.changes, _weights(actuator)))
    _log(f"in force after {applied.duration_s * 1e3:.1f} ms" if applied.changed else "already in force")
    return 0


def _weights(actuator: Actuator) -> Weights:
    """The weights in force. Raises ActuationError where a controller has set service times, or a canary."""
    base = actuator.control()
    split = isinstance(actuator, MemoryActuator) and actuator.split_in_force() is not None
    if split or not isinstance(base, Weights):
        what = "a controller's canary is in force" if split else "this NGINX balances by service times, not by weights"
        raise ActuationError(what, remedy="only =down and =up can be set; end it with deepsched steer revert")
    return base


def explore(options: ExploreOptions) -> int:
    """Applies every distinct ratio for `interval_s`, then restores the first weights, also after an error."""
    actuator = _opened(options)
    topology = actuator.topology
    counts = ", ".join(f"{len(ratio_vectors(len(g.servers), options.values))} for {g.name}" for g in topology.groups)
    _log(f"distinct ratio vectors of {set(options.values)}: {counts}; one every {options.interval_s:g} s")
    before = _weights(actuator)
    # A server that an operator took out of rotation stays out of rotation.
    down = before.down
    due_s = time.monotonic()
    try:
        for index in range(options.rounds):
            for weights in exploration(topology, options.seed + index, options.values):
                wanted = Weights(topology, weights.values, down)
                applied = actuator.apply(wanted)
                _log(f"{_shown(wanted)} in force after {applied.duration_s * 1e3:.1f} ms")
                due_s += options.interval_s
                time.sleep(max(due_s - time.monotonic(), 0.0))
    finally:
        restored = actuator.restore(before)
        gone = f"; gone, or not to be set now: {', '.join(restored.missing)}" if restored.missing else ""
        _log(f"the first weights are restored{gone}")
    return 0


def _opened(options: GroupOptions, changes: Sequence[str] = ()) -> Actuator:
    """The load balancer; tells the groups whose weights cannot be set. Raises ConfigError when a change names one of
    them, or the statistics that shall confirm a change do not show every server.
    """
    socket = options.haproxy_socket
    actuator = open_actuator(options, options.groups) if socket is None else HaproxyActuator(socket, options.groups)
    if options.reload.status_url:
        with StatusReader(options.reload.status_url) as reader:
            server_names(actuator.topology, reader.snapshot()).check()
    for name, reason in actuator.left_out.items() if isinstance(actuator, _LEAVING_OUT) else ():
        if any(change.startswith(f"{name}/") for change in changes):
            raise reason
        _log(f"left out: {reason}")
    return actuator


def _shown(weights: Weights) -> str:
    """As 5/down/1 3/1/1: group by group, its servers in the order of the topology."""
    values, down, mask = weights.values, weights.down, weights.topology.mask
    return " ".join(
        "/".join("down" if down[g, s] else str(values[g, s]) for s in np.flatnonzero(mask[g])) for g in range(len(mask))
    )


def snippet(options: SnippetOptions) -> int:
    """Writes the snippet and its token, readable by this user only, and prints the change of the configuration."""
    _require_place(options.out)
    config, build = read_config(options.reload.config), detect(options.memory.binary)
    groups = memory_groups(config, options.groups)
    out = options.out.absolute()
    token_file = out.with_name(out.name + ".token")
    # An NGINX that runs with an earlier snippet obeys its token, and others may have been given the right to read it.
    token = read_token(token_file) if token_file.exists() else ""
    new_token = "" if token else secrets.token_hex(16)
    text = render_snippet(out, groups, options.memory, build, port=options.port, token=token or new_token)
    asking = Asking(options.memory.admission, options.memory.late_binding)
    passes = asking_locations(config, groups, options.exempt, asking) if any(asking) else ()
    diff = unified_diff(changes(config, groups, out, build, passes, asking))
    for path, content in (*([(token_file, new_token + "\n")] if new_token else []), (out, text)):
        with _writing(path):
            write_private(path, content)
    for note in [*notes(config, groups), *(asking_notes(config, passes, asking) if any(asking) else ())]:
        _log(note)
    _log(f"written: {out} and {token_file}, for this user only; NGINX must start as root or as this user")
    _log("change the configuration as follows (deepsched weights snippet … | patch -d / -p1), test and reload it")
    sys.stdout.buffer.write(diff.encode(errors="surrogateescape"))
    sys.stdout.flush()
    url = f"http://127.0.0.1:{options.port}"
    _log(f"then statistics are on {url}/status, the control is on {url}/control, for example:")
    _log(f"deepsched weights get --control-url {url}/control --token-file {token_file}")
    if options.memory.admission:
        _log(f"and deepsched admission set with --keep {kept_rule(out)}, which a restarted NGINX begins with")
    if options.memory.late_binding:
        _log("and deepsched holding set, which at first only counts what it would hold")
    return 0


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raises ConfigError when the block cannot write the file."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "choose another --out")
        raise ConfigError(f"cannot write: {error.strerror}", where=str(path), remedy=remedy) from error


def _require_place(path: Path) -> None:
    """Before the work for a file. Raises ConfigError when it cannot be made."""
    with _writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass


class SuggestOptions(Options):
    """For which system weights are suggested."""

    system: str
    """`calibration.json` of a recorded system (deepsched calibrate), or the name of a scenario."""
    seeds: int = Field(8, ge=2, le=1000)
    """Simulated repetitions; intervals are over them."""
    duration_s: float = Field(200.0, gt=20, le=1e6)
    """Simulated time of each, in seconds; the first 10 s are not judged."""
    out: Path | None = None
    """File that receives the suggested plan, for `stock:FILE` of `deepsched evaluate`. None is written when not given,
    or when nothing is to be gained."""


def suggest(options: SuggestOptions) -> int:
    """Prints what both ways of an NGINX without Lua are worth, and the upstream blocks of the better one."""
    from envs.scenarios.lookup import scenario, topology_of
    from envs.study.stock import suggest as simulated
    from envs.study.stock import today_rule, upstream_lines
    from rayjobs.cli.progress import Progress, Stage

    if options.out is not None:
        _require_place(options.out)
    played = scenario(options.system, options.duration_s)
    topology = topology_of([played])
    with Progress([Stage("simulate", None)]) as progress, progress.stage("simulate") as stage:
        found = simulated(played, topology, today_rule(played), range(101, 101 + options.seeds), stage.update)
    console_out().print(_suggested(played.name, found))
    if found.best is None or found.best.plan is None:
        console_out().print("Keep what you have: without Lua no way is better by more than chance and 1 %.")
        return 0
    console_out().print(f"Use {found.best.name}: mean {found.best.mean}, 99th percentile {found.best.p99}.\n")
    console_out().print(upstream_lines(found.best.plan, topology), markup=False, soft_wrap=True)
    console_out().print(_OTHERS, soft_wrap=True)
    if options.out is not None:
        with _writing(options.out):
            write_private(options.out.absolute(), found.best.plan.model_dump_json(indent=1) + "\n")
        _log(f"written: {options.out}")
    return 0


def _suggested(name: str, found: Suggestion) -> Table:
    from rich.table import Table

    drawn = Table(title=f"{name}: simulated, over {found.today}, with 95 % intervals", title_justify="left")
    for column in ("way", "mean", "99th percentile", "errors", "needs"):
        drawn.add_column(column)
    for way in found.ways:
        best = " ←" if way is found.best else ""
        needs = "NGINX with Lua" if way.plan is None else "any NGINX"
        drawn.add_row(f"{way.name}{best}", str(way.mean), str(way.p99), f"{way.errors:.2%}", needs)
    return drawn


GET = Verb(
    name="weights get",
    example="deepsched weights get --set reload.config=/etc/nginx/nginx.conf",
    options=GetOptions,
    run=get,
    common=("control_url", "token_file", "reload.config", "haproxy_socket", "groups"),
)
SET = Verb(
    name="weights set",
    example="deepsched weights set compose_backend/10.0.0.1:8080=5 --set reload.config=/etc/nginx/nginx.conf",
    options=SetOptions,
    run=set_weights,
    positional=("changes",),
    common=("control_url", "token_file", "reload.config", "haproxy_socket", "groups", "reload.status_url"),
)
EXPLORE = Verb(
    name="weights explore",
    example="deepsched weights explore --interval-s 2 --set reload.config=/etc/nginx/nginx.conf",
    options=ExploreOptions,
    run=explore,
    common=(
        "interval_s",
        "values",
        "rounds",
        "seed",
        "control_url",
        "token_file",
        "reload.config",
        "haproxy_socket",
        "groups",
    ),
)
SUGGEST = Verb(
    name="weights suggest",
    example="deepsched weights suggest runs/calibrate-1/calibration.json --out stock.json",
    options=SuggestOptions,
    run=suggest,
    positional=("system",),
)
SNIPPET = Verb(
    name="weights snippet",
    example="deepsched weights snippet --set reload.config=/etc/nginx/nginx.conf --out deepsched.conf",
    options=SnippetOptions,
    run=snippet,
    common=(
        "out",
        "port",
        "reload.config",
        "groups",
        "memory.method",
        "memory.workers_per_server",
        "memory.admission",
        "memory.late_binding",
        "exempt",
    ),
)

if __name__ == "__main__":
    sys.exit(main(["weights", *sys.argv[1:]]))
