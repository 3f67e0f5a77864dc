"""The file that an NGINX includes in place of its upstream blocks, to balance and count in memory.

What those blocks said is carried over, or refused by name. Host names are resolved to show what NGINX will do.
"""

from __future__ import annotations

import difflib
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from actuators.errors import ConfigError, closest
from actuators.external.config_lexer import Directive
from actuators.external.config_reader import ParsedConfig, PassLine, ServerLine, UpstreamBlock
from actuators.nginx.config import NginxOptions, entry, lua_block, status_locations
from actuators.nginx.detect import NginxBuild, need_lua

HEAD = "# Written by deepsched for: include"
"""First words of a snippet."""
_KEPT = ("keepalive", "keepalive_requests", "keepalive_timeout", "keepalive_time")
_PLAIN = re.compile(r"[^\s;{}\"'\\$#]+\Z")
"""A word that needs no quotes, in NGINX and in the lines that lua/counters.lua and lua/control.lua read."""
_TIME = re.compile(r"(\d+)([yMwdhms]?)")
_SECONDS = {"y": 365 * 86400, "M": 30 * 86400, "w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1, "": 1}
_COLLIDING = ("init_by_lua", "init_worker_by_lua", "log_by_lua", "lua_package_path", "log_subrequest")
_REMEDY = "leave the group out with --groups A,B, or change its weights by reload (--nginx-conf)"


@dataclass(frozen=True)
class MemoryServer:
    """One server line as the balancer in memory keeps it; `addresses` are those that its host name has now."""

    address: str
    weight: int
    max_fails: int
    fail_timeout_s: int
    max_conns: int
    backup: bool
    down: bool
    addresses: tuple[str, ...]

    @property
    def line(self) -> str:
        room = f" max_conns={self.max_conns}" if self.max_conns else ""
        flags = " backup" * self.backup + " down" * self.down
        return (
            f"  server {self.address} weight={self.weight} max_fails={self.max_fails}"
            f" fail_timeout={self.fail_timeout_s}s{room}{flags};\n"
        )


@dataclass(frozen=True)
class MemoryGroup:
    """One upstream as the balancer in memory keeps it.

    Attributes:
        method: round_robin, least_conn, random or random_two.
        zone: its servers' connections are counted over all workers.
        keepalive: its keepalive directives, as they stand.
    """

    name: str
    method: str
    zone: bool
    servers: tuple[MemoryServer, ...]
    keepalive: tuple[str, ...]

    @property
    def text(self) -> str:
        """The upstream block. NGINX wants keepalive after the balancer."""
        lines = "".join(server.line for server in self.servers)
        keepalive = "".join(f"  {each};\n" for each in self.keepalive)
        balancer = f'  balancer_by_lua_block {{ BALANCER.pick("{self.name}") }}\n'
        return f"upstream {self.name} {{\n{lines}{balancer}{keepalive}}}\n"


def memory_groups(config: ParsedConfig, wanted: Sequence[str]) -> tuple[MemoryGroup, ...]:
    """These upstreams of a configuration, or all of them.

    Raises ConfigError, which names the line, for what the balancer in memory cannot keep.
    """
    for name in wanted:
        if name not in config.blocks:
            raise ConfigError(f"unknown group '{name}'", where=str(config.main), remedy=closest(name, config.blocks))
    if not config.blocks:
        raise ConfigError("no upstream block", where=str(config.main), remedy="name the right configuration")
    for name in wanted or config.blocks:
        _check_not_ours(config.blocks[name])
    groups = tuple(_group(config, config.blocks[name]) for name in wanted or config.blocks)
    for directive, file in config.lua:
        if _collides(directive):
            remedy = "remove it, or change weights by reload (--nginx-conf)"
            raise ConfigError(
                f"'{directive.name}' cannot be kept beside the snippet, which needs its own",
                where=f"{file}:{directive.line}", remedy=remedy,
            )  # fmt: skip
    return groups


def _check_not_ours(block: UpstreamBlock) -> None:
    try:
        ours = block.file.read_bytes().startswith(HEAD.encode())
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", where=str(block.file), remedy="see its rights"
        ) from error
    if ours:
        remedy = "put the upstream blocks back (patch -R -d / -p1 < deepsched.diff), do not reload, and write it again"
        raise ConfigError("this snippet is included already", where=f"{block.file}:{block.line}", remedy=remedy)


