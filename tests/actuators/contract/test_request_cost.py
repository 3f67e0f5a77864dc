"""What a request costs: features, limits, what a file must be like."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from actuators.contract.request_cost import (
    LEAST,
    MOST,
    GroupCost,
    RequestCost,
    RequestKind,
    SeenRequest,
    kind_tables,
    oracle_r2,
    path_pattern,
)
from actuators.errors import ConfigError

SEEN = SeenRequest("/users/17/posts", {"start": 20.0, "stop": 60.0}, 512, "POST")


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ("one", 1.0),
        ("body", 512.0),
        ("log_body", math.log1p(512)),
        ("arg:stop", 60.0),
        ("arg:other", 0.0),
        ("log_arg:stop", math.log1p(60)),
        ("span:start:stop", 40.0),
        ("span:stop:start", 0.0),
        ("log_span:start:stop", math.log1p(40)),
        ("path:/users/*/posts", 1.0),
        ("path:/users/17/posts", 0.0),
        ("method:POST", 1.0),
        ("method:GET", 0.0),
    ],
)
def test_a_feature_is_what_nginx_sees(feature: str, value: float) -> None:
    assert SEEN.value(feature) == pytest.approx(value)
    terms = {"one": 0.5, feature: 0.001} if feature != "one" else {"one": 0.501}
    assert GroupCost(terms=terms, r2=0.5).of(SEEN) == pytest.approx(0.5 + 0.001 * value)


def test_a_cost_has_limits_and_a_poor_model_does_not_count() -> None:
    assert GroupCost(terms={"one": -5.0}, r2=0.5).of(SEEN) == LEAST
    assert GroupCost(terms={"body": 1.0}, r2=0.5).of(SEEN) == MOST
    assert GroupCost(terms={"body": 1.0}, r2=0.099).of(SEEN) == 1.0
    costs = RequestCost(groups={"a": GroupCost(terms={"one": 2.0}, r2=0.1), "b": GroupCost(terms={"one": 3.0})})
    assert (costs.of("a", SEEN), costs.of("b", SEEN), costs.of("c", SEEN)) == (2.0, 1.0, 1.0)
    assert costs.in_force() == {"a": {"one": 2.0}}
    assert RequestCost.of_terms(costs.in_force()).in_force() == costs.in_force()


def test_an_unknown_feature_is_refused() -> None:
    for feature in ("two", "arg:", "arg:a b", "span:a", "log_path:/", "log_one", "path:/a b", "method:get", "body:x"):
        with pytest.raises(ValidationError, match="no feature"):
            GroupCost(terms={feature: 1.0})


def test_a_pattern_has_no_numbers_of_a_client() -> None:
    assert path_pattern("/users/17/posts/2024-01") == "/users/*/posts/*-*"
    assert len(path_pattern("/" + "a" * 1000)) == 256


def test_a_file_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    path, costs = tmp_path / "cost.json", RequestCost(groups={"a": GroupCost(terms={"one": 2.0}, r2=0.5, requests=9)})
    path.write_text(costs.model_dump_json())
    assert RequestCost.load(path) == costs
    (tmp_path / "bundle.json").write_text(json.dumps({"request_cost": costs.model_dump(mode="json")}))
    assert RequestCost.load(tmp_path) == costs
    for text in ("", "[1", "null", '{"groups": {"a": {"terms": {"two": 1}}}}', '{"format_version": 2}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="holding learn"):
            RequestCost.load(path)
    with pytest.raises(ConfigError, match="cannot read"):
        RequestCost.load(tmp_path / "nowhere.json")


def test_kinds_have_tables_and_an_oracle() -> None:
    kinds = (RequestKind(0.5, 0.5, SeenRequest()), RequestKind(0.5, 1.5, SeenRequest()))
    reached, works = kind_tables((kinds, ()))
    assert reached.tolist() == [[0.5, 1.0], [1.0, 1.0]]
    assert works.tolist() == [[0.5, 1.5], [1.0, 1.0]]
    # The variance of the work is 0.25; of all together 1.25 × 2 - 1.
    assert oracle_r2(kinds, 1.0) == pytest.approx(0.25 / 1.5)
    assert oracle_r2(kinds, 0.0) == pytest.approx(1.0)
