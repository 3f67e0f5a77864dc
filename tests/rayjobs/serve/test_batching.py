"""Requests that are decided together are answered as each is by itself, and a bad one among them spoils no other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from actuators.errors import DeepSchedError, StatusError
from rayjobs.serve.answers import advise, advise_each, read_body
from rayjobs.serve.bundles import LoadedBundle
from tests.support.problems import problem
from tests.support.serve_requests import GUARDS, bodies, same
from tests.support.steering_cases import times_bundle, trained_bundle
from tests.support.vts_documents import document
from tests.support.windows import window
from tuning.options import ModelOptions
from tuning.policy import learned as policy
from tuning.policy.bundle import Bundle
from tuning.policy.model import net_for
from tuning.steering import window_json


def alone(bundle: LoadedBundle, body: bytes) -> dict[str, Any] | str:
    try:
        return advise(bundle, read_body(body), GUARDS)
    except (DeepSchedError, ValidationError) as error:
        return str(error)


@pytest.fixture(scope="module", params=["weights", "frames", "service times"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedBundle:
    folder = tmp_path_factory.mktemp("bundle")
    made = {"weights": trained_bundle, "frames": framed_bundle, "service times": times_bundle}[request.param]()
    made.save(folder / "own")
    return LoadedBundle(folder / "own")


def framed_bundle() -> Bundle:
    framed = replace(problem(), options=problem().options.model_copy(update={"frames": 2}))
    net = net_for(framed, ModelOptions(hidden=16))
    net.action[-1].weight.data.normal_(0, 0.5)
    return Bundle(net, framed, ModelOptions(hidden=16), {})


def test_answers_together_equal_those_one_by_one(bundle: LoadedBundle) -> None:
    asked = bodies()
    together = advise_each(bundle, asked, GUARDS)
    assert len(together) == len(asked)
    for found, body in zip(together, asked, strict=True):
        wanted = alone(bundle, body)
        assert same(found if isinstance(found, dict) else str(found), wanted), (found, wanted)


def test_memory_goes_on_in_a_batch(bundle: LoadedBundle) -> None:
    first = [body for body in bodies() if isinstance(alone(bundle, body), dict)][:4]
    again = []
    for body in first:
        asked, answer = json.loads(body), alone(bundle, body)
        assert isinstance(answer, dict)
        again.append(json.dumps({**asked, "memory": answer["memory"]}).encode())
    for found, body in zip(advise_each(bundle, again, GUARDS), again, strict=True):
        assert same(found, alone(bundle, body))


def test_the_network_is_called_once_for_all_that_ask_about_the_same_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_bundle().save(tmp_path / "own")
    bundle, rows = LoadedBundle(tmp_path / "own"), []
    act = policy.LearnedPolicy.action
    monkeypatch.setattr(
        policy.LearnedPolicy, "action", lambda self, given: rows.append(given.shape) or act(self, given)
    )
    advise_each(bundle, bodies(), GUARDS)
    # Seven of three servers and the one that nothing like was observed; four of five servers.
    assert sorted(shape[:2] for shape in rows) == [(4, 5), (8, 3)]


def test_nonsense_in_a_batch_is_refused_by_itself(tmp_path: Path) -> None:
    trained_bundle().save(tmp_path / "own")
    bundle, good = LoadedBundle(tmp_path / "own"), bodies()[0]
    other = {"windows": [{**window_json.to_json(window()), "groups": ["a", "b", "c"]}]}
    odd = [b"{", b"null", b'{"windows": []}', json.dumps(other).encode()]
    found = advise_each(bundle, [good, *odd, good], GUARDS)
    assert [isinstance(one, dict) for one in found] == [True, False, False, False, False, True]
    assert [str(one) for one in found[1:-1]] == [alone(bundle, body) for body in odd]


def test_a_wrong_document_is_refused_by_the_name_of_group_and_server() -> None:
    documents = [document("before_load"), document("after_load")]
    documents[1]["upstreamZones"]["home_read_backend"][1]["requestCounter"] = 10**400
    server = documents[1]["upstreamZones"]["home_read_backend"][1]["server"]
    with pytest.raises(StatusError, match=f"above 2.*server {server} in group home_read_backend"):
        read_body(json.dumps({"documents": documents}).encode())
    for odd in (b'{"documents": [' + b"9" * 5000, b'{"documents": 1}', b'{"documents": [1, 2]}', b"\xff"):
        with pytest.raises(StatusError):
            read_body(odd)


def test_a_request_that_spoils_the_networks_output_costs_only_itself_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_bundle().save(tmp_path / "own")
    bundle, asked = LoadedBundle(tmp_path / "own"), bodies()[:4]
    array = type(bundle.own.bundle.problem).array
    poisoned: list[object] = []

    def poison(self: Any, observation: Any) -> Any:
        rows = array(self, observation)
        if not poisoned:
            poisoned.append(observation)
        return np.full_like(rows, np.nan) if observation is poisoned[0] else rows

    monkeypatch.setattr(type(bundle.own.bundle.problem), "array", poison)
    found = [one for one in advise_each(bundle, asked, GUARDS) if isinstance(one, dict)]
    assert [one["policy"] is None for one in found] == [True, False, False, False]
    assert "not finite" in found[0]["problem"]
