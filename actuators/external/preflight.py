"""What must hold before an NGINX is watched and steered, checked by reading only; each check says what to do."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, ClassVar, Self

import msgspec
from pydantic import Field

from actuators.errors import ConfigError, DeepSchedError, StatusError, closest
from actuators.external.checks import (
    Check,
    control_checks,
    failed,
    method_check,
    names_check,
    reload_checks,
    sharing_check,
)
from actuators.external.config_control import config_topology, unusable
from actuators.external.config_reader import ParsedConfig, read_config
from actuators.external.nginx import ExternalNginxOptions
from actuators.http_client import KeptConnection, NoResponseError
from actuators.nginx.control_endpoint import beside
from actuators.options import GIVEN, NOT_GIVEN, Never, Only, Options
from actuators.statistics.lacks import lacks, named_groups
from actuators.statistics.reader import CollectOptions, StatusReader
from actuators.statistics.vts import Snapshot

_READINGS, _READINGS_S = 3, 0.3
"""Readings that are compared, unless the first ones take longer."""
_LAST_RELEASE = (0, 2, 7)
"""The last version of nginx-module-vts that counts final answers only; its newer sources say the same version."""
_NOT_READ = ("min_reload_interval_s", "lock_timeout_s", "reload_timeout_s", "drain_timeout_s")


class PreflightOptions(Options):
    """Which NGINX is checked, and how its weights would be changed."""

    only: ClassVar = {
        "reload.config": Never("give --nginx-conf"),
        "reload.status_url": Never("give --status-url"),
        "reload.groups": Never("give --groups"),
        "reload.binary": Never("give --nginx"),
        **{f"reload.{name}": Never("nothing is reloaded here") for name in _NOT_READ},
    }

    status_url: str = ""
    """vts JSON of your NGINX, as http://[USER:PASSWORD@]HOST:PORT/status/format/json, or another load balancer, as
    haproxy:/run/haproxy/admin.sock or envoy:http://127.0.0.1:9901. When not given: /status beside /control of
    `control_url`, or without that this machine is checked."""
    groups: Annotated[tuple[str, ...], Only(status_url=GIVEN)] = ()
    """Upstreams that matter; all when empty."""
    nginx_conf: Annotated[Path | None, Only(status_url=GIVEN, control_url=NOT_GIVEN)] = None
    """Main configuration of that NGINX, for weights that change by reload; not checked when not given."""
    control_url: Annotated[str, Only(nginx_conf=NOT_GIVEN)] = ""
    """Control endpoint of that NGINX, or that HAProxy or Envoy, for weights that change in memory; not checked when
    not given."""
    token_file: Annotated[Path | None, Only(control_url=GIVEN)] = None
    """File with the token of the control endpoint; weights can be read and not changed when not given."""
    load_balancers: Annotated[int, Only(status_url=GIVEN)] = Field(0, ge=0)
    """How many NGINX machines send requests to these servers, which no statistics show; 0 when unknown."""
    nginx: Annotated[str, (Only(status_url=NOT_GIVEN), Only(nginx_conf=GIVEN))] = "nginx"
    """NGINX program, by name or path."""
    reading: Annotated[CollectOptions, Only(status_url=GIVEN)] = CollectOptions()
    """How the statistics are read."""
    reload: Annotated[ExternalNginxOptions, Only(nginx_conf=GIVEN)] = Field(default_factory=ExternalNginxOptions)
    """How that NGINX is tested and reloaded."""

    def resolved(self) -> Self:
        if self.status_url or not self.control_url:
            return self
        return self.changed({"status_url": beside(self.control_url, "status")})


def preflight(options: PreflightOptions) -> list[Check]:
    """All checks of an external NGINX; changes nothing."""
    with ThreadPoolExecutor(1) as pool:
        # NGINX takes its time for a large document; meanwhile the configuration is read.
        reading = pool.submit(_reachable, options)
        config = _configuration(options)
        checks, snapshot = reading.result()
    if snapshot is not None:
        checks += [
            *_groups(options, snapshot), *_lacks(snapshot), _attempts(options, snapshot), _machines(options, snapshot),
        ]  # fmt: skip
    return [*checks, *_changing(options, config, snapshot)]


def _reachable(options: PreflightOptions) -> tuple[list[Check], Snapshot | None]:
    """Several readings over connections of their own, which a balancer in front might send to different machines."""
    snapshots, began_s = list[Snapshot](), time.monotonic()
    try:
        while len(snapshots) < _READINGS and (not snapshots or time.monotonic() < began_s + _READINGS_S):
            with StatusReader(options.status_url, options.reading, takes_text=True, for_decisions=True) as reader:
                snapshots.append(reader.snapshot())
    except (StatusError, ConfigError) as error:
        return [failed("statistics", error)], None
    took_ms = 1000 * (time.monotonic() - began_s) / len(snapshots)
    last = snapshots[-1]
    checks = [Check("statistics", "ok", f"{_source(last)}, read in {took_ms:.0f} ms")]
    hosts = {snapshot.host_name for snapshot in snapshots}
    fell = any(b.connections.requests < a.connections.requests for a, b in itertools.pairwise(snapshots))
    if len(hosts) > 1 or fell:
        names = ", ".join(sorted(filter(None, hosts))) or "counters go up and down"
        checks.append(Check("one machine", "fail", f"several NGINX answer at this URL: {names}", "give the URL of one"))
    return checks, last


def _source(snapshot: Snapshot) -> str:
    """Whose statistics these are, in words."""
    if snapshot.source == "haproxy":
        return "HAProxy's runtime API"
    if snapshot.source == "envoy":
        return "Envoy's admin endpoint"
    if snapshot.module_version == "deepsched":
        return "the statistics of this project"
    version = snapshot.module_version
    return f"nginx-module-vts {version}" if version else "statistics of an unknown module"


def _groups(options: PreflightOptions, snapshot: Snapshot) -> Iterator[Check]:
    known = named_groups(snapshot)
    missing = [name for name in options.groups if name not in known]
    if not known:
        remedy = "let proxy_pass name an upstream block with the servers"
        yield Check("upstreams", "fail", "the statistics show no upstream block", remedy)
    elif missing:
        yield Check("upstreams", "fail", f"NGINX has no upstream '{missing[0]}'", closest(missing[0], known))
    else:
        wanted = options.groups or tuple(known)
        servers = sum(len(known[name]) for name in wanted)
        yield Check("upstreams", "ok", f"{len(wanted)} with {servers} servers: {', '.join(wanted)[:120]}")
        silent = [name for name in wanted if not any(each.request_counter for each in known[name].values())]
        if silent:
            what = f"no request so far in {', '.join(silent)[:120]}"
            yield Check("traffic", "warn", what, "they cannot be judged before they have traffic; or name --groups")


def _lacks(snapshot: Snapshot) -> Iterator[Check]:
    """What the statistics do not show, and what was checked without a fault."""
    found = lacks(snapshot)
    yield from (Check(each.name, "fail" if each.serious else "warn", each.what, each.remedy) for each in found)
    names = {each.name for each in found}
    servers = [each for group in named_groups(snapshot).values() for each in group.values() if each.request_counter]
    if "histogram" not in names and servers and snapshot.is_nginx:
        bounds = len(servers[0].response_buckets.msecs)
        yield Check("histogram", "ok", f"{bounds} bounds, filled for all {len(servers)} servers with requests")
    if "zone" not in names and snapshot.zone is not None:
        yield Check("zone", "ok", f"{snapshot.zone.used_size / 1e6:.2g} of {snapshot.zone.max_size / 1e6:.2g} MB used")


def _attempts(options: PreflightOptions, snapshot: Snapshot) -> Check:
    """What the counters show of an attempt that `proxy_next_upstream` repeated on another server."""
    name = "failed attempts"
    counted = Check(name, "ok", "are counted for the server that failed")
    final = Check(
        name, "warn", "are not counted: a server that does not answer looks as if it had no requests",
        "none is needed: steering suspects a server that has weight but gets no requests",
    )  # fmt: skip
    if not snapshot.is_nginx:
        return counted
    if snapshot.module_version == "deepsched":
        return Check(name, "ok", "are counted, unless these statistics were told to count final answers only")
    if any(snapshot.unserved.values()):
        return counted
    version = _version(snapshot.module_version)
    if version is not None and version != _LAST_RELEASE:
        return counted if version > _LAST_RELEASE else final
    knows = _knows_expire(options)
    if version is None or knows is None:
        what = "may or may not be counted: versions up to v0.2.7 do not, newer sources do and say the same version"
        return Check(name, "warn", what, "allow this machine to read /status/control, which tells them apart")
    return counted if knows else final


def _version(text: str) -> tuple[int, ...] | None:
    parts = text.removeprefix("v").split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() and len(part) < 6 for part in parts) else None


def _knows_expire(options: PreflightOptions) -> bool | None:
    """Whether the control interface refuses a wrong `expire`, which only sources newer than v0.2.7 read.

    The command is `status`, which changes nothing. None when the interface does not answer.
    """
    base = options.status_url.split("/format/")[0].rstrip("/")
    url = f"{base}/control?cmd=status&group=server&zone=*&expire=none"
    try:
        connection = KeptConnection(
            url,
            connect_timeout_s=options.reading.connect_timeout_s,
            read_timeout_s=options.reading.read_timeout_s,
            max_bytes=options.reading.max_bytes,
        )
        status, body = connection.request("GET")
        connection.close()
        document = msgspec.json.decode(body)
    except (NoResponseError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if status != 200 or not isinstance(document, dict):
        return None
    return document.get("processingReturn") is False


def _machines(options: PreflightOptions, snapshot: Snapshot) -> Check:
    name, host = "load balancers", snapshot.host_name or "one machine"
    if options.load_balancers == 0:
        what = f"these are the statistics of {host}; whether other NGINX machines send to the same servers is unknown"
        return Check(name, "warn", what, "say how many there are in all: --load-balancers N")
    if options.load_balancers == 1:
        return Check(name, "ok", f"only {host}, as given")
    what = f"{options.load_balancers} machines send to these servers, as given; {host} sees its own share of the load"
    return Check(name, "warn", what, "give each the same weights; train and judge with as many load balancers")


def _changing(
    options: PreflightOptions, config: ParsedConfig | DeepSchedError | None, snapshot: Snapshot | None
) -> Iterator[Check]:
    """Whether weights can be changed in the way that is given."""
    if isinstance(config, DeepSchedError):
        yield failed("configuration", config)
    elif config is not None:
        yield from _by_reload(options, config, snapshot)
    elif options.control_url:
        yield from control_checks(options.control_url, options.token_file, options.groups)
    else:
        remedy = "give --nginx-conf FILE, or --control-url URL --token-file FILE"
        yield Check("weights", "warn", "no way to change weights is given: this NGINX can be watched only", remedy)


def _configuration(options: PreflightOptions) -> ParsedConfig | DeepSchedError | None:
    """The configuration, or why it cannot be read; None when none is given."""
    try:
        return None if options.nginx_conf is None else read_config(options.nginx_conf)
    except DeepSchedError as error:
        return error


def _by_reload(options: PreflightOptions, config: ParsedConfig, snapshot: Snapshot | None) -> Iterator[Check]:
    try:
        topology = config_topology(config, options.groups)
    except DeepSchedError as error:
        yield failed("configuration", error)
        return
    yield Check("configuration", "ok", f"{len(config.groups)} upstreams with {len(config.servers)} server lines")
    if not options.groups:
        yield from (failed("configuration", error).softer() for error in unusable(config).values())
    yield method_check(config, topology, named=bool(options.groups))
    yield sharing_check(config, topology)
    if snapshot is not None:
        yield names_check(topology, snapshot)
    yield from reload_checks(config, options.reload.model_copy(update={"binary": options.nginx}))
