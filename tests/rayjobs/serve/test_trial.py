"""A swap that fails later is taken back by itself; who can make that happen, and who cannot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from actuators.errors import BundleError, DeepSchedError
from envs.simulator.testbed import SimulatedTestbed
from rayjobs.serve import bundles, trial
from rayjobs.serve.answers import Answers
from rayjobs.serve.bundles import BundleStore
from tests.support.problems import TOPOLOGY, demo_scenario
from tests.support.serve_requests import GUARDS
from tests.support.served import Served, served_bundles
from tests.support.steering_cases import of_other_groups, times_bundle, trained_bundle
from tests.support.windows import window
from tuning.steering import window_json

WINDOW = window_json.to_json(window())
BODY = json.dumps({"windows": [WINDOW]}).encode()
THEIRS = json.dumps({"windows": [{**WINDOW, "groups": [f"new_{name}" for name in WINDOW["groups"]]}]}).encode()
"""What the bundle of other groups decides."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial")
    for name, seed in (("first", 0), ("second", 1), ("third", 2)):
        trained_bundle(seed=seed).save(folder / name)
    of_other_groups().save(folder / "other")
    for name in ("idle", "ratio"):
        times_bundle(name).save(folder / name)
    return folder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by which failures count, in seconds; tests move it."""
    now = [100.0]
    monkeypatch.setattr("rayjobs.serve.trial.time.monotonic", lambda: now[0])
    return now


class Replica:
    """One replica, asked in this process."""

    def __init__(self, root: Path, state: Path) -> None:
        self.store = BundleStore((root / "first").resolve(), root.resolve(), state)
        self.answers = Answers(self.store, GUARDS)

    @property
    def name(self) -> str:
        return self.store.in_use().bundle.folder.name

    @property
    def id(self) -> str:
        return self.store.in_use().bundle.id

    def ask(self, body: bytes = BODY) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(asyncio.run(self.answers.answer(body)))
        return found

    def ask_each(self, *some: bytes) -> list[Any]:
        found = asyncio.run(self.answers.answer_each(some))
        return [json.loads(one) if isinstance(one, bytes) else one for one in found]

    def swap_in_and_spoil(self, name: str, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], Any]) -> None:
        """Swaps in a bundle whose network fails from now on."""
        self.store.swap(Path(name))
        monkeypatch.setattr(self.store.in_use().bundle.own.bundle.net, "outputs", spoil)


def not_finite(rows: Any) -> Any:
    return np.full((*rows.shape[:-1], 3), np.nan, np.float32)


def raises(rows: Any) -> Any:
    raise LookupError("a layer is missing")


def asserts(rows: Any) -> Any:
    """What no caller of a policy expects."""
    raise AssertionError("not yet")


@pytest.fixture
def replica(root: Path, tmp_path: Path) -> Replica:
    return Replica(root, tmp_path)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [(not_finite, "output is not finite"), (raises, "LookupError: a layer is missing"),
     (asserts, "AssertionError: not yet")],
)  # fmt: skip
def test_the_bundle_before_answers_for_one_that_fails_and_takes_its_place(
    replica: Replica, clock: list[float], monkeypatch: pytest.MonkeyPatch, spoil: Any, why: str
) -> None:
    first, good = replica.id, replica.ask()
    replica.swap_in_and_spoil("second", monkeypatch, spoil)
    for _ in range(trial.FAILURES + 2):
        assert replica.ask() == good
        assert replica.name == "second", "it has not failed for long"
    clock[0] += trial.FAILING_S
    assert replica.ask() == good
    assert (replica.name, replica.id) == ("first", first)
    served = replica.store.in_use().served
    assert served.taken_back is not None
    assert served.taken_back.folder.name == "second"
    assert why in served.taken_back.why
    assert (served.previous, served.times_taken_back) == (None, 1)
    assert replica.ask() == good


@pytest.mark.parametrize(
    ("name", "why"),
    [("other", "no servers of group 'new_compose_backend'"), ("idle", "no samples of service times")],
)
def test_a_bundle_that_refuses_what_the_one_before_decides_is_taken_back(
    replica: Replica, clock: list[float], name: str, why: str
) -> None:
    """One for an NGINX with other upstreams, or for one that balances in memory."""
    good = replica.ask()
    replica.store.swap(Path(name))
    for _ in range(trial.FAILURES):
        assert replica.ask() == good
        clock[0] += trial.FAILING_S
    assert replica.name == "first"
    taken = replica.store.in_use().served.taken_back
    assert taken is not None
    assert why in taken.why


def test_one_decision_between_failures_keeps_it(replica: Replica, clock: list[float]) -> None:
    replica.store.swap(Path("other"))
    for _ in range(3 * trial.FAILURES):
        replica.ask()
        clock[0] += trial.FAILING_S
        assert replica.ask(THEIRS)["bundle"] == replica.id
    assert replica.name == "other"


@pytest.mark.parametrize("body", [b"{", b"null", BODY.replace(b"_backend", b"")])
def test_a_request_that_both_bundles_refuse_counts_for_nothing(
    replica: Replica, clock: list[float], body: bytes
) -> None:
    replica.store.swap(Path("second"))
    for _ in range(2 * trial.FAILURES):
        clock[0] += trial.FAILING_S
        with pytest.raises((DeepSchedError, ValidationError)):
            replica.ask(body)
    assert replica.name == "second"


def test_what_no_swap_brought_is_not_taken_back(
    replica: Replica, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle of the start, one that an operator rolled back to, and one whose trial is over."""

    def fail() -> list[bool]:
        failed = []
        for _ in range(2 * trial.FAILURES):
            clock[0] += trial.FAILING_S
            failed.append("not finite" in replica.ask()["problem"])
        return failed

    monkeypatch.setattr(replica.store.in_use().bundle.own.bundle.net, "outputs", not_finite)
    assert all(fail())
    replica.store.swap(Path("second"))
    replica.store.rollback()
    monkeypatch.setattr(replica.store.in_use().bundle.own.bundle.net, "outputs", not_finite)
    assert all(fail())
    assert replica.name == "first"
    replica.store.rollback()
    replica.store.swap(Path("third"))
    monkeypatch.setattr(replica.store.in_use().bundle.own.bundle.net, "outputs", not_finite)
    monkeypatch.setattr(bundles, "TRIAL_S", 0.0)
    assert all(fail())
    assert replica.name == "third"


