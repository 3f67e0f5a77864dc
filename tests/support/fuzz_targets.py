"""Coverage-guided fuzzing (atheris) of what comes from outside; `make fuzz` runs every target (`tests.support.fuzz`).

``python -m tests.support.fuzz_targets NAME CORPUS -max_total_time=600`` runs one of them.
An empty CORPUS folder is given seeds first: from random bytes hardly a JSON object or an upstream ever comes.
A crash, a hang, an error that is not of our family, or a wrong number ends the run.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

from tests.support.paths import VTS

with atheris.instrument_imports(include=["actuators", "envs", "tuning", "rayjobs", "yaml"]):
    from actuators.contract.topology import social_network
    from actuators.errors import DeepSchedError
    from actuators.external.config_editor import ServerEdit, edit_file
    from actuators.external.config_reader import read_config
    from actuators.statistics.names import server_names
    from actuators.statistics.recording import from_json, to_json
    from actuators.statistics.vts import Snapshot, parse, parse_json
    from actuators.statistics.windows import difference
    from tests.support.readers import READERS, attempt

TOPOLOGY = social_network(("127.0.0.1:18101", "127.0.0.1:18102", "127.0.0.1:18103"))
RECORDED = [json.loads(path.read_text()) for path in sorted(VTS.glob("*.json"))]
BASE = json.loads((VTS / "before_load.json").read_text())
DOCUMENTS = [
    (name, json.JSONDecoder().raw_decode(seed.decode())[0])
    for name in ("calibration", "evaluation", "blocks", "served", "body", "bundle-bundle.json")
    for seed in READERS[name].seeds()
]
_KEPT = tempfile.TemporaryDirectory(prefix="ds-fuzz-")
MAIN = Path(_KEPT.name) / "nginx.conf"


def vts(data: bytes) -> None:
    """Any bytes are a window without a wrong number, or an error of ours."""
    try:
        snapshot = parse_json(data)
    except DeepSchedError:
        return
    check(snapshot)


def fields(data: bytes) -> None:
    """A recorded document with a few of its values changed, removed or doubled."""
    provider = atheris.FuzzedDataProvider(data)
    document = copy.deepcopy(RECORDED[provider.ConsumeIntInRange(0, len(RECORDED) - 1)])
    for _ in range(provider.ConsumeIntInRange(1, 6)):
        spoil(document, provider)
    for read in (lambda: parse(document), lambda: parse_json(json.dumps(document).encode(errors="surrogatepass"))):
        try:
            snapshot = read()
        except DeepSchedError:
            continue
        check(snapshot)


def values(data: bytes) -> None:
    """A JSON file of another reader with a few of its values changed, removed or doubled."""
    provider = atheris.FuzzedDataProvider(data)
    name, document = copy.deepcopy(DOCUMENTS[provider.ConsumeIntInRange(0, len(DOCUMENTS) - 1)])
    for _ in range(provider.ConsumeIntInRange(1, 3)):
        spoil(document, provider)
    attempt(READERS[name], json.dumps(document).encode(errors="surrogatepass") + b"\n")


def spoil(document: dict[str, Any], provider: Any) -> None:
    """Walks down to some value and replaces it, removes it, or puts it in a second place."""
    node: Any = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = keys[provider.ConsumeIntInRange(0, len(keys) - 1)]
        if isinstance(node[key], dict | list) and node[key] and provider.ConsumeIntInRange(0, 7):
            node = node[key]
            continue
        break
    deed = provider.ConsumeIntInRange(0, 3)
    if deed == 0:
        del node[key]
    elif deed == 1 and isinstance(node, list):
        node.append(copy.deepcopy(node[key]))
    else:
        node[key] = odd_value(provider)


def odd_value(provider: Any) -> Any:
    number = provider.ConsumeInt(9)
    text = provider.ConsumeUnicode(8)
    numbers = [number, -1, 0, 1, 0.5, 2**53, 2**64, 1e308, float("nan"), float("inf")]
    odd = [*numbers, True, None, "", text, [], {}, [number]]
    return odd[provider.ConsumeIntInRange(0, len(odd) - 1)]


def check(snapshot: Snapshot) -> None:
    try:
        again = from_json(json.loads(to_json(snapshot)))
        window = difference(parse(BASE), snapshot, TOPOLOGY)
    except DeepSchedError:
        return
    assert {g: list(s) for g, s in again.groups.items()} == {g: list(s) for g, s in snapshot.groups.items()}
    # NGINX and its statistics may write a name in different ways.
    shown = server_names(TOPOLOGY, snapshot).renamed(snapshot)
    assert (window.requests >= 0).all()
    assert (window.latency_histogram >= 0).all()
    assert (window.response_ms_sum >= 0).all()
    for g, group in enumerate(TOPOLOGY.groups):
        for s, server in enumerate(TOPOLOGY.servers):
            if window.requests[g, s]:
                assert window.requests[g, s] == shown.groups[group.name][server].totals()[0]


def config(data: bytes) -> None:
    """Any bytes are edited exactly as asked, every other server left alone, or refused with an error of ours."""
    weight, down, which = data[0] % 100 + 1 if data else 1, bool(data) and data[0] > 127, len(data)
    # Includes would read files of this machine.
    text = data[1:].replace(b"include", b"exclude")
    MAIN.write_bytes(text)
    try:
        lines = read_config(MAIN).servers
        if not lines:
            return
        wanted = [(line.group, line.server, line.weight, line.down) for line in lines]
        index = which % len(lines)
        new = edit_file(text, [ServerEdit(lines[index], weight, down)])
    except DeepSchedError:
        return
    MAIN.write_bytes(new)
    wanted[index] = (*wanted[index][:2], weight, down)
    after = [(line.group, line.server, line.weight, line.down) for line in read_config(MAIN).servers]
    assert after == wanted, (new, wanted, after)
    # Without the words that may change, the bytes are the same.
    assert bare(new) == bare(text), (new, text)


CONFIGS = (
    b"""A# one
