"""Where a virtual machine halts idle cores, the load engine asks that they stay awake, unless it is told not to."""

import contextlib
import os
import struct
from pathlib import Path

import pytest

from actuators.load.engine import LoadEngine, LoadOptions
from tests.support.http_server import OK, ScriptedServer
from tests.support.load_runs import TOPOLOGY, constant

REQUEST = Path("/dev/cpu_dma_latency")
DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
HALTS = DRIVER.exists() and DRIVER.read_text() == "haltpoll\n"


def held(pid: int) -> list[Path]:
    """Device files that a process holds open; one that it closes meanwhile is none."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(Path(os.readlink(entry)))
    return [link for link in found if link.is_relative_to("/dev")]


@pytest.mark.parametrize("idle_allowed", [False, True])
def test_it_asks_when_it_may_and_says_so(tmp_path: Path, idle_allowed: bool) -> None:
    may_ask = HALTS and os.access(REQUEST, os.W_OK)
    if not may_ask and not idle_allowed:
        pytest.skip("haltpoll does not halt cores here, or this user cannot keep them awake")
    allowed = may_ask and not idle_allowed
    with ScriptedServer(OK) as server, LoadEngine(LoadOptions(allow_cpu_idle=idle_allowed), tmp_path) as engine:
        engine.start(server.address, TOPOLOGY, constant(20), seed=1, duration_s=30.0)
        assert engine.cores_awake is allowed
        assert (REQUEST in held(engine.pid)) is allowed
        if allowed:
            assert struct.unpack("i", REQUEST.read_bytes()) == (0,)
