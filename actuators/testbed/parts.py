"""Functions that make the parts of a live testbed, here or in Ray actors (`testbed.placement`)."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Sequence
from pathlib import Path

import psutil

from actuators.contract.topology import Topology
from actuators.files import private_folder
from actuators.load.engine import LoadEngine
from actuators.nginx.instance import Nginx
from actuators.social_network.server import SharedStages, SocialNetworkServer
from actuators.social_network.store import create_database
from actuators.statistics.reader import Collector
from actuators.testbed.live import LiveTestbed
from actuators.testbed.options import LiveOptions

LOOPBACK = "127.0.0.1"


def make_server(
    options: LiveOptions, work_dir: Path, index: int, seed: int, host: str = LOOPBACK
) -> SocialNetworkServer:
    """A running stand-in server; the first one of a host in a folder creates the database of this host.

    Hosts may share the folder, over NFS for instance, but no database (`actuators.social_network.store`).
    """
    private_folder(work_dir)
    # Colons, as an IPv6 address has, need quoting in a command line.
    here = "" if host == LOOPBACK else "-" + host.replace(":", "_")
    database = work_dir / f"social_network{here}.sqlite"
    with open(work_dir / f"database{here}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            create_database(database, options.service, seed)
    server = SocialNetworkServer(options.service, work_dir=work_dir, database=database, index=index, host=host)
    server.start()
    return server


def make_nginx(options: LiveOptions, topology: Topology, work_dir: Path, host: str = LOOPBACK) -> Nginx:
    """A running NGINX in front of the topology's addresses."""
    private_folder(work_dir)
    nginx = Nginx(options.nginx, topology, work_dir=work_dir, host=host)
    nginx.start()
    return nginx


def make_load(options: LiveOptions, work_dir: Path) -> LoadEngine:
    """A load engine that can start a plan."""
    private_folder(work_dir)
    return LoadEngine(options.load, work_dir)


def make_collector(options: LiveOptions, topology: Topology, status_url: str) -> Collector:
    """A reader of the counters at that URL."""
    return Collector(status_url, topology, options.collect)


def dead_process(part: object) -> str:
    """What has died of a part that must run all the time, in words; empty when nothing has."""
    if isinstance(part, SocialNetworkServer) and not part.running:
        return f"the server at {part.address} died"
    if isinstance(part, Nginx) and not psutil.pid_exists(part.master_pid):
        return f"the NGINX at {part.address} died"
    return ""


def start_local_testbed(topology: Topology, options: LiveOptions, work_dir: Path, seed: int) -> LiveTestbed:
    """A live testbed whose parts are objects of this process; real addresses replace the servers of `topology`.

    Its `close` leaves the logs in `work_dir`, and removes the database.

    Raises MissingToolError or ProcessError; then it ends the parts that it has started.
    """
    with contextlib.ExitStack() as parts:
        servers: list[SocialNetworkServer] = []
        parts.callback(_remove_databases, servers)
        for index in range(len(topology.servers)):
            servers.append(make_server(options, work_dir, index, seed))
            parts.callback(servers[-1].close)
        live = topology.with_servers(tuple(server.address for server in servers))
        nginx = make_nginx(options, live, work_dir)
        parts.callback(nginx.close)
        collector = make_collector(options, live, nginx.status_url)
        parts.callback(collector.close)
        load = make_load(options, work_dir)
        parts.callback(load.close)
        stages = SharedStages(options.service, work_dir)
        parts.callback(stages.close)
        close = parts.pop_all().close
    return LiveTestbed(
        live, nginx.address, servers=servers, proxy=nginx, collector=collector, load=load, close=close, stages=stages
    )


def _remove_databases(servers: Sequence[SocialNetworkServer]) -> None:
    for server in servers:
        server.remove_database()
