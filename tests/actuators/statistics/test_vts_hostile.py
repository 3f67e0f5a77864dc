"""Documents that are not vts' are errors of ours, and never a wrong number."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.errors import StatusError
from actuators.statistics.vts import parse
from tests.support.vts_documents import document, window


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ({}, "nowMsec"),
        ([], "list"),
        ({"nowMsec": 1, "loadMsec": 1, "upstreamZones": {}}, "connections"),
        ({"nowMsec": True, "loadMsec": 1, "connections": {}, "upstreamZones": {}}, "nowMsec"),
        ({"nowMsec": 1, "loadMsec": math.nan, "connections": {}, "upstreamZones": {}}, "loadMsec"),
        ({"nowMsec": 1, "loadMsec": 1, "connections": {}, "upstreamZones": {"g": [{"server": "a"}]}}, "requestCounter"),
        (
            {"nowMsec": 1, "loadMsec": 1, "connections": {},
             "upstreamZones": {"g": [{"server": "a", "requestCounter": 1,
                                      "responseBuckets": {"msecs": [1, 2], "counters": [5, 3]}}]}},
            "cumulative",
        ),
    ],
)  # fmt: skip
def test_what_is_not_vts_is_named(broken: Any, expected: str) -> None:
    with pytest.raises(StatusError, match=expected):
        parse(broken)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_document_is_an_error_of_ours_or_a_sound_window(data: st.DataObject) -> None:
    """Replaces random parts of a real document by random JSON, twice, and takes the difference."""
    documents = []
    for name in ("before_load", "after_load"):
        doc = document(name)
        for _ in range(data.draw(st.integers(0, 3))):
            place: Any = doc
            while True:
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                key = data.draw(st.sampled_from(keys))
                if isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 3)):
                    place = place[key]
                    continue
                place[key] = data.draw(json_values)
                break
        documents.append(doc)
    try:
        result = window(*documents)
    except StatusError:
        return
    assert (result.requests >= 0).all()
    assert (result.latency_histogram >= 0).all()
    assert (result.response_ms_sum >= 0).all()
    assert (result.requests <= 2**53).all()
