"""The watch over the machine's cores: what it finds, and that it ends with its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil

from rayjobs.bench.parts.control_step import undisturbed
from rayjobs.bench.parts.stalls import StallWatch
from tests.support.orphans import wait_gone
from tests.support.waiting import wait_until


def test_a_stall_counts_for_all_that_overlaps_it() -> None:
    watch = StallWatch()
    watch.stalls = [(1.0, 1.01), (5.0, 5.02)]
    assert watch.stalled(0.9, 1.005)
    assert watch.stalled(5.01, 6.0)
    assert not watch.stalled(1.02, 4.9)
    spans = [((0.0, 0.5), (1.005, 1.2)), ((2.0, 2.1), (2.9, 3.0))]
    assert undisturbed(spans, watch).tolist() == [False, True]


def watchers() -> list[psutil.Process]:
    """The children of this process that watch a core."""
    return [child for child in psutil.Process().children() if "rayjobs.bench.parts.stalls" in child.cmdline()]


def test_it_sees_a_core_that_stands_still() -> None:
    with StallWatch() as watch:
        # A watcher that gets no time for a while is all that a stall is, for it.
        victim = watchers()[0]
        victim.suspend()
        wait_until(lambda: victim.status() == psutil.STATUS_STOPPED, "the watcher did not stop")
        began_s = time.monotonic()
        time.sleep(0.1)  # the stall
        victim.resume()
        ended_s = time.monotonic()
    assert watch.stalled(began_s, ended_s)
    assert any(end_s - start_s > 0.05 for start_s, end_s in watch.stalls)


def test_a_watcher_ends_with_its_parent() -> None:
    program = (
        "import os, psutil\nfrom rayjobs.bench.parts.stalls import StallWatch\n"
        "watch = StallWatch().__enter__()\nprint(*[w.pid for w in psutil.Process().children()], flush=True)\n"
        "os._exit(0)\n"
    )
    marker = f"DEEPSCHED_STALLS_{os.getpid()}"
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ, marker: "1"}
    )
    assert said.stdout.split()
    assert not wait_gone(marker)
