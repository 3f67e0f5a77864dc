"""The running parts of a live testbed, from which tests make testbeds that share them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from actuators.contract.topology import Topology, social_network
from actuators.load.engine import LoadEngine, LoadOptions
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.social_network.server import SocialNetworkServer
from actuators.statistics.reader import Collector
from actuators.testbed.live import LiveTestbed, LoadPart
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import make_collector, make_load, make_nginx, make_server

CALM = LoadOptions(saturated_delay_ms=60_000, saturated_cpu_share=60)
"""Other work on the machine, which makes a load engine late, spoils no window."""


@dataclass(frozen=True)
class LiveParts:
    """Servers, an NGINX before them, the reader of its statistics and a load engine."""

    topology: Topology
    servers: Sequence[SocialNetworkServer]
    nginx: Nginx
    collector: Collector
    load: LoadEngine

    def testbed(self, load: LoadPart | None = None, close: Callable[[], None] | None = None) -> LiveTestbed:
        """A fresh testbed over these parts; closing it ends the load and leaves the other parts running."""
        return LiveTestbed(
            self.topology,
            self.nginx.address,
            servers=self.servers,
            proxy=self.nginx,
            collector=self.collector,
            load=load or self.load,
            close=close or self.load.close,
        )


@contextlib.contextmanager
def running_parts(folder: Path, seed: int = 1, nginx_options: NginxOptions | None = None) -> Iterator[LiveParts]:
    options = LiveOptions(nginx=nginx_options or NginxOptions(admission=True), load=CALM)
    placeholders = social_network()
    with contextlib.ExitStack() as stack:
        servers = []
        for index in range(len(placeholders.servers)):
            servers.append(make_server(options, folder, index, seed))
            stack.callback(servers[-1].close)
        topology = placeholders.with_servers(tuple(server.address for server in servers))
        nginx = make_nginx(options, topology, folder)
        stack.callback(nginx.close)
        collector = make_collector(options, topology, nginx.status_url)
        stack.callback(collector.close)
        load = make_load(options, folder)
        stack.callback(load.close)
        yield LiveParts(topology, servers, nginx, collector, load)