class Asking(NamedTuple):
    """What requests ask for in the access phase: to enter, of admission control, and for a slot, of late binding."""

    admission: bool = False
    slots: bool = False

    @property
    def words(self) -> str:
        return " and ".join(["admission control"] * self.admission + ["late binding"] * self.slots)

    @property
    def options(self) -> str:
        return " and ".join(["memory.admission"] * self.admission + ["memory.late_binding"] * self.slots)


ASKS_NOTHING = Asking()


def asking_locations(
    config: ParsedConfig, groups: Sequence[MemoryGroup], exempt: Sequence[str], asking: Asking
) -> tuple[PassLine, ...]:
    """The locations whose requests ask: those of these groups, without named and `exempt` ones.

    Raises ConfigError, which names the line, for Lua of the access phase, of which only one of location, server and
    http runs, and with slots of the body filter; for an `exempt` that matches none of these locations; and for
    locations that would ask although they must not, or the other way round.
    """
    _check_phases(config, asking)
    names = {group.name for group in groups}
    places = _places(config, names)
    locations = list(dict.fromkeys(each.location for shared in places for each in shared))
    for location in exempt:
        if location not in locations:
            raise ConfigError(
                f"no location '{location}' of these groups", where="exempt", remedy=closest(location, locations)
            )
    asks: list[PassLine] = []
    chosen: list[PassLine] = []
    for shared in places:
        named = [each.location.startswith("@") for each in shared]
        free = [each for each in shared if each.location in exempt]
        if free and len(free) + sum(named) < len(shared):
            remedy = "write the directive into each of these locations"
            what = f"location {free[0].location} is exempt and shares this line with locations that are not"
            raise ConfigError(what, where=f"{free[0].file}:{free[0].line}", remedy=remedy)
        if not free and not all(named):
            chosen.append(shared[named.index(False)])
            asks += shared
    _check_inherited(config, asks, names)
    if asking.slots:
        _check_slots(config, asks)
    return tuple(chosen)


def _places(config: ParsedConfig, names: set[str]) -> list[list[PassLine]]:
    """The directives that pass to these groups, by where they stand: several locations may include one file."""
    places: dict[tuple[Path, int], list[PassLine]] = {}
    for each in config.passes:
        if each.host in names:
            places.setdefault((each.file, each.start), []).append(each)
    return list(places.values())


def _check_phases(config: ParsedConfig, asking: Asking) -> None:
    """Raises ConfigError for directives that would disable the calls, or that these would disable."""
    phases = {"access": "the access phase", **({"body_filter": "the body filter"} if asking.slots else {})}
    for directive, file in config.lua:
        phase = directive.name.partition("_by_lua")[0]
        if phase in phases:
            remedy = f"write the snippet without {asking.options}, and put its calls into that Lua by hand"
            what = f"'{directive.name}' and {asking.words} cannot both have {phases[phase]}"
            raise ConfigError(what, where=f"{file}:{directive.line}", remedy=remedy)
        if asking.slots and directive.name == "lua_check_client_abort" and directive.arguments != ("on",):
            remedy = "remove it, or write the snippet without memory.late_binding"
            what = "a client that goes away while it is held would keep its place"
            raise ConfigError(what, where=f"{file}:{directive.line}", remedy=remedy)
    for where in config.satisfy_any:
        # Lua in the access phase that raises no error satisfies it: every client would get in without a password.
        remedy = f"use 'satisfy all' there, or write the snippet without {asking.options}"
        raise ConfigError(
            f"with 'satisfy any', {asking.words} would open what is protected", where=where, remedy=remedy
        )


def _check_inherited(config: ParsedConfig, asks: Sequence[PassLine], names: set[str]) -> None:
    """Raises ConfigError for a location, or a directive in one, whose requests would ask for those of another."""
    places = {each.place for each in asks}
    for outer, place, name, where in config.nested:
        if outer in places and place not in places:
            remedy = "write it beside that location, not inside"
            raise ConfigError(f"location {name} would ask as the location around it does", where=where, remedy=remedy)
    for each in config.passes:
        if each.place in places and each.host not in names:
            what = f"location {each.location} also passes to '{each.target}', which is not of these groups"
            raise ConfigError(what, where=f"{each.file}:{each.line}", remedy="give it a location for itself")


