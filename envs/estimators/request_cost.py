"""Learns what requests cost from what NGINX sees of them: linear models by ridge regression, tried on held-out ones.

Only requests that found an idle worker count: their response times hold no wait. A cost is a response time over the
learned service time of the server, so that the speed of servers is not learned twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from sklearn.linear_model import RidgeCV

from actuators.contract.arrays import FloatArray
from actuators.contract.request_cost import (
    MOST_ARGUMENTS,
    MOST_TERMS,
    NAME,
    GroupCost,
    RequestCost,
    SeenRequest,
    path_pattern,
)

LEAST_REQUESTS = 200
"""Requests of a group from which a model is learned."""
HELD_OUT = 0.3
"""Share of them, the last ones, on which it is judged."""
_SPREADS = 6
"""Arguments whose differences are tried: those that vary most often."""
_PATHS = 8
_PENALTIES = tuple(10.0**power for power in range(-3, 4))
_NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class CostRow:
    """Requests that look alike: how many, the sum of their costs, and of the squares of these."""

    seen: SeenRequest
    count: float
    total: float
    squares: float

    @classmethod
    def single(cls, seen: SeenRequest, cost: float) -> CostRow:
        return cls(seen, 1.0, cost, cost * cost)


def learn_cost(rows: Mapping[str, Sequence[CostRow]]) -> RequestCost:
    """Models of groups from their requests in the order in which they came; the last ones are held out."""
    return RequestCost(groups={group: _learned(list(each)) for group, each in rows.items()})


def learn_from(train: Sequence[CostRow], test: Sequence[CostRow]) -> GroupCost:
    """The model of one group, and its R² on the other rows; empty when there are too few."""
    number = round(sum(row.count for row in (*train, *test)))
    if number < LEAST_REQUESTS or not test:
        return GroupCost(requests=number)
    features = _features(train)
    table, weights = _table(train, features), np.array([row.count for row in train])
    means = np.array([row.total for row in train]) / weights
    middle = np.average(table, axis=0, weights=weights)
    spread = np.sqrt(np.average((table - middle) ** 2, axis=0, weights=weights))
    varies = spread > 1e-9 * np.maximum(np.abs(middle), 1.0)
    features = [feature for feature, one in zip(features, varies, strict=True) if one]
    middle, spread = middle[varies], spread[varies]
    if not features:
        return GroupCost(requests=number)
    scaled = (table[:, varies] - middle) / spread
    strongest = np.arange(len(features))
    model = RidgeCV(alphas=np.array(_PENALTIES)).fit(scaled, means, sample_weight=weights)
    if len(features) > MOST_TERMS - 1:
        strongest = np.argsort(-np.abs(model.coef_))[: MOST_TERMS - 1]
        model = RidgeCV(alphas=np.array(_PENALTIES)).fit(scaled[:, strongest], means, sample_weight=weights)
    level = float(np.average(means, weights=weights))
    kept = np.abs(model.coef_) > _NEGLIGIBLE * level
    slopes = np.where(kept, model.coef_ / spread[strongest], 0.0)
    first = float(model.intercept_ - slopes @ middle[strongest])
    # Divided by the mean cost: the model tells how requests differ, not how wrong the service times are.
    terms = {"one": first / level}
    terms |= {features[i]: float(slope / level) for i, slope, use in zip(strongest, slopes, kept, strict=True) if use}
    found = GroupCost(terms=terms, r2=1.0, requests=number)
    return found.model_copy(update={"r2": round(explained(found, test), 4)})


def explained(model: GroupCost, rows: Sequence[CostRow]) -> float:
    """R² of costs in relation to their mean over these rows."""
    counts, totals, squares = (np.array([getattr(row, name) for row in rows]) for name in ("count", "total", "squares"))
    level = totals.sum() / counts.sum()
    predicted = level * np.array([model.of(row.seen) for row in rows])
    left = float((squares - 2.0 * predicted * totals + counts * predicted**2).sum())
    whole = float(squares.sum() - counts.sum() * level**2)
    return 1.0 - left / whole if whole > 0 else 0.0


def _learned(rows: list[CostRow]) -> GroupCost:
    cut = round((1.0 - HELD_OUT) * len(rows))
    return learn_from(rows[:cut], rows[cut:])


def _features(rows: Sequence[CostRow]) -> list[str]:
    """What may tell costs apart: numeric arguments, their differences, the body's length, paths and methods."""
    values: dict[str, set[float]] = {}
    often, paths, methods = Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        for name, value in row.seen.arguments.items():
            if NAME.fullmatch(name):
                values.setdefault(name, set()).add(value)
                often[name] += 1
        paths[path_pattern(row.seen.path)] += 1
        methods[row.seen.method] += 1
    arguments = [name for name, _ in often.most_common(MOST_ARGUMENTS) if len(values[name]) > 1]
    features = ["body", "log_body"]
    for name in arguments:
        features += [f"arg:{name}", f"log_arg:{name}"]
    for first, last in permutations(arguments[:_SPREADS], 2):
        features += [f"span:{first}:{last}", f"log_span:{first}:{last}"]
    features += [
        f"path:{path}"
        for path, _ in paths.most_common(_PATHS)
        if path.isprintable() and " " not in path and ":" not in path
    ]
    features += [f"method:{name}" for name, _ in methods.most_common(4) if name.isalpha() and name.isupper()]
    return features


def _table(rows: Sequence[CostRow], features: Sequence[str]) -> FloatArray:
    return np.array([[row.seen.value(feature) for feature in features] for row in rows])
