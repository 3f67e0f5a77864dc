"""How quick the served policy is: inference alone, over HTTP on uvicorn and on Ray Serve, a trivial Serve beside it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from actuators.contract.topology import social_network
from actuators.errors import DataError, MissingToolError
from actuators.http_client import responds
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure

_WRK = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open(os.getenv("DEEPSCHED_BODY"), "rb")
wrk.body = file:read("*a")
"""
_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
LARGE_SERVERS = 300
START_TIMEOUT_S = 120.0
VTS_BOUNDS_MS = (5, 10, 20, 30, 50, 100, 200, 500, 1000, 2000)
"""As many as a usual `vhost_traffic_status_histogram_buckets` line has."""

SHORT_RING = 7
"""Last times that make a document of 900 entries 800 KB long."""

FRONTS = {"uvicorn": ("--front", "uvicorn"), "default proxy": ("--no-haproxy",), "HAProxy": ("--haproxy",)}
"""What stands between a client and the policy; the last one is what is judged."""

Found = dict[str, dict[str, float]]
"""Measure → what wrk said of it."""


def measure(context: BenchContext) -> list[Bar]:
    """Bars of a served policy; everything on this machine, the client too."""
    from rayjobs.bench.parts.serve import make_bundle

    bundle = make_bundle(context.work_dir / "bundles" / "policy", context.seed)
    bodies = _bodies(context)
    bars = [_inference(bundle)]
    found: dict[str, Found] = {}
    for name, flags in FRONTS.items():
        with _served(context, name, flags) as url:
            found[name] = _measured(url, bodies, 4 if context.quick else 12)
        context.log(f"{name}: {json.dumps(found[name])}")
    return [*bars, *_bars(found)]


def _bodies(context: BenchContext) -> dict[str, Path]:
    """Requests by name: the social network's three servers, and 300 with short and with full rings of last times."""
    from rayjobs.bench.parts.serve import FULL_RING, vts_documents

    many = social_network(tuple(f"10.0.{i // 250}.{i % 250 + 1}:80" for i in range(LARGE_SERVERS)))
    documents = {
        "small": vts_documents(social_network(), context.seed),
        "large": vts_documents(many, context.seed, SHORT_RING, VTS_BOUNDS_MS),
        "full": vts_documents(many, context.seed, FULL_RING),
    }
    paths = {}
    for name, pair in documents.items():
        paths[name] = context.work_dir / f"{name}.json"
        paths[name].write_text(json.dumps({"documents": pair}, separators=(",", ":")))
        context.log(f"{name}: two documents, {paths[name].stat().st_size} bytes together")
    return paths


def _measured(url: str, bodies: dict[str, Path], duration_s: int) -> Found:
    weights = f"{url}/v1/weights"
    return {
        "one": _wrk(weights, bodies["small"], 1, duration_s),
        "sixteen": _wrk(weights, bodies["small"], 16, duration_s),
        "large": _wrk(weights, bodies["large"], 1, duration_s),
        "full": _wrk(weights, bodies["full"], 1, duration_s),
        "trivial one": _wrk(f"{url}/healthz", None, 1, duration_s),
        "trivial sixteen": _wrk(f"{url}/healthz", None, 16, duration_s),
    }