def _check_slots(config: ParsedConfig, asks: Sequence[PassLine]) -> None:
    """Raises ConfigError for locations whose requests cannot be held."""
    remedy = "exempt the location, or write the snippet without memory.late_binding"
    for each in asks:
        if each.name == "grpc_pass":
            what = f"location {each.location}: a gRPC stream would be read to its end before it is sent"
            raise ConfigError(what, where=f"{each.file}:{each.line}", remedy=remedy)
        if cache := config.cache_of(each):
            what = f"location {each.location}: what the cache could answer would be held"
            raise ConfigError(what, where=cache, remedy=remedy)


def asking_notes(config: ParsedConfig, passes: Sequence[PassLine], asking: Asking) -> list[str]:
    """Which locations ask, and which cannot, one line each; and what held requests need."""
    enters = "asks to enter" if asking.admission else "asks for a slot of"
    lines = [f"{each.file}:{each.line}: location {each.location} {enters} {each.host}" for each in passes]
    lines += [
        f"{each.file}:{each.line}: location {each.location} passes to '{each.target}', which is known too late: its"
        " requests are counted, but never refused or held"
        for each in config.passes
        if "$" in each.host
    ]
    asked = {(each.file, each.start) for each in passes}
    lines += [
        f"{each.file}:{each.line}: location {each.location} does not ask, because it is named: what reaches"
        f" {each.host} through it, as by try_files, is counted, but never refused or held"
        for each in config.passes
        if each.location.startswith("@") and each.host in config.blocks and (each.file, each.start) not in asked
    ]
    if asking.slots:
        lines.append(
            "late binding: a held request keeps its connection, so worker_connections must have room for most_held of"
            " them beside the connections to the servers"
        )
    return lines


def notes(config: ParsedConfig, groups: Sequence[MemoryGroup]) -> list[str]:
    """What is different in memory, or decided at another time, one line each."""
    lines = []
    if config.subrequests:
        directive, where = config.subrequests[0]
        lines.append(
            f"{where}: '{directive}' makes subrequests, and the snippet has 'log_subrequest on': the access log also"
            " gets a line for each of them"
        )
    for group in groups:
        for server in group.servers:
            if _is_host_name(server.address):
                found = " and ".join(server.addresses)
                lines.append(
                    f"{group.name}: {server.address} is resolved when NGINX starts or reloads, as before; now it is"
                    f" {found}, and weights and statistics name that"
                )
        if group.zone:
            lines.append(f"{group.name}: 'zone' is left out: counts in memory are those of all workers")
    return lines


def render_snippet(
    path: Path, groups: Sequence[MemoryGroup], options: NginxOptions, build: NginxBuild, *, port: int, token: str
) -> str:
    """The text of the snippet; statistics and control are on 127.0.0.1:`port`.

    Args:
        path: where it will stand, because the balancer reads it.
        options: `method` is in force where it was given; otherwise every group keeps its own.
        token: that a change of the control needs.

    Raises:
        MissingToolError: this NGINX has no Lua module.
        ConfigError: the path needs quotes, or the method needs what is not asked for.
    """
    need_lua(build)
    if options.given("method") and options.method == "late_binding" and not options.late_binding:
        remedy = "add --set memory.late_binding=true"
        raise ConfigError("late_binding needs locations that ask for a slot", where="memory.method", remedy=remedy)
    if not _PLAIN.match(str(path)):
        raise ConfigError("the path has a blank or a quote", where=str(path), remedy="choose another with --out")
    cells = 2 * sum(len(server.addresses) for group in groups for server in group.servers)
    lua = lua_block(
        cells, path, options, token=token, balancer=_settings(groups, options), holds=options.late_binding,
        kept=kept_rule(path), kept_holding=kept_holding(path),
    )  # fmt: skip
    return f"""{HEAD} {path};   (in the http block, in place of these upstreams)
# The balancer reads this file there: write it again to have it elsewhere.
{lua}
  log_by_lua_block {{ STATUS.log_any() }}
{"".join(group.text for group in groups)}server {{
  listen 127.0.0.1:{port};
  server_name localhost;
  access_log off;
  log_by_lua_block {{ STATUS.log_nothing() }}
  client_max_body_size {1024 + cells}k;
  client_body_buffer_size {1024 + cells}k;
{status_locations(vts=False, memory=True, admission=options.admission)}}}
"""


