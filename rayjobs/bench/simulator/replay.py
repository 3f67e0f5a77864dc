"""Late binding, replayed: the simulator gets a real NGINX's arrivals and answers, and must make the same decisions:
picks of servers, and refusals.

The NGINX is under load and notes every arrival, answer and pick with its clock.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from actuators.contract.admission import NEVER
from actuators.contract.control import ServiceTimes, Weights
from actuators.contract.late_binding import HoldOrder, LateBinding, LateBindingNumbers
from actuators.contract.request_cost import RequestCost, SeenRequest
from actuators.contract.script import RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Topology, social_network
from actuators.contract.window import DEFAULT_BOUNDS_MS
from actuators.http_client import http_session
from actuators.nginx.config import NginxOptions, entry, lua_block, render_upstreams, status_locations
from actuators.nginx.control_endpoint import MemoryControl
from actuators.nginx.detect import detect, need_lua
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from envs.simulator import engine, lane
from envs.simulator.balancers import METHOD_CODES
from envs.simulator.binding import ORDER_CODES, hold
from envs.simulator.compiling import compiled
from envs.simulator.counting import bucket_table
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most

ORDERS: tuple[HoldOrder, ...] = get_args(HoldOrder)
CONNECTIONS = 40
SPEEDS = (1.0, 0.61, 1.7)
SERVICE_S = (0.018, 0.0044, 0.0033)
SLOTS, WORKERS, DEADLINES_S = (4, 2, 5), (2.0, 1.0, 2.5), (0.15, 0.06, 0.05)
"""Some requests are in time and some are late, with forty of them at eleven slots."""
IMPORTANCE = (4.0, 0.5, NEVER)
"""Of the groups where requests are refused: the last one is not."""
REFUSE_FACTOR = 0.4
"""So small that many requests are refused with forty of them in turn."""
_SAME = 1e-12
COSTS = RequestCost.of_terms(
    {name: {"one": 0.4, "arg:n": 0.06, "log_span:a:b": 0.05, "path:/wrk*-api/post/compose": 0.1}
     for name in ("compose_backend", "home_read_backend")}
)  # fmt: skip
"""Of two groups, where requests are refused."""
_TRACE = """
    location = /trace { content_by_lua_block {
      local late, inflight, trace = require "late", require "inflight", {}
      package.loaded.deepsched_trace = trace
      local function note(...) trace[#trace + 1] = string.format(...) end
      local number, numbers = 0, setmetatable({}, { __mode = "k" })
      local join, step, send, at_once, add = late.join, late.step, late.send, late.send_at_once, inflight.add
      local function come(entry)
        number = number + 1; numbers[entry] = number
        note("hold %d %s %.17g %.17g %s", number, entry.group, entry.arrival_s, entry.cost, ngx.var.request_uri)
      end
      local turns_away, give_up = late.turns_away, late.give_up
      late.turns_away = function(current, entry, now)
        local away = turns_away(current, entry, now)
        note("ask %s %.17g %d %.17g", entry.group, now, away and 1 or 0, entry.cost)
        return away
      end
      late.give_up = function(entry, ...) note("drop %d", numbers[entry]); return give_up(entry, ...) end
      late.join = function(entry) come(entry); return join(entry) end
      late.send_at_once = function(current, entry, now)
        local server = at_once(current, entry, now)
        if server then come(entry); note("look %.17g", now); note("send %d %d", number, server) end
        return server
      end
      late.step = function(now) note("look %.17g", now); return step(now) end
      late.send = function(current, group, entry, place, server, ...)
        note("send %d %d", numbers[entry], server); return send(current, group, entry, place, server, ...)
      end
      inflight.add = function(choice, change)
        if change < 0 then note("free %s %d", choice.group.name, choice.index) end
        return add(choice, change)
      end
    } }
    location = /traced { content_by_lua_block { ngx.print(table.concat(require "deepsched_trace", "\\n")) } }
"""


@dataclass(frozen=True)
class Traced:
    """An NGINX that notes what it does: the port of its front, and the addresses of its control and its trace."""

    port: int
    control_url: str
    token: str


@dataclass(frozen=True)
class Compared:
    """Decisions of a real NGINX and of the simulator.

    Attributes:
        picks: of servers; asked: whether a request that comes would be too late; refused: requests.
        different: those of all these that only one of the two makes at that moment, and costs of requests that are not
            those of `RequestCost`.
    """

    picks: int = 0
    asked: int = 0
    refused: int = 0
    different: int = 0

    def __add__(self, other: Compared) -> Compared:
        return Compared(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def measure(context: BenchContext) -> Sequence[Bar]:
    """How many decisions differ, over all orders, without and with refusals (docs/results.md#late-binding)."""
    plain, refusing = Compared(), Compared()
    for order in ORDERS:
        for factor in (None, REFUSE_FACTOR):
            folder = context.work_dir / f"{order}-{factor}"
            folder.mkdir()
            numbers = LateBindingNumbers(order=order, refuse_factor=factor)
            importance, costs = (IMPORTANCE, COSTS) if factor else ((1.0, 1.0, 1.0), RequestCost())
            found = replayed(folder, numbers, requests=3000, seed=context.seed, importance=importance, costs=costs)
            plain, refusing = (plain + found, refusing) if factor is None else (plain, refusing + found)
    how = f"{CONNECTIONS} connections, {len(ORDERS)} orders, every decision of a real NGINX replayed in the simulator"
    more = f"{how}; importance {', '.join(map(str, IMPORTANCE))}, refuse_factor {REFUSE_FACTOR:g}, costs by request"
    events = refusing.picks + refusing.asked + refusing.refused
    return [
        at_least("late binding: picks compared with a real NGINX", plain.picks, 5000, "picks", how=how),
        at_most("late binding: picks that differ from a real NGINX's", plain.different, 0, "picks", how=how),
        at_least("late binding, refusing: decisions compared with a real NGINX", events, 5000, "decisions", how=more),
        at_least("late binding, refusing: refusals among them", refusing.refused, 500, "refusals", how=more),
        at_most("late binding, refusing: decisions that differ", refusing.different, 0, "decisions", how=more),
    ]


def replayed(
    folder: Path,
    numbers: LateBindingNumbers,
    requests: int,
    seed: int,
    importance: tuple[float, float, float] = (1.0, 1.0, 1.0),
    costs: RequestCost | None = None,
) -> Compared:
    """Decisions of a real NGINX in `folder`, and how many of them the simulator makes otherwise."""
    topology = social_network(tuple(f"127.0.0.1:{free_port('127.0.0.1')}" for _ in SPEEDS))
    tau_s = np.array([[service_s / speed for speed in SPEEDS] for service_s in SERVICE_S])
    believed = RequestCost() if costs is None else costs
    holding = LateBinding(topology, np.array(DEADLINES_S), np.array(SLOTS), numbers, np.array(importance), believed)
    times = ServiceTimes(topology, tau_s, np.array(WORKERS), holding)
    with _nginx(folder, topology) as site, http_session(10.0) as session:
        endpoint = MemoryControl(site.control_url, site.token, topology)
        endpoint.put("late_binding", times)
        endpoint.close()
        session.get(f"http://127.0.0.1:{site.port}/trace").raise_for_status()
        generator = np.random.default_rng(seed)
        groups, values = generator.choice(3, requests, p=(0.2, 0.5, 0.3)), generator.integers(0, 30, (requests, 3))
        paths = [
            f"{topology.groups[g].path}?n={n}&a={a}&b={b}" for g, (n, a, b) in zip(groups, values.tolist(), strict=True)
        ]
        asyncio.run(_send(site.port, iter(paths)))
        trace = session.get(f"http://127.0.0.1:{site.port}/traced").text
    return _compare(trace.splitlines(), _lane(topology, times), topology, believed)


@contextmanager
def _nginx(folder: Path, topology: Topology) -> Iterator[Traced]:
    """With servers in the same NGINX, each of which lets a request wait for as long as its work takes at random."""
    options, build = NginxOptions(method="late_binding"), detect()
    port, status_port, token = free_port("127.0.0.1"), free_port("127.0.0.1"), "replay"
    upstreams = folder / "upstreams.conf"
    upstreams.write_text(render_upstreams(Weights.equal(topology), "late_binding", options, memory=True))
    balancer = 'method = "late_binding", methods = {}, zones = {}, shared_health = true'
    lua = lua_block(9, upstreams, options, token=token, balancer=balancer, holds=True)
    locations = "".join(
        f"location = {group.path} {{ proxy_pass http://{group.name}; {entry(group.name, admission=False, holds=True)} "
        f'log_by_lua_block {{ STATUS.log("{group.name}") }} }}\n'
        for group in topology.groups
    )
    servers = "".join(
        f"server {{ listen {address}; keepalive_requests 1000000; location / {{ content_by_lua_block {{"
        f" ngx.sleep(-math.log(1 - math.random()) * 0.008 / {speed}) ngx.print('ok') }} }} }}\n"
        for address, speed in zip(topology.servers, SPEEDS, strict=True)
    )
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    modules = "".join(f"load_module {path};\n" for path in need_lua(build) if path != Path())
    config = folder / "nginx.conf"
    config.write_text(
        f"""{modules}{"user root;" if os.geteuid() == 0 else ""} daemon off; worker_processes 1; pid {folder}/pid;
error_log stderr error; events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000000; proxy_http_version 1.1; proxy_set_header Connection ""; {temporary}
{lua}
include {upstreams};
server {{ listen 127.0.0.1:{port}; log_by_lua_block {{ STATUS.log_other() }} {locations} {_TRACE} }}
server {{ listen 127.0.0.1:{status_port}; {status_locations(vts=False, memory=True)} }}
{servers} }}"""
    )
    command = [str(build.binary), "-p", str(folder), "-c", str(config)]
    with ManagedProcess(command, name="nginx", log_path=folder / "log") as process:
        process.wait_ready(lambda: _answers(status_port))
        yield Traced(port, f"http://127.0.0.1:{status_port}/control", token)


def _answers(port: int) -> bool:
    with http_session(5.0) as session:
        try:
            return session.get(f"http://127.0.0.1:{port}/status").ok
        except OSError:
            return False


async def _send(port: int, paths: Iterator[str]) -> None:
    """Each connection sends the next request when it has its answer."""

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for path in paths:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if b"chunked" in head:
                await reader.readuntil(b"0\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))


def _lane(topology: Topology, times: ServiceTimes) -> lane.Lane:
    """A lane without arrivals that believes and holds what the control says."""
    assert times.holding is not None
    numbers = times.holding.numbers
    rules: dict[str, Any] = {
        "method": METHOD_CODES["late_binding"], "sharing": False, "max_fails": 1, "fail_timeout_s": 10.0,
        "read_timeout_s": 60.0, "overhead_s": 0.0, "retry_500": False, "retry_post": True, "balancers": 1, "beta": 0.7,
        "error_cost_s": 1.0, "error_gain": 0.1, "error_memory_s": 5.0, "by_in_flight": False,
        "look_ahead": numbers.look_ahead, "theta": numbers.theta, "longest_hold_s": numbers.longest_hold_s,
        "most_held": numbers.most_held, "waiting_weight": numbers.waiting_weight, "late_weight": numbers.late_weight,
        "refuse_factor": np.inf if numbers.refuse_factor is None else numbers.refuse_factor,
    }  # fmt: skip
    script = Script(
        "replay", 1, 1e9, (Stream(topology.request_types[0], (RateStep(0.0, 1.0),)),),
        tuple(ServerProfile((speed,) * 3, 4) for speed in SPEEDS), SERVICE_S,
    )  # fmt: skip
    bounds = DEFAULT_BOUNDS_MS
    tally = lane.Tally(*(array[0] for array in lane.new_tally(topology, 1, len(bounds))))
    empty = (np.zeros(count, kind) for count, kind in ((1, lane.STATE), (3, lane.GATE), (3, lane.COUNT)))
    made = lane.build_lane(topology, script, tally, bounds, bucket_table(bounds), rules, *empty)
    made.tau_s[...], made.mean_tau_s[...], made.believed_workers[...] = (
        times.tau_s, times.tau_s.mean(axis=1), times.workers,
    )  # fmt: skip
    made.room[...], made.due_s[...] = times.holding.slots, times.holding.deadlines_s
    made.worth[...], made.never[...] = times.holding.weights(), times.holding.importance == NEVER
    made.rules["learned"], made.rules["order"] = 1, ORDER_CODES[numbers.order]
    return made


@compiled
def _ask(lane: Any, group: int, now_s: float, cost: float) -> Any:
    """Whether a request of the group that comes now is turned away; it takes no place."""
    slot = lane.free[lane.state[0].free - 1]
    request = lane.requests[slot]
    request.group, request.context, request.arrival_s, request.cost = group, 0, now_s, cost
    return engine.turned_away(lane, slot, now_s)


@compiled
def _hold(lane: Any, group: int, arrival_s: float, cost: float) -> Any:
    """The slot of a request that is held."""
    state = lane.state[0]
    state.free -= 1
    slot = lane.free[state.free]
    request = lane.requests[slot]
    request.group, request.context, request.arrival_s, request.cost = group, 0, arrival_s, cost
    hold(lane, slot)
    return slot


@compiled
def _look(lane: Any, now_s: float, slots: Any, servers: Any) -> Any:
    """What the simulator does now: slots of requests that it sends and their servers, in order, then those that it
    refuses; how many are sent, and how many refused.
    """
    state = lane.state[0]
    free = state.free
    engine.bind(lane, now_s)
    count, refused = state.resend, state.free - free
    for index in range(count):
        slots[index] = lane.resend[index]
        servers[index] = lane.requests[lane.resend[index]].server
    for index in range(refused):
        slots[count + index] = lane.free[free + index]
    for index in range(count):
        lane.free[state.free] = lane.resend[index]
        state.free += 1
    state.resend = 0
    return count, refused


@compiled
def _free(lane: Any, group: int, server: int) -> None:
    lane.peers[0, group, server].conns -= 1


def _seen(uri: str) -> SeenRequest:
    """What NGINX sees of a GET."""
    path, _, query = uri.partition("?")
    return SeenRequest(path, {name: float(value) for name, value in (word.split("=") for word in query.split("&"))})


def _compare(trace: Sequence[str], played: lane.Lane, topology: Topology, costs: RequestCost) -> Compared:
    """How the decisions in the trace compare with those of the simulator."""
    groups = {group.name: g for g, group in enumerate(topology.groups)}
    slots, servers = np.zeros(len(played.requests), np.int64), np.zeros(len(played.requests), np.int64)
    numbers = dict[int, str]()
    found, sends, drops = Compared(), list[tuple[str, int]](), list[str]()
    for line in trace:
        word, *rest = line.split()
        if word == "send":
            wrong = not sends or sends.pop(0) != (rest[0], int(rest[1]) - 1)
            found += Compared(picks=1, different=int(wrong))
            continue
        if word == "drop":
            wrong = not drops or drops.pop(0) != rest[0]
            found += Compared(refused=1, different=int(wrong))
            continue
        found += Compared(different=len(sends) + len(drops))
        sends, drops = [], []
        if word == "ask":
            away = int(rest[2])
            wrong = bool(_ask(played, groups[rest[0]], float(rest[1]), float(rest[3]))) != bool(away)
            found += Compared(asked=1, refused=away, different=int(wrong))
        elif word == "hold":
            numbers[_hold(played, groups[rest[1]], float(rest[2]), float(rest[3]))] = rest[0]
            expected = costs.of(rest[1], _seen(rest[4]))
            found += Compared(different=int(abs(float(rest[3]) - expected) > _SAME * expected))
        elif word == "look":
            sent, refused = _look(played, float(rest[0]), slots, servers)
            places = zip(slots[:sent].tolist(), servers[:sent].tolist(), strict=True)
            sends = [(numbers[slot], server) for slot, server in places]
            drops = [numbers[slot] for slot in slots[sent : sent + refused].tolist()]
        else:
            _free(played, groups[rest[0]], int(rest[1]) - 1)
    return replace(found, different=found.different + len(sends) + len(drops))
