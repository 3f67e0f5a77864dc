"""What an operator needs of the served policy: logs for programs, metrics, and a restart that forgets nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actuators.errors import ConfigError
from actuators.http_client import responds
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from rayjobs.serve.__main__ import serving
from rayjobs.serve.options import ServeOptions, make_settings
from rayjobs.steer.folder import SteerFolder
from tests.support.served import Served, served_bundles
from tests.support.steering_cases import recorded, trained_bundle
from tests.support.windows import window
from tuning.steering import window_json

pytestmark = pytest.mark.thorough


@contextmanager
def process(folder: Path) -> Iterator[Served]:
    """`deepsched serve` as a user starts it; its stderr is `serve.log`."""
    port = free_port("127.0.0.1")
    command = [
        sys.executable, "-m", "rayjobs.serve", str(folder / "bundles" / "first"), "--front", "uvicorn",
        "--port", str(port), "--folder", str(folder / "state"), "--steer-folder", str(folder / "steer"),
    ]  # fmt: skip
    with ManagedProcess(command, name="serve", log_path=folder / "serve.log") as served:
        url = f"http://127.0.0.1:{port}"
        served.wait_ready(lambda: responds(f"{url}/healthz"), 90)
        yield Served(url, (folder / "state" / "token").read_text(), folder)


def test_logs_are_json_lines_and_another_start_serves_its_own_bundle(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("second", 1)):
        trained_bundle(seed=seed).save(tmp_path / "bundles" / name)
    with process(tmp_path) as served:
        assert served.post("/v1/bundles", {"rollback": True}, served.token).status_code == 422
        assert served.post("/v1/bundles", {"path": "second"}, "wrong").status_code == 401
        swapped = served.post("/v1/bundles", {"path": "second"}, served.token).json()
    lines = [json.loads(line) for line in (tmp_path / "serve.log").read_text().splitlines() if line.startswith("{")]
    events = {line["event"]: line for line in lines if "event" in line}
    assert (events["refused"]["level"], events["refused"]["status"]) == ("WARNING", 401)
    assert events["bundle"]["bundle"] == swapped["bundle"]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert "Traceback" not in (tmp_path / "serve.log").read_text()
    with process(tmp_path) as again:
        described = again.get("/v1/policy").json()
        assert described["folder"].endswith("first")
        assert described["previous"] is None


def test_two_starts_in_one_folder_have_one_token_and_the_second_is_refused(tmp_path: Path) -> None:
    trained_bundle().save(tmp_path / "bundle")
    options = ServeOptions(bundle=tmp_path / "bundle", front="uvicorn", port=0, folder=tmp_path / "state")
    with ThreadPoolExecutor(8) as pool:
        tokens = {settings.rules.tokens.admin for settings in pool.map(make_settings, [options] * 8)}
    assert tokens == {(tmp_path / "state" / "token").read_text()}
    settings = make_settings(options)
    refused = pytest.raises(ConfigError, match="another `deepsched serve` runs here")
    with serving(options, settings), refused, serving(options, settings):
        pass
    with serving(options, settings) as address:
        assert responds(f"http://{address}/healthz")


def test_prometheus_sees_answers_refusals_and_the_controllers_guards(tmp_path: Path) -> None:
    folder = SteerFolder(tmp_path / "steer")
    folder.make()
    recorded(folder.audit, 5)
    folder.write_status({"now_s": time.monotonic(), "guards": {"step": 3, "novel": 1}, "reason": "a test"})
    for served in served_bundles(tmp_path, "uvicorn"):
        body = {"windows": [window_json.to_json(window(5000.0))]}
        assert served.post("/v1/weights", body).status_code == 200
        assert served.post("/v1/weights", b"{").status_code == 422
        assert served.post("/v1/orders", {}).status_code == 401
        assert served.get("/v1/policy", headers={"Host": "evil.example"}).status_code == 421
        metrics = _metrics(served)
        assert metrics['deepsched_answers_total{decision="baseline"}'] == 1
        assert metrics["deepsched_novelty"] > 1
        assert metrics["deepsched_answer_seconds_count"] == 1
        assert {status: metrics[f'deepsched_refused_total{{status="{status}"}}'] for status in (401, 421, 422)} == {
            401: 1, 421: 1, 422: 1,
        }  # fmt: skip
        assert metrics["deepsched_controller_alive"] == 1
        assert metrics['deepsched_controller_guard{guard="step"}'] == 3
        assert metrics['deepsched_controller_guard{guard="floor"}'] == 0
        # The page shows the same counts.
        shown = {guard["name"]: guard["count"] for guard in served.get("/v1/live").json()["guards"]}
        assert (shown["step"], shown["novel"], shown["floor"]) == (3, 1, 0)


def test_pages_need_no_network_and_no_inline_code(tmp_path: Path) -> None:
    for served in served_bundles(tmp_path, "uvicorn"):
        for path in ("/", "/docs", "/page.js", "/charts.js", "/page.css", "/api.js"):
            answer = served.get(path)
            assert answer.status_code == 200
            assert "default-src 'self'" in answer.headers["content-security-policy"]
            for word in ("https://", "<style", "style=", "onclick", "<script>"):
                assert word not in answer.text, path


def _metrics(served: Served) -> dict[str, float]:
    lines = served.get("/metrics").text.splitlines()
    pairs: list[Any] = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}
