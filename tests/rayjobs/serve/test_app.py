"""The served policy: answers as the bundle in process does, swaps, keeps strangers out, refuses nonsense politely."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml

from actuators.contract.window import Fault
from actuators.errors import BundleError
from envs.simulator.testbed import SimulatedTestbed
from rayjobs.cli.main import main
from rayjobs.steer.advisers import ServeAdviser, http_post
from tests.support.paths import VTS
from tests.support.problems import TOPOLOGY, demo_scenario
from tests.support.served import Served, served_bundles
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import PATIENCE_S
from tests.support.windows import window
from tuning.policy.adviser import Adviser, Recent
from tuning.policy.bundle import check_bundle, load_bundle
from tuning.steering import window_json


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    yield from served_bundles(folder, "uvicorn")


def test_it_answers_as_the_bundle_does(served: Served) -> None:
    own = Adviser(load_bundle(served.folder / "bundles" / "first"))
    asked = ServeAdviser(http_post(served.url, "", 20.0), own, TOPOLOGY, 20.0)
    here, there = Recent(1), Recent(1)
    with SimulatedTestbed(TOPOLOGY) as testbed:
        testbed.reset(demo_scenario(), 1)
        for _ in range(10):
            seen = testbed.advance(1.0)
            ours, theirs = here.ask(own, seen), there.ask(asked, seen)
            assert theirs.by == "serve", asked.problem
            assert theirs.policy == ours.policy
            assert theirs.baseline == ours.baseline
            assert np.array_equal(theirs.state.novelty, ours.state.novelty)
            assert theirs.memory.fast_s == pytest.approx(ours.memory.fast_s)
    asked.close()


def test_the_own_copy_answers_when_serve_does_not() -> None:
    own = Adviser(trained_bundle())
    dead = ServeAdviser(http_post("http://127.0.0.1:9", "", 1.0), own, TOPOLOGY, 1.0)
    given = dead.advise([window()])
    assert given.by.startswith("local bundle (serve: NoResponseError: Connection refused")
    assert given.policy == own.advise([window()]).policy

    released = threading.Event()

    def slow(body: dict[str, Any]) -> dict[str, Any]:
        assert released.wait(PATIENCE_S)
        return {}

    late = ServeAdviser(slow, own, TOPOLOGY, 0.05)
    # Nothing lets `slow` answer meanwhile: who waited for it would fail above.
    assert "no answer within 50 ms" in late.advise([window()]).by
    assert "no answer within 50 ms" in late.advise([window()]).by
    released.set()
    assert late.fallbacks == 2
    odd = ServeAdviser(lambda body: {"decision": "policy"}, own, TOPOLOGY, 1.0)
    assert "KeyError" in odd.advise([window()]).by
    for adviser in (dead, late, odd):
        adviser.close()


def test_decisions_and_their_reasons(served: Served) -> None:
    def decided(seen: Any) -> tuple[str, str]:
        answer = served.post("/v1/weights", {"windows": [window_json.to_json(seen)]}).json()
        return answer["decision"], answer["reason"]

    assert decided(window(requests=0)) == ("hold", "too little traffic: fewer than 10 requests in every group")
    assert decided(window(faults=(Fault("gap", "no answer"),))) == ("hold", "statistics unusable (gap)")
    assert decided(window(5000.0)) == ("baseline", "traffic unlike any observed")


def test_vts_documents_give_named_weights(served: Served) -> None:
    documents = [json.loads((VTS / f"{name}.json").read_text()) for name in ("before_load", "after_load")]
    answer = served.post("/v1/weights", {"documents": documents})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body["weights"]) == {"compose_backend", "home_read_backend", "user_read_backend"}
    assert all(1 <= weight <= 100 for group in body["weights"].values() for weight in group.values())
    assert body["servers"] == [s["server"] for s in documents[1]["upstreamZones"]["compose_backend"][:3]]


def test_bundles_are_swapped_and_rolled_back(served: Served) -> None:
    before = served.get("/v1/policy").json()
    assert before["provenance"]["command"] == "a test"
    swapped = served.post("/v1/bundles", {"path": "second"}, served.token)
    assert swapped.status_code == 200, swapped.text
    assert swapped.json()["bundle"] != before["bundle"]
    assert swapped.json()["previous"].endswith("first")
    assert served.post("/v1/bundles", {"rollback": True}, served.token).json()["bundle"] == before["bundle"]


def test_bundles_are_swapped_under_concurrent_load(served: Served) -> None:
    """Four clients ask all the time: every request is answered, by the one bundle or by the other."""
    body = json.dumps({"windows": [window_json.to_json(window())]})
    over = threading.Event()

    def ask() -> list[tuple[int, str]]:
        found = []
        with requests.Session() as session:
            while not over.is_set():
                answer = session.post(served.url + "/v1/weights", data=body, timeout=PATIENCE_S)
                found.append((answer.status_code, answer.json().get("bundle", "")))
        return found

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask) for _ in range(4)]
        try:
            for index in range(6):
                change = {"rollback": True} if index % 2 else {"path": "second"}
                assert served.post("/v1/bundles", change, served.token).status_code == 200
        finally:
            over.set()
        answers = [answer for client in asking for answer in client.result(PATIENCE_S)]
    assert {status for status, _ in answers} == {200}
    assert len({bundle for _, bundle in answers}) == 2


def test_the_interface_is_described_without_a_network(served: Served) -> None:
    page, script = served.get("/docs"), served.get("/api.js")
    assert page.status_code == script.status_code == 200
    for text in (page.text, script.text):
        assert "http://" not in text
        assert "https://" not in text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "/v1/weights" in served.get("/openapi.json").json()["paths"]


def test_a_hostile_bundle_is_refused(served: Served, tmp_path: Path) -> None:
    def refusal(path: str) -> str:
        answer = served.post("/v1/bundles", {"path": path}, served.token)
        assert answer.status_code == 422
        return str(answer.json()["detail"])

    trained_bundle().save(tmp_path / "outside")
    assert "outside the folder of bundles" in refusal(str(tmp_path / "outside"))
    assert "outside" in refusal("../../../etc")
    bundles = served.folder / "bundles"
    (bundles / "link").symlink_to(tmp_path / "outside")
    assert "outside" in refusal("link")
    trained_bundle().save(bundles / "pickled")
    (bundles / "pickled" / "policy.safetensors").write_bytes(pickle.dumps({"a": 1}))
    assert "not safetensors" in refusal("pickled")
    trained_bundle().save(bundles / "more")
    (bundles / "more" / "extra.pkl").write_bytes(pickle.dumps(1))
    assert "does not belong there: extra.pkl" in refusal("more")
    trained_bundle().save(bundles / "objects")
    np.savez(bundles / "objects" / "encoder.npz", names=np.array([{}], dtype=object), allow_pickle=True)
    assert "not plain arrays" in refusal("objects")
    trained_bundle().save(bundles / "leads-out")
    (bundles / "leads-out" / "encoder.npz").unlink()
    (bundles / "leads-out" / "encoder.npz").symlink_to("/etc/passwd")
    assert "points outside" in refusal("leads-out")
    with pytest.raises(BundleError, match="outside"):
        check_bundle(bundles / "link", bundles)


@pytest.mark.parametrize("path", ["/v1/bundles", "/v1/orders"])
def test_changes_need_the_token(served: Served, path: str) -> None:
    for token in (None, "wrong", ""):
        assert served.post(path, {}, token).status_code == 401
    assert served.post(path, {"nonsense": 1}, served.token).status_code == 422


def test_strangers_names_and_large_bodies_are_refused(served: Served) -> None:
    assert served.get("/v1/policy", headers={"Host": "evil.example"}).status_code == 421
    assert served.post("/v1/weights", b"x" * (17 * 2**20)).status_code == 413

    def drip() -> Iterator[bytes]:
        for _ in range(17):
            yield b"x" * 2**20

    answer = requests.post(served.url + "/v1/weights", data=drip(), timeout=PATIENCE_S)
    assert answer.status_code == 413


def test_beyond_loopback_everything_needs_the_token(tmp_path: Path) -> None:
    for public in served_bundles(tmp_path, "uvicorn", "0.0.0.0"):
        for path in ("/v1/policy", "/v1/live", "/metrics", "/openapi.json", "/v1/live/events"):
            assert public.get(path).status_code == 401
        page = public.get("/")
        assert page.status_code == 200
        parts = re.findall(r'<(?:script|link)[^>]*(?:src|href)="(/[^"]*)"', page.text)
        assert len(parts) >= 4
        assert [path for path in parts if not public.get(path).ok] == []
        assert public.get("/v1/policy", public.token).status_code == 200
        assert public.post("/v1/weights", {}).status_code == 401


def test_metrics_and_health(served: Served) -> None:
    assert served.get("/healthz").json()["status"] == "ok"
    served.post("/v1/weights", {"windows": [window_json.to_json(window())]})
    text = served.get("/metrics").text
    assert "deepsched_answers_total{" in text
    assert f'bundle="{served.get("/healthz").json()["bundle"]}"' in text


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'"x"', b"[" * 100_000, b'{"windows": 1e999}', b"\xff\xfe", b'{"documents": [{}, {}]}',
     b'{"documents": [{"nowMsec": NaN}, null]}', b'{"windows": [], "documents": []}',
     b'{"memory": {"fast_s": [[-1]]}}'],
)  # fmt: skip
def test_nonsense_is_a_422_with_one_sentence(served: Served, body: bytes) -> None:
    answer = served.post("/v1/weights", body)
    assert answer.status_code == 422
    assert "Traceback" not in answer.text
    assert len(answer.json()["detail"]) < 1100


@pytest.mark.parametrize(
    ("phases", "examples"), [("fuzzing", 3), pytest.param("coverage,fuzzing", 100, marks=pytest.mark.slow)]
)
def test_hostile_requests_of_schemathesis_never_break_it(served: Served, phases: str, examples: int) -> None:
    program = Path(os.sys.executable).with_name("schemathesis")  # type: ignore[attr-defined]
    done = subprocess.run(
        [program, "run", f"{served.url}/openapi.json", "--checks", "not_a_server_error",
         "--phases", phases, "--max-examples", str(examples),
         "--exclude-path", "/v1/live/events", "-H", f"Authorization: Bearer {served.token}", "--seed", "1",
         "--request-timeout", "10", "--generation-database", "none", "--suppress-health-check", "all"],
        capture_output=True, text=True, timeout=20 * PATIENCE_S, check=False, cwd=served.folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-500:]


def test_the_yaml_for_serve_names_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained_bundle().save(tmp_path / "bundle")
    words = ["serve", str(tmp_path / "bundle"), "--folder", str(tmp_path / "state"), "--max-replicas", "3"]
    assert main([*words, "--batch-size", "16", "--batch-wait-ms", "5", "--print-config"]) == 0
    document = yaml.safe_load(capsys.readouterr().out)
    application = document["applications"][0]
    assert document["http_options"]["host"] == "127.0.0.1"
    assert document["proxy_location"] == "HeadOnly"
    assert application["deployments"][0]["autoscaling_config"] == {
        "min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 16.0,
    }  # fmt: skip
    assert "token" not in application["args"]["rules"]
    from ray.serve.schema import ServeDeploySchema

    from rayjobs.serve.ray_app import settings_of

    ServeDeploySchema.model_validate(document)

    settings = settings_of(application["args"])
    assert settings.bundle == tmp_path / "bundle"
    assert (settings.batching.size, settings.batching.wait_s) == (16, 0.005)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "option 'bundle' is missing"),
        (["{bundle}", "--replicas", "3", "--max-replicas", "2"], "a maximum of 2 replicas is below the minimum of 3"),
        (["{bundle}", "--batch-size", "100"], "a batch of 100 exceeds the 64 requests of a replica"),
        (["{bundle}", "--token-file", "/none"], "cannot read the token"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_bundle().save(tmp_path / "bundle")
    given = [word.format(bundle=tmp_path / "bundle") for word in words]
    assert main(["serve", *given, "--folder", str(tmp_path / "state")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
