"""Every reader of what people and programs give us, as a function of bytes, with the bytes that it is seeded with.

A reader returns, or raises an error of ours in one line. `tests.support.fuzz_targets` runs them under atheris, and
`tests/rayjobs/test_readers.py` with a few changes of every seed.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from actuators.errors import DeepSchedError
from actuators.load.plans import PlanOptions, make_streams
from actuators.statistics.prometheus import parse_text
from actuators.statistics.recording import read_snapshots, to_json
from actuators.statistics.vts import parse_json
from envs.scenarios.lookup import scenario, topology_of
from rayjobs import compare
from rayjobs.cli.config import load_options
from rayjobs.cli.main import load_verb
from rayjobs.serve.answers import read_body
from rayjobs.serve.bundles import BundleStore
from tests.support.paths import DATA, VTS
from tuning.judging.blocks import Journal
from tuning.policy.bundle import check_bundle, load_bundle
from tuning.policy.worth import describe_worth, noted_worth
from tuning.steering.audit import read_lines

_KEPT = tempfile.TemporaryDirectory(prefix="ds-readers-")
FOLDER = Path(_KEPT.name)


@dataclass(frozen=True)
class Reader:
    """A reader of bytes, and what it is seeded with."""

    read: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]


def attempt(reader: Reader, data: bytes) -> bool:
    """Whether the bytes are read; False when they are refused in one line. Raises whatever else happens."""
    try:
        reader.read(data)
    except ValidationError:
        # `serve` answers 422 with the fields.
        return False
    except DeepSchedError as error:
        line = str(error)
        line.encode()
        assert "\n" not in line, line
        assert len(line) < 2000, line
        return False
    return True


def _from_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    path = FOLDER / name
    path.parent.mkdir(exist_ok=True)

    def read_bytes(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return read_bytes


def _config(verb: str) -> Reader:
    options = load_verb(verb).options

    def seeds() -> list[bytes]:
        saved = DATA / "saved" / f"{verb}.yaml"
        return [*YAMLS, *([saved.read_bytes()] if saved.exists() else [])]

    def read(path: Path) -> object:
        # What is said about options of earlier versions is no finding.
        with contextlib.redirect_stderr(io.StringIO()):
            return load_options(options, file=path)

    return Reader(_from_file(f"{verb}.yaml", read), seeds)


YAMLS = (
    b"observe:\n  duration_s: .inf\n", b"observe: {encoder: {clusters: [0]}}\n", b"interval_s: {{ interval }}\n",
    b"x: &x {duration_s: 40.0}\nobserve:\n  <<: *x\n", b"seed: 1\nseed: 2\n", b"\xef\xbb\xbfseed: 7\r\n",
    b"a: &a [*a]\n", b"seed: 2026-01-01\n", b"out: [1, {2: 3}]\n",
)  # fmt: skip
SCENARIOS = (
    b"name: t\nload: 0.5\nspeeds: {compose: [1, 2], home_read: [1]}\ndisturbance: {kind: periodic}\n",
    b"name: t\nload: .inf\n", b"name: t\nload: 0.4\nload: 0.5\n", b"name: t\nload: 0.5\nduration_s: 1e400\n",
    b"name: t\nload: 0.6\nbehaviours: [{at_s: 1, server: 90000000}]\nload_steps: [[0, 1], [5, 2]]\n",
)  # fmt: skip
TRACES = (b"\xef\xbb\xbftime_s,compose\r\n0,10\r\n5,20\r\n", b"time_s;home_read\n0;1,5\n", b"time_s\tcompose\n0\tnan\n")


def _scenario(path: Path) -> object:
    from actuators.contract.topology import social_network

    return scenario(str(path)).script(social_network(), 1)


def _trace(path: Path) -> object:
    return make_streams(PlanOptions(plan="trace", trace=path))


def _vts_documents() -> list[bytes]:
    """A group of every recorded document."""
    short = []
    for path in sorted(VTS.glob("*.json")):
        document = json.loads(path.read_text())
        for name, entries in document["upstreamZones"].items():
            kept = [{key: value for key, value in entry.items() if not key.endswith("Msecs")} for entry in entries[:2]]
            short.append({**document, "serverZones": {}, "upstreamZones": {name: kept}})
    return [json.dumps(one, separators=(",", ":")).encode() for one in short]


def _recordings() -> list[bytes]:
    lines = [to_json(parse_json(document)) for document in _vts_documents()]
    return [b"\n".join(lines[:3]), b'{"gap": "not read"}\n' + lines[0], b""]


def _bodies() -> list[bytes]:
    return [
        b'{"documents":[' + b",".join(_vts_documents()[:2]) + b"]}",
        b'{"windows":[{}]}',
        b'{"documents":[{}]}',
        b'{"docu\\nments":[]}',
    ]


METRICS = b"""# TYPE nginx_vts_upstream_requests_total counter
nginx_vts_upstream_requests_total{upstream="app",backend="127.0.0.1:80",code="2xx"} 5
nginx_vts_upstream_bytes_total{upstream="app",backend="127.0.0.1:80",direction="in"} 1e400
nginx_vts_upstream_response_seconds_total{upstream="app",backend="127.0.0.1:80"} NaN
nginx_vts_info{hostname="a",module_version="v0.2.2",version="1.24"} 1
"""


RUNS = DATA / "runs"
"""What `calibrate` and `evaluate` left."""


def _run_file(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(RUNS / name).read_bytes()]


def _evaluations() -> list[bytes]:
    """Without what `compare` does not look at, most of the file."""
    content = json.loads((RUNS / "evaluation.json").read_bytes())
    for policy in content["policies"].values():
        del policy["latency"], policy["per_type"]
    short = {**content, "windows": [], "groups": [], "blocks": [{"policy": "least_conn", "core_wait_ms": 0.1}]}
    return [json.dumps(short).encode()]


def _calibration(path: Path) -> object:
    found = scenario(str(path))
    return found.script(topology_of([found]), 1)


def _evaluation(path: Path) -> object:
    """Its figures as `compare` shows them, and what a bundle beside it is worth."""
    described = describe_worth(noted_worth(path.parent / "bundle") or {})
    with contextlib.redirect_stdout(io.StringIO()):
        for markdown in (False, True):
            compare.run(compare.CompareOptions(runs=(path.parent, path.parent), markdown=markdown))
    return described


def _blocks(path: Path) -> object:
    return [block.to_json() for block in Journal(path).read()]


def _served(path: Path) -> object:
    path.with_name(".served.json.good").unlink(missing_ok=True)
    return BundleStore(GOOD_BUNDLE, GOOD_BUNDLE.parent, path.parent).in_use().bundle.id


def _pointers() -> list[bytes]:
    """As a start leaves one, a swap, and one that was taken back."""
    other, good = str(GOOD_BUNDLE.with_name("service_times")), str(GOOD_BUNDLE)
    begun = {"version": 1, "current": good, "given": good}
    swapped = {**begun, "version": 2, "current": other, "previous": good, "swapped_s": 1.8e9}
    taken = {"folder": other, "why": "it fails", "at": "2026-11-29T12:00:00+00:00"}
    return [json.dumps(one).encode() for one in (begun, swapped, {**begun, "taken_back": taken, "times_taken_back": 1})]


GOOD_BUNDLE = DATA / "witness" / "weights"


def _bundle(name: str) -> Reader:
    def read(data: bytes) -> Any:
        folder = FOLDER / f"bundle-{name}"
        if not folder.exists():
            shutil.copytree(GOOD_BUNDLE, folder)
        (folder / name).write_bytes(data)
        check_bundle(folder)
        return load_bundle(folder)

    return Reader(read, lambda: [(GOOD_BUNDLE / name).read_bytes()])


READERS: dict[str, Reader] = {
    **{f"options-{verb}": _config(verb) for verb in ("train", "observe", "evaluate", "sweep", "demo", "load")},
    "scenario": Reader(_from_file("scenario.yaml", _scenario), lambda: list(SCENARIOS)),
    "trace": Reader(_from_file("trace.csv", _trace), lambda: list(TRACES)),
    "recording": Reader(_from_file("snapshots.jsonl", read_snapshots), _recordings),
    "vts": Reader(parse_json, _vts_documents),
    "prometheus": Reader(lambda data: parse_text(data, 1), lambda: [METRICS]),
    "audit": Reader(
        _from_file("audit.jsonl", lambda path: list(read_lines(path))),
        lambda: [path.read_bytes()[:20_000] for path in sorted((DATA / "audit").glob("*.jsonl"))],
    ),
    "body": Reader(read_body, _bodies),
    "calibration": Reader(_from_file("calibration.json", _calibration), _run_file("calibration.json")),
    "evaluation": Reader(_from_file("run/evaluation.json", _evaluation), _evaluations),
    "blocks": Reader(_from_file("blocks.jsonl", _blocks), _run_file("blocks.jsonl")),
    "served": Reader(_from_file("served.json", _served), _pointers),
    **{f"bundle-{name}": _bundle(name) for name in ("bundle.json", "encoder.npz", "policy.safetensors")},
}
