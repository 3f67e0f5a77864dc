"""Bench `simulator`: requests per second, agreement with queueing theory, a real NGINX and docs/studies.md.

Which server a real NGINX picks, request by request, and which one the simulator picks.
"""

from __future__ import annotations

import http.client
import math
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actuators.contract.script import RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Group, Topology, social_network
from actuators.nginx.detect import detect
from actuators.processes.process import ManagedProcess
from actuators.processes.system import is_listening
from envs.scenarios.catalogue import STUDY, randomised
from envs.scenarios.lookup import scenario
from envs.simulator import lane
from envs.simulator.balancers import clock_s, note_result, pick_least_conn, pick_round_robin
from envs.simulator.batch import SimulatedBatch, SimulationOptions
from envs.simulator.compiling import compiled
from envs.study.judge import Score, judge
from envs.study.rules import RULES
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure

PICKS = 1000


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket: no port to choose."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


@contextmanager
def nginx_over(
    folder: Path, servers: Sequence[str], extra: str = "", alive: int | None = None
) -> Iterator[UnixConnection]:
    """An NGINX whose upstream has servers 0, 1, …, each answering its number; those from `alive` on do not listen."""
    lines = "".join(f"server unix:{folder}/{i} {options};" for i, options in enumerate(servers))
    listeners = "".join(
        f'server {{ listen unix:{folder}/{i}; keepalive_requests 100000; location / {{ return 200 "{i}"; }} }}'
        for i in range(len(servers) if alive is None else alive)
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(
        f"""daemon off; master_process off; pid {folder}/pid; error_log stderr crit;
        events {{ worker_connections 256; }}
        http {{ access_log off; {temporary}
        upstream group {{ {extra} {lines} }}
        server {{ listen unix:{folder}/front; keepalive_requests 100000; location / {{ proxy_pass http://group; }} }}
        {listeners} }}"""
    )
    command = [str(detect().binary), "-p", str(folder), "-c", str(config)]
    with ManagedProcess(command, name="nginx", log_path=folder / "log") as process:
        process.wait_ready(lambda: is_listening(folder / "front"))
        connection = UnixConnection(folder / "front")
        yield connection
        connection.close()


def real_picks(connection: UnixConnection, count: int = PICKS) -> list[int]:
    """Servers that answered `count` requests sent one after the other."""
    picks = []
    for _ in range(count):
        connection.request("GET", "/")
        picks.append(int(connection.getresponse().read()))
    return picks


@compiled
def _play(peers: Any, rules: Any, alive: Any, picks: Any, least_conn: Any, tried: Any) -> None:
    for k in range(len(picks)):
        tried[:] = 0
        while True:
            if least_conn:
                server = pick_least_conn(peers, tried, clock_s(0.0), rules[0])
            else:
                server = pick_round_robin(peers, tried, clock_s(0.0), rules[0])
            peers[server].conns += 1
            failed = server >= alive
            note_result(peers[server], failed, clock_s(0.0), rules[0], False)
            peers[server].conns -= 1
            if not failed:
                break
            tried[server >> 6] |= 1 << (server & 63)
        picks[k] = server


def simulated_picks(
    weights: Sequence[int], *, down: tuple[int, ...] = (), alive: int = 99, max_fails: int = 1, least_conn: bool = False
) -> list[int]:
    """What the simulator's own functions pick; servers from `alive` on refuse, as in `nginx_over`."""
    peers, rules, picks = np.zeros(len(weights), lane.PEER), np.zeros(1, lane.RULES), np.zeros(PICKS, np.int64)
    peers["weight"] = peers["effective"] = weights
    peers["down"][list(down)] = 1
    rules["max_fails"], rules["fail_timeout_s"] = max_fails, 100_000
    _play(peers, rules, alive, picks, least_conn, np.zeros(1, np.int64))
    return [int(pick) for pick in picks]


TOPOLOGY = social_network()
SEEDS = (101, 102, 103, 104)

STUDY_GEOMETRIC = {
    "random_two": (1.037, None), "inverse_latency": (0.948, 0.935), "true_speeds": (0.946, 0.933),
    "shortest_delay": (0.865, 0.786), "true_times": (0.867, 0.799), "expected_delay_static": (0.977, 0.988),
}  # fmt: skip
"""Geometric mean over S1-S10 of mean and p99 over least_conn (docs/studies.md#reference-figures)."""

STUDY_MEAN_MS = {
    "least_conn": {"S1": 5.98, "S2": 5.94, "S2b": 6.56, "S3": 5.80, "S10": 7.26},
    "round_robin": {"S1": 6.81, "S2": 13.53, "S3": 8.71},
    "shortest_delay": {"S1": 5.82, "S2": 5.33, "S2b": 4.87, "S3": 4.10, "S10": 6.34},
}
"""Mean latency of the rows that hardly depend on the seeds (docs/studies.md#reference-figures)."""


def measure(context: BenchContext) -> Sequence[Bar]:
    """Speed, queueing theory and the study's figures (docs/results.md#bench-simulator)."""
    bars = [*_speed(context), *_theory(context), *_picks(context)]
    return [*bars, *_study(context)]


def _speed(context: BenchContext) -> Iterator[Bar]:
    repeats, seconds = (3, 300.0) if context.quick else (7, 600.0)
    for method, limit in (("round_robin", 4.0), ("least_conn", 3.0), ("expected_delay", 2.5)):
        rates = [_requests_per_s(method, context.seed + r, seconds) / 1e6 for r in range(repeats)]
        how = f"S1, CPU time of one thread, best of {repeats} runs of {seconds:g} simulated seconds"
        yield at_least(
            f"simulated requests, {method}",
            max(rates),
            limit,
            "M/s",
            how=how,
            reference=f"median {np.median(rates):.2f}",
        )
    steps = [_env_steps_per_s(context.seed + r) for r in range(repeats)]
    how = f"24 x 1 s, 1300 requests/s each, new weights every step, CPU time of one thread, best of {repeats}"
    yield at_least(
        "environment steps, batch of 24", max(steps), 2500, "per s", how=how, reference=f"median {np.median(steps):.0f}"
    )


def _requests_per_s(method: str, seed: int, seconds: float) -> float:
    batch = SimulatedBatch(TOPOLOGY, 1, method)  # type: ignore[arg-type]
    batch.reset(0, scenario("S1", 2 * seconds).script(TOPOLOGY, seed))
    if method == "expected_delay":
        RULES["true_times"].steering()(batch, [scenario("S1").script(TOPOLOGY, seed)], None)  # type: ignore[misc]
    batch.advance(1.0)
    start = time.thread_time()
    window = batch.advance(seconds)
    return float(window.requests.sum() / (time.thread_time() - start))


def _env_steps_per_s(seed: int, size: int = 24, ticks: int = 60) -> float:
    batch = SimulatedBatch(TOPOLOGY, size, "least_conn")
    # Randomising moves the load by -0.03 on average: 0.588 of the capacity is 1300 requests/s.
    unequal = randomised(replace(scenario("S2"), load=0.618))
    for index in range(size):
        batch.reset(index, unequal.script(TOPOLOGY, seed * size + index))
    generator = np.random.default_rng(seed)
    weights = generator.integers(20, 101, (ticks, size, *TOPOLOGY.shape))
    batch.advance(1.0)
    start = time.thread_time()
    for tick in range(ticks):
        batch.set_weights(weights[tick])
        batch.advance(1.0)
    return size * ticks / (time.thread_time() - start)


def _theory(context: BenchContext) -> Iterator[Bar]:
    requests = 4e6 if context.quick else 2e7
    for workers, load in ((1, 0.7), (3, 0.8), (8, 0.8)):
        exact_s = _erlang_c_s(load * workers, workers)
        mean_s = _queue_mean_s(workers, load, requests, "exponential", 1.0, context.seed)
        yield _agreement(f"M/M/{workers} at {load:.0%}", mean_s, exact_s, requests)
    for cv in (0.0, 1.0, 2.0):
        kind = "lognormal" if cv else "constant"
        mean_s = _queue_mean_s(1, 0.7, requests, kind, cv, context.seed)
        exact_s = 0.01 * (1 + 0.7 * (1 + cv**2) / 2 / 0.3)
        yield _agreement(f"M/G/1 at 70 %, {kind} cv {cv:g}", mean_s, exact_s, requests)
    mean_s = _queue_mean_s(1, 0.7, requests, "lognormal", 2.0, context.seed, sharing=True)
    yield _agreement("M/G/1 processor sharing at 70 %, lognormal cv 2", mean_s, 0.01 / 0.3, requests)


def _agreement(name: str, mean_s: float, exact_s: float, requests: float) -> Bar:
    return at_most(
        f"{name}: deviation of the mean", 100 * abs(mean_s / exact_s - 1), 1.0, "%",
        how=f"{requests:.0e} requests", reference=f"{1e3 * mean_s:.3f} ms, theory {1e3 * exact_s:.3f} ms",
    )  # fmt: skip


def _queue_mean_s(
    workers: int, load: float, requests: float, service: str, cv: float, seed: int, *, sharing: bool = False
) -> float:
    topology = Topology((Group("one", "read", "GET", "/read", 2.0, ("s:80",)),))
    rate_rps = load * workers / 0.01
    script = Script(
        "queue", seed, 1e9, (Stream("read", (RateStep(0.0, rate_rps),)),), (ServerProfile((1.0,), workers, 4096),),
        (0.01,), service, cv,  # type: ignore[arg-type]
    )  # fmt: skip
    options = SimulationOptions(discipline="processor_sharing" if sharing else "fifo")
    batch = SimulatedBatch(topology, 1, "round_robin", options=options)
    batch.reset(0, script)
    window = batch.advance(requests / rate_rps)
    return float(window.latency_s_sum.sum() / window.latency_counts.sum())


def _erlang_c_s(load: float, workers: int, service_s: float = 0.01) -> float:
    last = load**workers / math.factorial(workers) / (1 - load / workers)
    waiting = last / (sum(load**k / math.factorial(k) for k in range(workers)) + last)
    return service_s * (1 + waiting / (workers - load))


def _picks(context: BenchContext) -> Iterator[Bar]:
    vectors = ((1, 1, 1), (5, 1, 1), (5, 3, 2), (100, 61, 7), (13, 100, 1, 42, 8))
    wrong = 0
    for number, weights in enumerate(vectors):
        folder = context.work_dir / str(number)
        folder.mkdir()
        with nginx_over(folder, [f"weight={w}" for w in weights]) as connection:
            real = real_picks(connection)
        wrong += sum(a != b for a, b in zip(real, simulated_picks(weights), strict=True))
    how = f"{PICKS} sequential requests through an NGINX for each of {len(vectors)} weight vectors"
    yield at_most("picks that differ from a real NGINX's", wrong, 0, "picks", how=how)


def _study(context: BenchContext) -> Iterator[Bar]:
    seeds = SEEDS[:1] if context.quick else SEEDS
    names = ("round_robin", "least_conn", *STUDY_GEOMETRIC)
    scores: dict[str, dict[str, Score]] = {}
    for name in names:
        context.log(f"{name} on {len(STUDY)} scenarios, {len(seeds)} seeds")
        scores[name] = {s: judge(RULES[name], scenario(s), TOPOLOGY, seeds) for s in STUDY}
    how = f"seeds {seeds[0]}-{seeds[-1]}, 600 s (S6 1500 s)"
    for name, rows in STUDY_MEAN_MS.items():
        off = {s: 100 * abs(scores[name][s].mean_ms / ms - 1) for s, ms in rows.items()}
        worst = max(off, key=lambda s: off[s])
        reference = f"{worst}: {scores[name][worst].mean_ms:.2f} ms, study {rows[worst]:.2f}"
        yield at_most(
            f"{name}: mean against the study, {', '.join(rows)}", off[worst], 3.0, "%", how=how, reference=reference
        )
    for name, (mean, p99) in STUDY_GEOMETRIC.items():
        ratios = [scores[name][s].over(scores["least_conn"][s]) for s in STUDY]
        found_mean, found_p99 = (_geometric([getattr(r, m) for r in ratios]) for m in ("mean_ms", "p99_ms"))
        yield at_most(
            f"{name}: mean over least_conn against the study's", abs(found_mean - mean), 0.02, "", how=how,
            reference=f"{found_mean:.3f}, study {mean:.3f}",
        )  # fmt: skip
        if p99 is not None:
            yield at_most(
                f"{name}: p99 over least_conn against the study's", abs(found_p99 - p99), 0.03, "", how=how,
                reference=f"{found_p99:.3f}, study {p99:.3f}",
            )  # fmt: skip
        yield figure(f"{name}: ART over least_conn", _geometric([r.art for r in ratios]), "×", how=how)


def _geometric(ratios: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))