http {
  upstream compose_backend {
    zone compose_backend 64k;
    server 127.0.0.1:18101 weight=5 max_fails=1; # fast
    server 127.0.0.1:18102;
    server "127.0.0.1:18103" weight=2 down;
    keepalive 64;
  }
  upstream u { server unix:/tmp/x.sock weight=3; server [::1]:80 backup; server
   127.0.0.1:81
   weight=7 ; }
  server { listen 80; location / { proxy_pass http://u; content_by_lua_block { ngx.say("server a weight=1;") } } }
}
""",
    b"\xc8upstream g { server a weight=1; server b; }\n",
    b"qhttp { upstream 'g h' { server 'a;b' weight=1 # x }\n; server \"c weight=2 down; } }",
)
"""Upstreams as people write them, and as nobody should; the first byte says what is changed."""


def seeds(target: str) -> list[bytes]:
    """What a corpus begins with."""
    if target == "config":
        return list(CONFIGS)
    if target == "values":
        return [bytes(range(64)) * 4]
    return READERS["vts" if target in CHECKED else target].seeds()


def plant(target: str, arguments: list[str]) -> None:
    """Seeds the first corpus folder that is named, unless it holds something."""
    folders = [Path(argument) for argument in arguments if not argument.startswith("-")]
    if folders and not any(folders[0].iterdir()):
        for number, seed in enumerate(seeds(target)):
            (folders[0] / f"seed-{number}").write_bytes(seed)


def bare(text: bytes) -> bytes:
    return re.sub(rb"\s*(\bdown\b|\bweight=\d+)", b"", text)


CHECKED = {"vts": vts, "fields": fields, "config": config, "values": values}
"""Targets that make of the bytes what is read, or check what was read."""


def main() -> None:
    name = sys.argv.pop(1)
    plant(name, sys.argv[1:])
    target = CHECKED[name] if name in CHECKED else lambda data: attempt(READERS[name], data)
    atheris.Setup(sys.argv, lambda data: target(data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