def test_in_a_batch_only_those_that_fail_are_answered_by_the_bundle_before(
    replica: Replica, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replica.id
    replica.store.swap(Path("other"))
    other = replica.id
    found = replica.ask_each(BODY, THEIRS, b"{", BODY)
    assert [one["bundle"] if isinstance(one, dict) else type(one) for one in found[:2] + found[3:]] == [
        first, other, first,
    ]  # fmt: skip
    assert isinstance(found[2], DeepSchedError)
    replica.store.rollback()
    replica.swap_in_and_spoil("second", monkeypatch, asserts)
    assert [one["bundle"] for one in replica.ask_each(BODY, BODY)] == [first, first]
    replica.swap_in_and_spoil("third", monkeypatch, asserts)
    # Both fail: as without a trial.
    with pytest.raises(AssertionError):
        replica.ask_each(BODY, BODY)


def test_memory_of_another_estimator_is_no_failure(root: Path, tmp_path: Path, clock: list[float]) -> None:
    """Clients send the memory of the last answer, which the bundle before the swap gave."""
    store = BundleStore((root / "idle").resolve(), root.resolve(), tmp_path)
    answers, memory = Answers(store, GUARDS), None
    with SimulatedTestbed(TOPOLOGY, "expected_delay") as testbed:
        testbed.reset(demo_scenario(), 1)
        for name in ("idle", "ratio", "first", "idle"):
            store.swap(Path(name))
            for _ in range(trial.FAILURES):
                clock[0] += trial.FAILING_S
                body = {"windows": [window_json.to_json(testbed.advance(1.0))], "memory": memory}
                answer = json.loads(asyncio.run(answers.answer(json.dumps(body).encode())))
                memory = answer["memory"]
                assert (answer["bundle"], answer["problem"]) == (store.in_use().bundle.id, "")
            assert store.in_use().bundle.folder.name == name


def test_of_several_replicas_one_takes_it_back_and_all_follow(root: Path, tmp_path: Path, clock: list[float]) -> None:
    one, other = Replica(root, tmp_path), Replica(root, tmp_path)
    one.store.swap(Path("other"))
    for _ in range(trial.FAILURES - 1):
        one.ask()
        other.ask()
    clock[0] += trial.FAILING_S
    one.ask()
    # The other has counted as many failures of the same swap.
    assert other.ask()["bundle"] == one.id
    assert other.store.in_use().served.times_taken_back == 1
    assert {one.name, other.name, Replica(root, tmp_path).name} == {"first"}


def test_a_swap_meanwhile_is_not_undone(root: Path, tmp_path: Path) -> None:
    one, other = Replica(root, tmp_path), Replica(root, tmp_path)
    one.store.swap(Path("other"))
    failing = one.store.in_use()
    other.store.swap(Path("third"))
    one.store.take_back(failing, "it failed")
    assert {one.name, other.name} == {"third"}
    assert one.store.in_use().served.taken_back is None


def test_the_next_swap_ends_the_notice_and_the_count_stays(replica: Replica) -> None:
    for count in (1, 2):
        replica.store.swap(Path("other"))
        replica.store.take_back(replica.store.in_use(), "it failed")
        served = replica.store.in_use().served
        assert (served.taken_back is not None, served.times_taken_back) == (True, count)
    replica.store.swap(Path("second"))
    served = replica.store.in_use().served
    assert (served.taken_back, served.times_taken_back) == (None, 2)


def test_a_replica_that_cannot_load_what_was_swapped_in_takes_it_back(root: Path, tmp_path: Path) -> None:
    trained_bundle(seed=3).save(root / "damaged")
    one, following = Replica(root, tmp_path), Replica(root, tmp_path)
    one.store.swap(Path("damaged"))
    (root / "damaged" / "encoder.npz").write_bytes(b"torn")
    assert following.ask()["bundle"] == following.id
    assert {following.name, one.name, Replica(root, tmp_path).name} == {"first"}
    taken = one.store.in_use().served.taken_back
    assert taken is not None
    assert "not plain arrays" in taken.why


def test_a_bundle_that_an_operator_went_back_to_keeps_its_place_though_a_replica_cannot_load_it(
    root: Path, tmp_path: Path
) -> None:
    trained_bundle(seed=4).save(root / "chosen")
    one = Replica(root, tmp_path)
    for name in ("chosen", "second"):
        one.store.swap(Path(name))
    one.store.rollback()
    good = (root / "chosen" / "encoder.npz").read_bytes()
    (root / "chosen" / "encoder.npz").write_bytes(b"torn")
    with pytest.raises(BundleError, match="not plain arrays"):
        Replica(root, tmp_path)
    assert one.ask()["bundle"] == one.id
    assert one.name == "chosen"
    (root / "chosen" / "encoder.npz").write_bytes(good)
    assert Replica(root, tmp_path).name == "chosen"


def test_a_disk_that_is_full_delays_it(
    replica: Replica, clock: list[float], monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    good = replica.ask()
    replica.store.swap(Path("other"))

    def full(*given: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("actuators.store.os.fsync", full)
        for _ in range(2 * trial.FAILURES):
            clock[0] += trial.FAILING_S
            assert replica.ask() == good
        assert replica.name == "other"
    for _ in range(trial.FAILURES):
        clock[0] += trial.FAILING_S
        assert replica.ask() == good
    assert replica.name == "first"


def test_health_metrics_and_description_say_what_was_taken_back_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "FAILING_S", 0.0)
    of_other_groups().save(tmp_path / "bundles" / "other")
    for served in served_bundles(tmp_path, "uvicorn"):
        before = served.get("/healthz").json()
        assert before["taken_back"] is None
        swapped = served.post("/v1/bundles", {"path": "other"}, served.token).json()
        assert swapped["taken_back"] is None
        for _ in range(trial.FAILURES):
            answer = served.post("/v1/weights", BODY)
            assert (answer.status_code, answer.json()["bundle"]) == (200, before["bundle"])
        said = served.get("/healthz").json()
        assert (said["status"], said["bundle"]) == ("ok", before["bundle"])
        taken = said["taken_back"]
        assert taken["folder"] == "other"
        assert "no servers of group 'new_compose_backend'" in taken["why"]
        assert taken["at"].endswith("+00:00")
        assert served.get("/v1/policy").json()["taken_back"] == taken
        assert "deepsched_bundles_taken_back 1.0" in served.get("/metrics").text
        nothing = served.post("/v1/bundles", {"rollback": True}, served.token)
        assert (nothing.status_code, "no previous bundle" in nothing.text) == (422, True)
        _swap_again(served)


def _swap_again(served: Served) -> None:
    assert served.post("/v1/bundles", {"path": "second"}, served.token).status_code == 200
    assert served.get("/healthz").json()["taken_back"] is None