def kept_rule(snippet: Path) -> Path:
    """The file whose rule of admission an NGINX with this snippet begins with."""
    return snippet.with_name(snippet.name + ".admission")


def kept_holding(snippet: Path) -> Path:
    """The file whose late binding an NGINX with this snippet begins with."""
    return snippet.with_name(snippet.name + ".holding")


def changes(
    config: ParsedConfig,
    groups: Sequence[MemoryGroup],
    snippet: Path,
    build: NginxBuild,
    passes: Sequence[PassLine] = (),
    asking: Asking = ASKS_NOTHING,
) -> dict[Path, tuple[str, str]]:
    """The files of the configuration that change: old and new text. Raises ConfigError when one cannot be read.

    Args:
        passes: whose locations ask for what `asking` says.
    """
    new: dict[Path, bytes] = {}
    blocks = [config.blocks[group.name] for group in groups]
    include = f"include {snippet};".encode()
    # From the end of a file on, so that the offsets before stay right.
    places: list[UpstreamBlock | PassLine] = [*blocks, *passes]
    for place in sorted(places, key=lambda place: place.start, reverse=True):
        text = new.get(place.file) or place.file.read_bytes()
        if isinstance(place, PassLine):
            new[place.file] = _asking(text, place, asking)
        else:
            new[place.file] = _replaced(text, place, include if place == blocks[0] else b"")
    missing = [] if _loads_lua(config) else [f"load_module {path};\n" for path in need_lua(build)]
    if missing:
        main = config.main.resolve()
        new[main] = "".join(missing).encode() + new.get(main, main.read_bytes())
    return {path: (_text(path.read_bytes()), _text(text)) for path, text in new.items()}


def _asking(text: bytes, place: PassLine, asking: Asking) -> bytes:
    """The text with the calls after the directive, on a line of their own where that has one."""
    line = text[text.rfind(b"\n", 0, place.start) + 1 : place.start]
    gap = b"\n" + line if not line.strip() else b" "
    call = entry(place.host, admission=asking.admission, holds=asking.slots).encode()
    return text[: place.end] + gap + call + text[place.end :]


def _replaced(text: bytes, block: UpstreamBlock, new: bytes) -> bytes:
    """The text with `new` in place of the block; without `new`, lines that held nothing else go, too."""
    before, after = text[: block.start], text[block.end :]
    if not new and before.rstrip(b" \t")[-1:] in (b"", b"\n") and after.lstrip(b" \t\r")[:1] == b"\n":
        before, after = before.rstrip(b" \t"), after.partition(b"\n")[2]
    return before + new + after


def unified_diff(changed: dict[Path, tuple[str, str]]) -> str:
    """As `diff -u`, for `patch -d / -p1`."""
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for path, (old, new) in changed.items()
        for line in difflib.unified_diff(_lines(old), _lines(new), str(path), str(path))
    )


def _settings(groups: Sequence[MemoryGroup], options: NginxOptions) -> str:
    """Settings of lua/balancer.lua."""
    own = {group.method for group in groups}
    method = options.method if options.given("method") else next(iter(own)) if len(own) == 1 else "configured"
    if method == "random":
        method = "configured"
    methods = ", ".join(f'["{group.name}"] = "{group.method}"' for group in groups)
    zones = ", ".join(f'["{group.name}"] = true' for group in groups if group.zone)
    return f'method = "{method}", methods = {{ {methods} }}, zones = {{ {zones} }}, shared_health = false'


