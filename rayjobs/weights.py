"""`deepsched weights`: reads, sets or explores the weights of an NGINX, by reload or in memory."""

from __future__ import annotations

import secrets
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from actuators.contract.control import ServiceTimes, Weights
from actuators.errors import ActuationError, ConfigError
from actuators.external.actuator import (
    EXPLORED_VALUES,
    Actuator,
    ActuatorOptions,
    exploration,
    open_actuator,
    parse_weights,
    ratio_vectors,
)
from actuators.files import write_atomic
from actuators.nginx.config import NginxOptions, render_snippet
from actuators.nginx.detect import detect
from rayjobs.cli.console import console_err, console_out
from rayjobs.cli.main import Verb, run_verb


class WeightsOptions(ActuatorOptions):
    """What to do, and with which NGINX."""

    action: Literal["get", "set", "explore", "snippet"] = "get"
    """get; set CHANGE…; explore: walk all ratios; snippet: a file for balancing in memory."""
    changes: tuple[str, ...] = ()
    """set: [GROUP/]SERVER=WEIGHT, or =down, or =up; what is not named keeps its weight."""
    interval_s: float = Field(2.0, gt=0)
    """explore: time between two changes."""
    values: tuple[int, ...] = EXPLORED_VALUES
    """explore: weights whose distinct ratios are walked."""
    seed: int = Field(1, ge=0)
    """explore: seed of the order."""
    rounds: int = Field(1, ge=1)
    """explore: how often the whole walk is made, each in another order."""
    out: Path = Path("deepsched.conf")
    """snippet: the file; FILE.token beside it receives the token for --token-file."""
    port: int = Field(8090, ge=1, le=65535)
    """snippet: loopback port of its statistics and control."""
    memory: NginxOptions = NginxOptions()
    """snippet: method, keep-alive, max_fails and so on."""


def run(options: WeightsOptions) -> int:
    """0 when it was done; a refused change is an error and leaves the old weights in force."""
    if options.changes and options.action != "set":
        raise ConfigError(f"'{options.action}' takes no changes", where=options.changes[0], remedy="use: weights set")
    actuator = open_actuator(options)
    if options.action == "get":
        _show(actuator)
    elif options.action == "set":
        _set(options, actuator)
    elif options.action == "explore":
        _explore(options, actuator)
    else:
        _snippet(options, actuator)
    return 0


def _show(actuator: Actuator) -> None:
    control, topology = actuator.control(), actuator.topology
    for g, group in enumerate(topology.groups):
        for server in group.servers:
            s = topology.server_index(server)
            if isinstance(control, ServiceTimes):
                value = f"tau {control.tau_s[g, s] * 1e3:.3f} ms, {control.workers[s]:g} workers"
            else:
                value = "down" if control.down[g, s] else str(control.values[g, s])
            console_out().print(f"{group.name}/{server}={value}", markup=False, highlight=False)


def _set(options: WeightsOptions, actuator: Actuator) -> None:
    if not options.changes:
        raise ConfigError("no changes", where="weights set", remedy="write GROUP/SERVER=WEIGHT, see: weights get")
    base = actuator.control()
    if not isinstance(base, Weights):
        raise ActuationError("this NGINX balances by service times", remedy="deepsched serve sets those")
    applied = actuator.apply(parse_weights(options.changes, base))
    _say(f"in force after {applied.duration_s * 1e3:.1f} ms" if applied.changed else "already in force")


def _explore(options: WeightsOptions, actuator: Actuator) -> None:
    topology = actuator.topology
    counts = ", ".join(f"{len(ratio_vectors(len(g.servers), options.values))} for {g.name}" for g in topology.groups)
    _say(f"distinct ratio vectors of {set(options.values)}: {counts}; one every {options.interval_s:g} s")
    before = actuator.control()
    # Whoever took a server out of use did not mean to have it explored.
    down = before.down if isinstance(before, Weights) else None
    due_s = time.monotonic()
    try:
        for index in range(options.rounds):
            for weights in exploration(topology, options.seed + index, options.values):
                wanted = Weights(topology, weights.values, weights.down if down is None else down)
                applied = actuator.apply(wanted)
                _say(f"{_shown(wanted)} in force after {applied.duration_s * 1e3:.1f} ms")
                due_s += options.interval_s
                time.sleep(max(due_s - time.monotonic(), 0.0))
    finally:
        actuator.apply(before)
        _say("the weights from before are in force again")


def _shown(weights: Weights) -> str:
    """As 5/down/1 3/1/1: group by group, its servers in the order of the topology."""
    values, down, mask = weights.values, weights.down, weights.topology.mask
    return " ".join(
        "/".join("down" if down[g, s] else str(values[g, s]) for s in np.flatnonzero(mask[g])) for g in range(len(mask))
    )


def _snippet(options: WeightsOptions, actuator: Actuator) -> None:
    token, out = secrets.token_hex(16), options.out.absolute()
    topology = actuator.topology
    text = render_snippet(out, topology, options.memory, detect(options.memory.binary), port=options.port, token=token)
    token_file = out.with_name(out.name + ".token")
    for path, content in ((out, text), (token_file, token + "\n")):
        write_atomic(path, content)
        path.chmod(0o600)
    _say(f"written: {out}; include it in the http block in place of {', '.join(g.name for g in topology.groups)}")
    _say(f"then: deepsched weights get --control-url http://127.0.0.1:{options.port}/control --token-file {token_file}")


def _say(line: str) -> None:
    console_err().print(f"deepsched weights: {line}", markup=False, highlight=False)


VERB = Verb(
    name="weights",
    example="deepsched weights set compose_backend/10.0.0.1:8080=5 --set reload.config=/etc/nginx/nginx.conf",
    options=WeightsOptions,
    run=run,
    positional=("action", "changes"),
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
