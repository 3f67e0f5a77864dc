"""Late binding, replayed: the simulator gets a real NGINX's arrivals and answers, and must make the same picks.

The NGINX is under load and notes every arrival, answer and pick with its clock.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actuators.contract.control import ServiceTimes, Weights
from actuators.contract.late_binding import HoldOrder, LateBinding, LateBindingNumbers
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

ORDERS: tuple[HoldOrder, ...] = ("response_ratio", "earliest_deadline", "fifo")
CONNECTIONS = 40
SPEEDS = (1.0, 0.61, 1.7)
SERVICE_S = (0.018, 0.0044, 0.0033)
SLOTS, WORKERS, DEADLINES_S = (4, 2, 5), (2.0, 1.0, 2.5), (0.15, 0.06, 0.05)
"""Some requests are in time and some are late, with forty of them at eleven slots."""
_TRACE = """
    location = /trace { content_by_lua_block {
      local late, inflight, trace = require "late", require "inflight", {}
      package.loaded.deepsched_trace = trace
      local function note(...) trace[#trace + 1] = string.format(...) end
      local number, numbers = 0, setmetatable({}, { __mode = "k" })
      local join, step, send, at_once, add = late.join, late.step, late.send, late.send_at_once, inflight.add
      local function come(entry)
        number = number + 1; numbers[entry] = number
        note("hold %d %s %.17g", number, entry.group, entry.arrival_s)
      end
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


def measure(context: BenchContext) -> Sequence[Bar]:
    """How many picks differ, over all orders (docs/results.md#late-binding)."""
    compared, different = 0, 0
    for order in ORDERS:
        folder = context.work_dir / order
        folder.mkdir()
        picks, wrong = replayed(folder, LateBindingNumbers(order=order), requests=3000, seed=context.seed)
        compared, different = compared + picks, different + wrong
    how = f"{CONNECTIONS} connections, three orders, every pick of a real NGINX replayed in the simulator"
    return [
        at_least("late binding: picks compared with a real NGINX", compared, 5000, "picks", how=how),
        at_most("late binding: picks that differ from a real NGINX's", different, 0, "picks", how=how),
    ]


def replayed(folder: Path, numbers: LateBindingNumbers, requests: int, seed: int) -> tuple[int, int]:
    """Picks of a real NGINX in `folder`, and how many of them the simulator makes otherwise."""
    topology = social_network(tuple(f"127.0.0.1:{free_port('127.0.0.1')}" for _ in SPEEDS))
    tau_s = np.array([[service_s / speed for speed in SPEEDS] for service_s in SERVICE_S])
    holding = LateBinding(topology, np.array(DEADLINES_S), np.array(SLOTS), numbers)
    times = ServiceTimes(topology, tau_s, np.array(WORKERS), holding)
    with _nginx(folder, topology) as site, http_session(10.0) as session:
        endpoint = MemoryControl(site.control_url, site.token, topology)
        endpoint.put("late_binding", times)
        endpoint.close()
        session.get(f"http://127.0.0.1:{site.port}/trace").raise_for_status()
        paths = [topology.groups[g].path for g in np.random.default_rng(seed).choice(3, requests, p=(0.2, 0.5, 0.3))]
        asyncio.run(_ask(site.port, iter(paths)))
        trace = session.get(f"http://127.0.0.1:{site.port}/traced").text
    return _compare(trace.splitlines(), _lane(topology, times), topology)


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


async def _ask(port: int, paths: Iterator[str]) -> None:
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
        "most_held": numbers.most_held,
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
    made.rules["learned"], made.rules["order"] = 1, ORDER_CODES[numbers.order]
    return made


@compiled
def _hold(lane: Any, slot: int, group: int, arrival_s: float) -> Any:
    request = lane.requests[slot]
    request.group, request.context, request.arrival_s = group, 0, arrival_s
    return hold(lane, slot)


@compiled
def _look(lane: Any, now_s: float, slots: Any, servers: Any) -> Any:
    """What the simulator sends now: slots of requests and servers, in order; how many."""
    engine.bind(lane, now_s)
    state = lane.state[0]
    count = state.resend
    for index in range(count):
        slots[index] = lane.resend[index]
        servers[index] = lane.requests[lane.resend[index]].server
    state.resend = 0
    return count


@compiled
def _free(lane: Any, group: int, server: int) -> None:
    lane.peers[0, group, server].conns -= 1


def _compare(trace: Sequence[str], played: lane.Lane, topology: Topology) -> tuple[int, int]:
    """Picks in the trace, and those of them, or of the simulator, that the other one does not make at that moment."""
    groups = {group.name: g for g, group in enumerate(topology.groups)}
    slots, servers = np.zeros(len(played.requests), np.int64), np.zeros(len(played.requests), np.int64)
    free, slot_of, numbers = list(range(len(played.requests))), dict[str, int](), dict[int, str]()
    picks, different = 0, 0
    expected: list[tuple[str, int]] = []
    for line in trace:
        word, *rest = line.split()
        if word == "send":
            picks += 1
            different += not expected or expected.pop(0) != (rest[0], int(rest[1]) - 1)
            continue
        different, expected = different + len(expected), []
        if word == "hold":
            slot_of[rest[0]] = free.pop()
            numbers[slot_of[rest[0]]] = rest[0]
            _hold(played, slot_of[rest[0]], groups[rest[1]], float(rest[2]))
        elif word == "look":
            count = _look(played, float(rest[0]), slots, servers)
            expected = [
                (numbers[slot], server) for slot, server in zip(slots[:count].tolist(), servers.tolist(), strict=False)
            ]
            free += slots[:count].tolist()
        else:
            _free(played, groups[rest[0]], int(rest[1]) - 1)
    return picks, different + len(expected)