def _group(config: ParsedConfig, block: UpstreamBlock) -> MemoryGroup:
    where = f"{block.file}:{block.line}"
    if not _PLAIN.match(block.name):
        raise ConfigError(f"the name '{block.name}' needs quotes", where=where, remedy=_REMEDY)
    servers = [_server(line) for line in config.group(block.name)]
    if not servers:
        raise ConfigError(f"no servers in {block.name}", where=where, remedy=_REMEDY)
    if all(server.down for server in servers):
        remedy = "leave the group out with --groups A,B, or remove the upstream"
        raise ConfigError(f"every server of {block.name} is down", where=where, remedy=remedy)
    method, zone, keepalive = "round_robin", False, []
    for directive in block.settings:
        words = (directive.name, *directive.arguments)
        if directive.name in _KEPT and all(map(_PLAIN.match, words)):
            keepalive.append(" ".join(words))
        elif directive.name == "zone":
            zone = True
        else:
            method = _method(words, f"{block.file}:{directive.line}")
    _check_twice(servers, where)
    return MemoryGroup(block.name, method, zone, tuple(servers), tuple(keepalive))


def _method(words: tuple[str, ...], where: str) -> str:
    if words == ("least_conn",):
        return "least_conn"
    if words == ("random",):
        return "random"
    if words in (("random", "two"), ("random", "two", "least_conn")):
        return "random_two"
    raise ConfigError(f"'{' '.join(words)}' cannot be kept in memory", where=where, remedy=_REMEDY)


def _server(line: ServerLine) -> MemoryServer:
    where = f"{line.file}:{line.line}"
    values = {"max_fails": "1", "fail_timeout": "10", "max_conns": "0"}
    for word in line.parameters:
        name, equals, value = word.partition("=")
        if equals and name in values:
            values[name] = value
        elif word not in ("backup", "down") and not word.startswith("weight="):
            raise ConfigError(f"'{word}' cannot be kept in memory", where=where, remedy=_REMEDY)
    if not _PLAIN.match(line.server):
        raise ConfigError(f"the address '{line.server}' needs quotes", where=where, remedy=_REMEDY)
    return MemoryServer(
        address=line.server,
        weight=line.weight,
        max_fails=_whole(values["max_fails"], "max_fails", where),
        fail_timeout_s=_seconds(values["fail_timeout"], where),
        max_conns=_whole(values["max_conns"], "max_conns", where),
        backup="backup" in line.parameters,
        down=line.down,
        addresses=_addresses(line.server, where),
    )


def _check_twice(servers: Sequence[MemoryServer], where: str) -> None:
    """Raises ConfigError when lines of one address differ in more than the weight; in memory they are one server."""
    seen: dict[str, MemoryServer] = {}
    for server in servers:
        for address in server.addresses:
            own = replace(server, address=address, addresses=(), weight=1)
            if seen.setdefault(address, own) != own:
                raise ConfigError(f"two different lines for {address}", where=where, remedy="give it one server line")


def _whole(value: str, name: str, where: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", value):
        raise ConfigError(f"{name} '{value}' is not a whole number", where=where, remedy="check it with: nginx -t")
    return int(value)


def _seconds(value: str, where: str) -> int:
    parts = _TIME.findall(value)
    if not parts or "".join(map("".join, parts)) != value:
        raise ConfigError(f"fail_timeout '{value}' is not a time", where=where, remedy="check it with: nginx -t")
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)


def _addresses(server: str, where: str) -> tuple[str, ...]:
    """The addresses of a server line under the names of NGINX, as lua/addresses.lua finds them at its start."""
    if server.startswith("unix:"):
        return (server,)
    host, colon, port = server.rpartition(":")
    if not colon or server.endswith("]"):
        host, port = server, "80"
    flags = socket.AI_ADDRCONFIG if _is_host_name(server) else 0
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host not found: {server}", where=where, remedy="check it with: nginx -t") from error
    hosts = [str(address[0]) for *_, address in found]
    return tuple(f"[{host}]:{int(port)}" if ":" in host else f"{host}:{int(port)}" for host in hosts)


def _is_host_name(server: str) -> bool:
    return not re.match(r"unix:|\[|[\d.]+(:\d+)?\Z", server)


def _collides(directive: Directive) -> bool:
    return directive.name.removesuffix("_block").removesuffix("_file") in _COLLIDING


def _loads_lua(config: ParsedConfig) -> bool:
    return any("ngx_http_lua_module" in "".join(directive.arguments) for directive, _ in config.lua)


def _lines(text: str) -> list[str]:
    return re.findall(r".*\n|.+", text)


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
