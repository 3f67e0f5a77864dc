"""Ctrl-C at a terminal, which every process of its group gets: status 130 within seconds, and nothing left.

`sweep` has its own cases in test_sweep.py, `demo` in test_demo.py.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from actuators.http_client import responds
from actuators.processes.system import free_port
from tests.support.started import Started
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import PATIENCE_S

pytestmark = [pytest.mark.ray, pytest.mark.nginx, pytest.mark.slow]
WITHIN_S = 10.0


def interrupt(verb: Started) -> None:
    """Presses Ctrl-C and checks how the verb ends."""
    began_s = time.monotonic()
    os.killpg(verb.process.pid, signal.SIGINT)
    status = verb.process.wait(PATIENCE_S)
    took_s = time.monotonic() - began_s
    said = verb.log.read_text()
    assert status == 130, said
    assert took_s < WITHIN_S, said
    assert verb.left() == {}, said
    assert "Traceback" not in said


@pytest.mark.parametrize("stage", ["start", "observe", "train", "train live", "judge"])
def test_a_training_on_several_testbeds(stage: str, tmp_path: Path) -> None:
    train = Started(tmp_path / "runs", "train", "--config", "train-live-quick", "--out", str(tmp_path / "runs"))
    train.wait_until(f"{stage}: started", 4 * PATIENCE_S)
    interrupt(train)
    # Live training begins anew each time.
    assert f"kept in {train.folder}: " in train.log.read_text()


@pytest.mark.parametrize("ready", [False, True], ids=["while it starts", "while it serves"])
def test_serve_on_ray(ready: bool, tmp_path: Path) -> None:
    trained_bundle().save(tmp_path / "bundle")
    port = free_port("127.0.0.1")
    given = (str(tmp_path / "bundle"), "--port", str(port), "--folder", str(tmp_path / "state"))
    serve = Started(tmp_path / "out", "serve", *given, "--steer-folder", str(tmp_path / "steer"))
    if ready:
        serve.wait_for(lambda: responds(f"http://127.0.0.1:{port}/healthz"), "not ready", 3 * PATIENCE_S)
    else:
        serve.wait_for(lambda: bool(serve.children("gcs_server")), "no Ray")
    interrupt(serve)
