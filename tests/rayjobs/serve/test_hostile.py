"""Bodies of `POST /v1/weights` that nobody expects: a refusal that names the field, or an answer with a reason."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.errors import BundleError, DataError, StatusError
from rayjobs.bench.parts.serve import vts_documents
from rayjobs.serve.answers import Answers
from rayjobs.serve.bundles import BundleStore
from tests.support.steering_cases import trained_bundle
from tests.support.windows import TOPOLOGY, window
from tuning.policy.bundle import load_bundle
from tuning.steering import window_json
from tuning.steering.decide import NO_BUCKETS
from tuning.steering.options import GuardOptions

Document = dict[str, Any]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    root = tmp_path_factory.mktemp("hostile")
    trained_bundle().save(root / "bundle")
    return Answers(BundleStore(root / "bundle", root, root / "state"), GuardOptions(novel_above=1e9))


def answer(answers: Answers, body: Document) -> Document:
    found: Document = json.loads(asyncio.run(answers.answer(json.dumps(body).encode())))
    return found


def servers_of(document: Document) -> list[Document]:
    return [server for group in document["upstreamZones"].values() for server in group]


def without(*keys: str) -> Callable[[list[Document]], None]:
    def spoil(documents: list[Document]) -> None:
        for document in documents:
            for server in servers_of(document):
                for key in keys:
                    server.pop(key, None)

    return spoil


def other_buckets(documents: list[Document]) -> None:
    for server in servers_of(documents[1]):
        server["responseBuckets"] = {"msecs": [7, 70], "counters": [1, 2]}


def empty_buckets(documents: list[Document]) -> None:
    for document in documents:
        for server in servers_of(document):
            server["responseBuckets"] = {"msecs": [], "counters": []}


def unknown_keys(documents: list[Document]) -> None:
    for document in documents:
        document["later"] = {"a": [None, {}]}
        for server in servers_of(document):
            server["later"] = "x"


@pytest.mark.parametrize("spoil", [without("responseBuckets"), empty_buckets, other_buckets])
def test_without_usable_buckets_it_steers_on_means_and_says_so(answers: Answers, spoil: Any) -> None:
    documents = vts_documents(TOPOLOGY, 1)
    spoil(documents)
    found = answer(answers, {"documents": documents})
    assert found["decision"] == "policy"
    assert NO_BUCKETS in found["reason"]
    assert found["weights"]


def test_unknown_keys_change_nothing(answers: Answers) -> None:
    documents = vts_documents(TOPOLOGY, 1)
    plain = answer(answers, {"documents": documents})
    unknown_keys(documents)
    assert answer(answers, {"documents": documents}) == plain


@pytest.mark.parametrize(
    ("change", "field"),
    [({"requestCounter": "many"}, "requestCounter"), ({"responses": []}, "responses"),
     ({"responseBuckets": {"msecs": [1], "counters": ["x"]}}, "responseBuckets"), ({"weight": None}, "weight")],
)  # fmt: skip
def test_other_types_are_refused_by_their_field(answers: Answers, change: Document, field: str) -> None:
    documents = vts_documents(TOPOLOGY, 1)
    servers_of(documents[1])[0].update(change)
    with pytest.raises(StatusError, match=field):
        answer(answers, {"documents": documents})


def overflowing() -> Document:
    """The smallest body that version 0.1 answered with 500: a number that no float holds."""
    nothing = [[None] * 3] * 3
    memory = {"fast_s": nothing, "slow_log": [[0] * 3] * 3, "learned": {"x": [10**309]}}
    return {"windows": [window_json.to_json(window())], "memory": memory}


def test_a_number_that_no_float_holds_is_refused(answers: Answers) -> None:
    with pytest.raises(DataError, match=r"memory\.learned"):
        answer(answers, overflowing())


def test_one_bad_request_spoils_no_other(answers: Answers) -> None:
    good = json.dumps({"documents": vts_documents(TOPOLOGY, 1)}).encode()
    bodies = [good, json.dumps(overflowing()).encode(), b"[", good]
    found = asyncio.run(answers.answer_each(bodies))
    assert [isinstance(one, bytes) for one in found] == [True, False, False, True]
    assert found[0] == found[3]


@pytest.mark.parametrize(
    ("name", "value"),
    [("means", np.array([["a"] * 15] * 2)), ("scale", np.zeros(15)), ("weights", np.array([0.5, np.nan])),
     ("center", np.zeros(14)), ("precisions_cholesky", np.zeros((2, 15))), ("features_version", np.array(99)),
     ("means", np.zeros((0, 15)))],
)  # fmt: skip
def test_an_encoder_with_other_arrays_is_refused_before_it_acts(tmp_path: Path, name: str, value: np.ndarray) -> None:
    trained_bundle().save(tmp_path)
    with np.load(tmp_path / "encoder.npz") as data:
        arrays = dict(data)
    np.savez(tmp_path / "encoder.npz", **{**arrays, name: value})
    with pytest.raises(BundleError, match=name if name != "features_version" else "version 99"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("value", [[0.1], [0.1, 0.0, 0.1], [0.1, "x", 0.1], [0.1, float("inf"), 0.1], None])
def test_deadlines_of_a_bundle_are_checked(tmp_path: Path, value: Any) -> None:
    trained_bundle().save(tmp_path)
    shutil.copy(tmp_path / "bundle.json", tmp_path / "kept")
    data = json.loads((tmp_path / "kept").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps({**data, "deadlines_s": value}))
    with pytest.raises(BundleError):
        load_bundle(tmp_path)


def test_a_bundle_and_its_encoder_have_one_version(tmp_path: Path) -> None:
    trained_bundle().save(tmp_path)
    data = json.loads((tmp_path / "bundle.json").read_text())
    assert data["features_version"] == 2
    (tmp_path / "bundle.json").write_text(json.dumps({**data, "features_version": 1}))
    with pytest.raises(BundleError, match=r"version 1, encoder\.npz of 2"):
        load_bundle(tmp_path)
