"""`deepsched service`: the stand-in social network alone, for manual experiments."""

from __future__ import annotations

import contextlib
import json
import select
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from rich.table import Table

from actuators.contract.script import ServiceDistribution
from actuators.errors import ConfigError, DataError, ServiceError
from actuators.files import read_regular
from actuators.options import NOT_GIVEN, Only, Options
from actuators.social_network.store import SocialNetworkOptions
from rayjobs.cli.console import console_err, console_out
from rayjobs.cli.main import Verb, run_verb

if TYPE_CHECKING:
    from actuators.contract.script import Script
    from actuators.contract.topology import Topology
    from actuators.social_network.server import SocialNetworkServer

_LOOK_EVERY_S = 0.25
_LAST_PORT = 65535
_MAX_SCRIPT_BYTES = 2**28

Speed = Annotated[float, Field(gt=0)]
SpeedsOfServer = Speed | tuple[Speed, Speed, Speed]


_STEADY = Only(scenario=NOT_GIVEN, script=NOT_GIVEN)


class ServiceOptions(Options):
    """Servers, their capacity and their disturbances."""

    servers: int = Field(3, ge=1, le=1024)
    """Number of server processes; all share one database."""
    host: str = "127.0.0.1"
    """Address to listen on; the admin endpoints stay on 127.0.0.1."""
    port: int = Field(0, ge=0, le=_LAST_PORT)
    """Port of the first server, the others take the next ones; 0 takes free ones."""
    workers: Annotated[int, _STEADY] = Field(4, ge=1)
    """Requests that a server serves at once."""
    queue_limit: Annotated[int, _STEADY] = Field(512, ge=0)
    """Requests waiting beyond which a server answers 503."""
    compose_ms: Annotated[float, _STEADY] = Field(18.0, ge=0)
    """Mean emulated service time of a compose."""
    home_read_ms: Annotated[float, _STEADY] = Field(4.4, ge=0)
    """Mean emulated service time of a home timeline read."""
    user_read_ms: Annotated[float, _STEADY] = Field(3.3, ge=0)
    """Mean emulated service time of a user timeline read."""
    distribution: Annotated[ServiceDistribution, _STEADY] = "lognormal"
    """Distribution of the service times."""
    cv: Annotated[float, Only(distribution="lognormal", scenario=NOT_GIVEN, script=NOT_GIVEN)] = Field(1.0, ge=0)
    """Coefficient of variation of the lognormal."""
    speeds: Annotated[tuple[SpeedsOfServer, ...], _STEADY] = ()
    """Per server, how many times faster than the mean: one number, or three for compose, home read, user read; 1 when
    not given."""
    scenario: Annotated[str, Only(script=NOT_GIVEN)] = ""
    """Scenario whose servers and disturbances are played, S1 to S10; a steady one from these options when not given."""
    script: Path | None = None
    """JSON file of a resolved script (`deepsched scenarios show --json-out`) that is played instead of a scenario."""
    seed: int = Field(1, ge=0)
    """Seed of service times, scenario and database."""
    duration_s: float = Field(0.0, ge=0)
    """Ends after this time; 0 runs until Ctrl-C."""
    database: Path | None = None
    """SQLite file to use or make; a temporary one when not given."""
    network: SocialNetworkOptions = SocialNetworkOptions()
    """Users, followers and first posts of a new database."""


def run(options: ServiceOptions) -> int:
    """Serves until Ctrl-C or the end of the duration, then prints what was answered; 0."""
    from actuators.contract.topology import social_network

    topology = social_network(tuple(f"server-{number}:80" for number in range(1, options.servers + 1)))
    script = make_script(options, topology)
    if options.port + options.servers > _LAST_PORT + 1:
        raise ConfigError(f"port {options.port + options.servers - 1} does not exist", remedy="give a lower --port")
    with tempfile.TemporaryDirectory(prefix="deepsched-service-") as folder, contextlib.ExitStack() as stack:
        servers = _start(options, Path(folder), stack)
        live = topology.with_servers(tuple(server.address for server in servers))
        for server in servers:
            server.play(script, live)
        try:
            console_out().print(_overview(servers, script))
            _explain(servers[0])
            _watch(servers, options.duration_s)
        except KeyboardInterrupt:
            console_err().print("ending…")
        finally:
            _conclude(servers)
    return 0


