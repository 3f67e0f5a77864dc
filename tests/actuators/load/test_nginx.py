"""The load engine against a real NGINX that reloads and restarts under it."""

import signal
from pathlib import Path

import pytest

from actuators.contract.script import RateStep, Stream
from actuators.contract.topology import social_network
from actuators.load.engine import LoadEngine, LoadOptions
from actuators.load.summary import LoadSummary
from actuators.nginx.detect import detect
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port, is_listening
from tests.support.waiting import wait_until

pytestmark = pytest.mark.nginx

CONFIG = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log {folder}/access.log; keepalive_requests 50;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 "$http_x_request_sequence"; }} }}
}}
"""


def start_nginx(folder: Path) -> tuple[ManagedProcess, str]:
    port = free_port("127.0.0.1")
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port))
    command = [str(detect().binary), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    process = ManagedProcess(command, name="nginx", log_path=folder / "nginx.log")
    process.wait_ready(lambda: is_listening(f"127.0.0.1:{port}"))
    return process, f"127.0.0.1:{port}"


def test_reloads_lose_no_request(short_dir: Path) -> None:
    rates = [Stream(name, (RateStep(0.0, 300.0),)) for name in ("compose", "home_read")]
    nginx, address = start_nginx(short_dir)
    with nginx, LoadEngine(LoadOptions(), short_dir / "load") as engine:
        engine.start(address, social_network(), rates, seed=1, duration_s=3.0, window_s=0.25)
        windows = []
        while not engine.wait(0.5):
            nginx.send_signal(signal.SIGHUP)
            windows += engine.poll()
        summary = engine.finish(1.0)
        windows += engine.poll()
        served = (short_dir / "access.log").read_text().splitlines()
    assert summary.answered.tolist() == summary.planned.tolist()
    assert sum(int(counts.sum()) for counts in summary.errors.values()) == 0
    assert (sum(window.answered for window in windows) == summary.answered).all()
    # The log line of a request that found its connection closed does not exist: it was served once.
    assert len(served) == summary.answered.sum()


def test_a_killed_nginx_costs_counted_errors_only(short_dir: Path) -> None:
    nginx, address = start_nginx(short_dir)
    with LoadEngine(LoadOptions(timeout_s=1.0), short_dir / "load") as engine:
        with nginx:
            streams = [Stream("home_read", (RateStep(0, 300.0),))]
            engine.start(address, social_network(), streams, seed=1, duration_s=600.0, window_s=0.1)
            wait_until(lambda: any(window.answered.any() for window in engine.poll()))
        wait_until(lambda: any(window.errors["connect"].any() for window in engine.poll()))
        engine.stop()
        summary: LoadSummary = engine.finish(60.0)
    assert summary.answered[1] > 0
    assert summary.errors["connect"][1] > 0
    assert (summary.planned == summary.sent + summary.errors["connect"] + summary.errors["not_sent"]).all()
    assert summary.unaccounted.sum() == 0
