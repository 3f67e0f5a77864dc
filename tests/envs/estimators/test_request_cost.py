"""Models of what requests cost find what was put in, and switch themselves off where there is nothing to find."""

from __future__ import annotations

import numpy as np
import pytest

from actuators.contract.request_cost import MOST_TERMS, GroupCost, SeenRequest
from envs.estimators.request_cost import LEAST_REQUESTS, CostRow, explained, learn_cost, learn_from


def samples(number: int, seed: int, slope: float = 0.05, level: float = 1.0) -> list[CostRow]:
    """Costs by the span of a read, with a coefficient of variation of 0.5 besides."""
    generator = np.random.default_rng(seed)
    start, span = generator.integers(0, 100, number), generator.choice([2, 10, 40], number)
    noise = generator.lognormal(-0.5 * np.log(1.25), np.sqrt(np.log(1.25)), number)
    cost = level * (0.4 + slope * span) * noise
    rows = zip(start.tolist(), span.tolist(), cost.tolist(), strict=True)
    return [CostRow.single(SeenRequest("/read", {"start": s, "stop": s + n, "user_id": s % 7}), c) for s, n, c in rows]


def test_a_span_of_two_arguments_is_found() -> None:
    rows = samples(3000, 1)
    model = learn_cost({"reads": rows}).groups["reads"]
    assert model.counts
    assert model.requests == 3000
    assert len(model.terms) <= MOST_TERMS
    other = samples(3000, 2)
    oracle = GroupCost(terms={"one": 0.4 / 1.1, "span:start:stop": 0.05 / 1.1}, r2=1.0)
    assert explained(model, other) > 0.95 * explained(oracle, other)
    assert model.r2 == pytest.approx(explained(oracle, other), abs=0.1)
    small, large = (model.of(SeenRequest("/read", {"start": 5.0, "stop": 5.0 + span})) for span in (2.0, 40.0))
    assert large / small == pytest.approx(2.4 / 0.5, rel=0.25)


def test_a_cost_is_relative_to_the_groups_own() -> None:
    """Service times that are believed to be half of what they are do not make every request cost twice as much."""
    one, two = (learn_cost({"reads": samples(2000, 1, level=level)}).groups["reads"] for level in (1.0, 2.0))
    for name, weight in one.terms.items():
        assert two.terms[name] == pytest.approx(weight, rel=1e-3, abs=1e-6)


def test_noise_is_not_used() -> None:
    model = learn_cost({"reads": samples(3000, 1, slope=0.0)}).groups["reads"]
    assert not model.counts
    assert model.of(SeenRequest("/read", {"start": 1.0, "stop": 41.0})) == 1.0


def test_few_or_equal_requests_give_no_model() -> None:
    few = learn_cost({"reads": samples(LEAST_REQUESTS - 1, 1)}).groups["reads"]
    assert (few.terms, few.requests) == ({}, LEAST_REQUESTS - 1)
    alike = [CostRow.single(SeenRequest("/read"), 1.0 + 0.1 * (i % 3)) for i in range(1000)]
    assert not learn_cost({"reads": alike}).groups["reads"].counts


def test_rows_of_many_requests_count_as_these() -> None:
    """Sums of like requests give the model of the single ones."""
    singles = samples(2000, 3)
    joined: dict[str, CostRow] = {}
    for row in singles:
        key, before = str(row.seen), joined.get(str(row.seen), CostRow(row.seen, 0.0, 0.0, 0.0))
        total, squares = before.total + row.total, before.squares + row.squares
        joined[key] = CostRow(row.seen, before.count + 1.0, total, squares)
    rows = list(joined.values())
    one, other = learn_from(singles, singles), learn_from(rows, rows)
    seen = SeenRequest("/read", {"start": 50.0, "stop": 90.0, "user_id": 1.0})
    assert other.of(seen) == pytest.approx(one.of(seen), rel=0.02)
    assert other.r2 == pytest.approx(one.r2, abs=0.01)