def _bars(found: dict[str, Found]) -> list[Bar]:
    *others, judged = found
    ours = found[judged]

    def beside(measure: str, key: str) -> str:
        """The same through the other fronts, and an answer without any work through each of them."""
        same = [f"{name} {found[name][measure][key]:.1f}" for name in others]
        if f"trivial {measure}" not in ours:
            return ", ".join(same)
        return ", ".join([*same, *(f"trivial {name} {found[name][f'trivial {measure}'][key]:.1f}" for name in found)])

    how = f"wrk against Ray Serve behind {judged}, one replica; two vts documents of 3 servers in 3 groups a request"
    failed = sum(result["failed"] for front in found.values() for result in front.values())
    return [
        at_most("POST /v1/weights 3x3, 1 client, p50", ours["one"]["p50_ms"], 10, "ms", how=how,
                reference=beside("one", "p50_ms")),
        at_most("POST /v1/weights 3x3, 1 client, p99", ours["one"]["p99_ms"], 30, "ms", how=how,
                reference=beside("one", "p99_ms")),
        at_least("POST /v1/weights 3x3, 16 clients", ours["sixteen"]["rate_rps"], 150, "req/s", how=how,
                 reference=beside("sixteen", "rate_rps")),
        at_most("300 servers x 3 groups, 1 client, p99", ours["large"]["p99_ms"], 80, "ms",
                how="two documents of 900 entries and 0.8 MB each a request", reference=beside("large", "p99_ms")),
        figure("the same with full rings, p99", ours["full"]["p99_ms"], "ms",
               how="two documents of 3 MB each: all of vts' last 63 times", reference=beside("full", "p99_ms")),
        at_most("failed answers", failed, 0, "", how="wrk: no 2xx or 3xx, in all of these"),
    ]  # fmt: skip


def _inference(folder: Path) -> Bar:
    """Observation to weights, in this process."""
    from rayjobs.bench.parts.serve import some_windows
    from tuning.policy.bundle import load_bundle

    bundle = load_bundle(folder)
    policy, observer = bundle.policy(), bundle.problem.observer()
    observation = observer.observe_window(some_windows(bundle.problem.topology)[0])
    times = []
    for _ in range(2000):
        began_s = time.perf_counter()
        policy.act(observation)
        times.append(time.perf_counter() - began_s)
    value = float(np.median(times[200:])) * 1e3
    return at_most("inference alone, 3x3, median", value, 0.5, "ms", how="LearnedPolicy.act, one thread")


@contextmanager
def _served(context: BenchContext, name: str, flags: Sequence[str]) -> Iterator[str]:
    """A `deepsched serve` of its own, as a user starts it."""
    url, state = f"http://127.0.0.1:{(port := free_port('127.0.0.1'))}", context.work_dir / name.replace(" ", "-")
    command = [
        sys.executable, "-m", "rayjobs.serve", str(context.work_dir / "bundles" / "policy"), *flags,
        "--port", str(port), "--folder", str(state), "--steer-folder", str(context.work_dir / "steer"),
    ]  # fmt: skip
    with ManagedProcess(
        command, name=f"serve on {name}", log_path=context.work_dir / "serve.log", grace_s=40.0
    ) as process:
        process.wait_ready(lambda: responds(f"{url}/healthz"), START_TIMEOUT_S)
        yield url


def _wrk(url: str, body: Path | None, clients: int, duration_s: int) -> dict[str, float]:
    """p50, p99 in ms, rate and failures, after a short warm-up. Raises MissingToolError or DataError."""
    program = shutil.which("wrk")
    if program is None:
        raise MissingToolError("no wrk", where="bench serve", remedy="apt-get install -y wrk")
    command = [program, "-t1", f"-c{clients}", "--latency", "--timeout", "10s"]
    environment: dict[str, Any] = {}
    if body is not None:
        script = body.with_suffix(".lua")
        script.write_text(_WRK)
        command += ["-s", str(script)]
        environment = {"DEEPSCHED_BODY": str(body)}
    subprocess.run([*command, "-d1s", url], capture_output=True, check=False, env=environment, timeout=60)
    done = subprocess.run(
        [*command, f"-d{duration_s}s", url], capture_output=True, text=True, check=False, env=environment,
        timeout=duration_s + 60,
    )  # fmt: skip
    quantiles = {
        f"p{percent}_ms": float(value) * _UNITS_MS[unit]
        for percent, value, unit in re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)", done.stdout, re.MULTILINE)
    }
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if rate is None or len(quantiles) != 2:
        raise DataError("wrk said nothing", where=url, remedy="try again", evidence=done.stdout[-200:] + done.stderr)
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    return {**quantiles, "rate_rps": float(rate.group(1)), "failed": float(failed.group(1)) if failed else 0.0}