def make_script(options: ServiceOptions, topology: Topology) -> Script:
    """The script of the servers: of the file, of the scenario, or steady from the options. Raises ConfigError."""
    from actuators.contract.script import Script, ServerProfile

    if options.script is not None:
        return _read_script(options.script)
    if options.scenario:
        from envs.scenarios.lookup import scenario

        return scenario(options.scenario).script(topology, options.seed)
    speeds = options.speeds or (1.0,) * options.servers
    if len(speeds) != options.servers:
        raise ConfigError(f"{len(speeds)} speeds for {options.servers} servers", remedy="give one per server")
    each = [tuple(speed) if isinstance(speed, tuple) else (speed,) * 3 for speed in speeds]
    if any(speed <= 0 for speeds_of_server in each for speed in speeds_of_server):
        raise ConfigError(f"speeds are {speeds}", remedy="each must be greater than 0")
    profiles = tuple(ServerProfile(speed, options.workers, options.queue_limit) for speed in each)
    means_s = tuple(ms / 1e3 for ms in (options.compose_ms, options.home_read_ms, options.user_read_ms))
    return Script("steady", options.seed, float("inf"), (), profiles, means_s, options.distribution, options.cv)


def _read_script(path: Path) -> Script:
    from actuators.contract.script import Script

    try:
        return Script.from_json(json.loads(read_regular(path, _MAX_SCRIPT_BYTES)))
    except OSError as error:
        raise ConfigError(f"cannot read the script: {error.strerror}", where=str(path)) from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"not a script: {error}", where=str(path), remedy="write it with deepsched scenarios show --json-out"
        ) from error


def _start(options: ServiceOptions, folder: Path, stack: contextlib.ExitStack) -> list[SocialNetworkServer]:
    from actuators.social_network.server import SocialNetworkServer
    from actuators.social_network.store import create_database

    database = options.database or folder / "social_network.sqlite"
    if not database.exists():
        create_database(database, options.network, options.seed)
    return [
        stack.enter_context(
            SocialNetworkServer(
                options.network,
                work_dir=folder,
                database=database,
                index=index,
                host=options.host,
                port=options.port and options.port + index,
            )
        )
        for index in range(options.servers)
    ]


def _overview(servers: list[SocialNetworkServer], script: Script) -> Table:
    """A row per server: its addresses and mean service times."""
    drawn = Table(title=f"stand-in social network, script {script.name!r}, seed {script.seed}", title_justify="left")
    for column in ("server", "address", "admin", "workers", "compose", "home read", "user read"):
        drawn.add_column(column, justify="left" if column in ("address", "admin") else "right")
    for number, (server, profile) in enumerate(zip(servers, script.servers, strict=False), 1):
        means = [
            f"{mean / speed * 1e3:.3g} ms" for mean, speed in zip(script.mean_service_s, profile.speeds, strict=True)
        ]
        drawn.add_row(str(number), server.address, server.admin, str(profile.workers), *means)
    return drawn


def _explain(server: SocialNetworkServer) -> None:
    """Prints example commands on stderr."""
    aside = console_err()
    for line in (
        f"try:      curl 'http://{server.address}/wrk2-api/home-timeline/read?user_id=3&start=0&stop=2'",
        f"disturb:  curl http://{server.admin}/behaviours -d '{{\"speed\": 0.5}}'",
        f"          curl http://{server.admin}/behaviours -d "
        '\'{"pattern": "telegraph", "speed": 0.5, "duration_s": 600}\'',
        "          patterns: steps, telegraph, periodic, slow_start, crash, errors",
        f"count:    curl http://{server.admin}/counters",
        "end:      Ctrl-C",
    ):
        aside.print(line, markup=False)


def _watch(servers: list[SocialNetworkServer], duration_s: float) -> None:
    """Returns at the end of the duration; reports each server that dies, raises ServiceError when all have."""
    end_s = time.monotonic() + duration_s if duration_s else float("inf")
    alive = set(range(len(servers)))
    while time.monotonic() < end_s:
        select.select([], [], [], min(_LOOK_EVERY_S, max(end_s - time.monotonic(), 0)))
        for index in [index for index in alive if not servers[index].running]:
            alive.discard(index)
            console_err().print(f"server {index + 1} ({servers[index].address}) has died; the others go on")
        if not alive:
            raise ServiceError("all servers have died", remedy="start the service again")


def _conclude(servers: list[SocialNetworkServer]) -> None:
    counted: dict[str, dict[str, int]] = {}
    for server in servers:
        if server.running:
            for request_type, statuses in _requests(server).items():
                into = counted.setdefault(request_type, {})
                for status, count in statuses.items():
                    into[status] = into.get(status, 0) + count
    text = "; ".join(
        f"{request_type} " + ", ".join(f"{count} × {status}" for status, count in statuses.items())
        for request_type, statuses in counted.items()
    )
    console_out().print(f"answered: {text or 'nothing'}", markup=False)


def _requests(server: SocialNetworkServer) -> dict[str, Any]:
    requests: dict[str, Any] = server.counters()["requests"]
    return requests


VERB = Verb(
    name="service",
    example="deepsched service --servers 3 --speeds 1.6,1.0,0.4",
    options=ServiceOptions,
    run=run,
    common=(
        "servers", "port", "workers", "speeds", "scenario", "script", "seed", "duration_s", "compose_ms",
        "home_read_ms", "user_read_ms", "database",
    ),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
