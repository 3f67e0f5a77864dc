"""How quick the served policy is: inference alone, over HTTP on uvicorn and on Ray Serve, a trivial Serve beside it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from actuators.errors import DataError, MissingToolError
from actuators.topology import social_network
from rayjobs.bench import Bar, BenchContext, at_least, at_most, figure
from rayjobs.serve import ServeOptions, make_settings, serving

_WRK = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open(os.getenv("DEEPSCHED_BODY"), "rb")
wrk.body = file:read("*a")
"""
_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
LARGE_SERVERS = 300


def measure(context: BenchContext) -> list[Bar]:
    """Bars of a served policy; everything on this machine, the client too."""
    from rayjobs.serve_bench_parts import make_bundle, vts_documents

    bundle = make_bundle(context.work_dir / "bundles" / "policy", context.seed)
    small, large = context.work_dir / "small.json", context.work_dir / "large.json"
    windows = vts_documents(social_network(), context.seed)
    small.write_text(json.dumps({"documents": windows}))
    many = social_network(tuple(f"10.0.{i // 250}.{i % 250 + 1}:80" for i in range(LARGE_SERVERS)))
    large.write_text(json.dumps({"documents": vts_documents(many, context.seed)}))
    context.log(f"bodies of {small.stat().st_size} and {large.stat().st_size} bytes")
    bars = [_inference(bundle)]
    duration_s = 4 if context.quick else 15
    references: dict[str, tuple[float, float, float]] = {}
    for front in ("uvicorn", "ray"):
        with _served(context, front) as url:
            one = _wrk(f"{url}/v1/weights", small, 1, duration_s)
            sixteen = _wrk(f"{url}/v1/weights", small, 16, duration_s)
            big = _wrk(f"{url}/v1/weights", large, 1, duration_s)
            references[front] = (one["p50_ms"], one["p99_ms"], sixteen["rate_rps"])
            context.log(f"{front}: {one} {sixteen} {big}")
            if front == "ray":
                trivial = _wrk(f"{url}/healthz", None, 1, duration_s), _wrk(f"{url}/healthz", None, 16, duration_s)
                bars += _bars(one, sixteen, big, trivial, references["uvicorn"])
    return bars


def _bars(
    one: dict[str, float],
    sixteen: dict[str, float],
    big: dict[str, float],
    trivial: tuple[dict[str, float], dict[str, float]],
    uvicorn: tuple[float, float, float],
) -> list[Bar]:
    beside = f"uvicorn {uvicorn[0]:.1f}, trivial {trivial[0]['p50_ms']:.1f}"
    tail = f"uvicorn {uvicorn[1]:.1f}, trivial {trivial[0]['p99_ms']:.1f}"
    rates = f"uvicorn {uvicorn[2]:.0f}, trivial {trivial[1]['rate_rps']:.0f}"
    how = "wrk against Ray Serve with HAProxy, one replica, two vts documents of 3 servers in 3 groups"
    return [
        at_most("POST /v1/weights 3x3, 1 client, p50", one["p50_ms"], 10, "ms", how=how, reference=beside),
        at_most("POST /v1/weights 3x3, 1 client, p99", one["p99_ms"], 30, "ms", how=how, reference=tail),
        at_least("POST /v1/weights 3x3, 16 clients", sixteen["rate_rps"], 150, "req/s", how=how, reference=rates),
        at_most("300 servers x 3 groups, 1 client, p99", big["p99_ms"], 80, "ms",
                how="the same with two documents of 300 servers"),
        figure("failed answers", one["failed"] + sixteen["failed"] + big["failed"], "", how="wrk: no 2xx or 3xx"),
    ]  # fmt: skip


def _inference(folder: Path) -> Bar:
    """Observation to weights, in this process."""
    from rayjobs.serve_bench_parts import some_windows
    from tuning.bundle import load_bundle

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
def _served(context: BenchContext, front: str) -> Iterator[str]:
    options = ServeOptions.model_validate(
        {"bundle": context.work_dir / "bundles" / "policy", "port": 0, "front": front,
         "folder": context.work_dir / f"state-{front}", "steer_folder": context.work_dir / "steer"}
    )  # fmt: skip
    with serving(options, make_settings(options)) as address:
        yield f"http://{address}"


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
