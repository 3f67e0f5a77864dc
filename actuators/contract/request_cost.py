"""What a request costs in relation to others of its group, from what NGINX sees when it comes.

A model is a sum of weighted features, small enough for Lua (`actuators/nginx/lua/cost.lua`), and is learned from
requests that found an idle worker (docs/late-binding.md#request-cost). It holds names and weights, never a value that a
client has sent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from actuators.contract.arrays import FloatArray
from actuators.errors import ConfigError
from actuators.options import Options, read_document

LEAST, MOST = 0.1, 20.0
"""Smallest and largest cost that a model gives: a wrong one cannot hold a request back for ever."""
LEAST_R2 = 0.1
"""Explained share of the variance on held-out requests below which a model is not used."""
MOST_TERMS, MOST_ARGUMENTS = 32, 8
_REMEDY = "make one with: deepsched holding learn"
NAME, PATH = re.compile(r"[A-Za-z0-9_.-]{1,64}"), re.compile(r"[!-9;-~]{1,256}")
"""Arguments and patterns of paths that a model may name: without blanks and colons."""
_FEATURE = re.compile(
    r"one|body|log_body"
    r"|(arg|log_arg):[A-Za-z0-9_.-]{1,64}|(span|log_span):[A-Za-z0-9_.-]{1,64}:[A-Za-z0-9_.-]{1,64}"
    r"|path:[!-9;-~]{1,256}|method:[A-Z]{1,16}"
)
_DIGITS, _ODD = re.compile(r"[0-9]+"), re.compile(r"[^!-9;-~]")
_MOST_VALUE = 1e12


@dataclass(frozen=True)
class SeenRequest:
    """What NGINX sees of a request.

    Attributes:
        path: without arguments.
        arguments: those of them that are decimal numbers of 0 to 1e12, by name.
        body_bytes: `Content-Length`; 0 without a body.
    """

    path: str = "/"
    arguments: Mapping[str, float] = field(default_factory=dict)
    body_bytes: int = 0
    method: str = "GET"

    def __hash__(self) -> int:
        return hash((self.path, tuple(sorted(self.arguments.items())), self.body_bytes, self.method))

    def value(self, feature: str) -> float:
        """Of one feature; 0 where the request lacks what it names."""
        kind, _, rest = feature.partition(":")
        if kind == "one":
            return 1.0
        if kind == "path":
            return float(path_pattern(self.path) == rest)
        if kind == "method":
            return float(self.method == rest)
        number = float(min(self.body_bytes, _MOST_VALUE))
        if kind.endswith("arg"):
            number = self.arguments.get(rest, 0.0)
        elif kind.endswith("span"):
            first, _, last = rest.partition(":")
            number = max(self.arguments.get(last, 0.0) - self.arguments.get(first, 0.0), 0.0)
        return math.log1p(number) if kind.startswith("log_") else number


def path_pattern(path: str) -> str:
    """The path with `*` for each number, and `?` for each byte that is a colon, a blank or not ASCII; 256 characters at
    most.
    """
    return _DIGITS.sub("*", _ODD.sub("?", path.encode().decode("latin-1")))[:256]


class GroupCost(Options):
    """The model of one group: the sum of weight × feature, between LEAST and MOST."""

    terms: dict[str, Annotated[float, Field(ge=-1e9, le=1e9)]] = Field({}, max_length=MOST_TERMS)
    """Feature → weight: `one`, `body` and `log_body` (bytes of the body, and the logarithm of that + 1), `arg:NAME` and
    `log_arg:NAME`, `span:FIRST:LAST` and `log_span:FIRST:LAST` (LAST less FIRST, at least 0), `path:PATTERN` and
    `method:NAME` (1 or 0). Every request costs 1 where there are none."""
    r2: float = Field(0.0, le=1)
    """Share of the variance of the costs of held-out requests that the model explains."""
    requests: int = Field(0, ge=0)
    """Requests that it was learned from and tested with."""

    @field_validator("terms")
    @classmethod
    def _known(cls, terms: dict[str, float]) -> dict[str, float]:
        for feature in terms:
            if not _FEATURE.fullmatch(feature):
                raise ValueError(f"no feature {feature[:80]!r}")
        return terms

    @property
    def counts(self) -> bool:
        """Whether it explains enough to be used."""
        return bool(self.terms) and self.r2 >= LEAST_R2

    def of(self, seen: SeenRequest) -> float:
        """The cost; 1 where the model does not count."""
        if not self.counts:
            return 1.0
        return min(max(sum(weight * seen.value(name) for name, weight in self.terms.items()), LEAST), MOST)


class RequestCost(Options):
    """Models by group; a group without one has requests that all cost 1. `cost.json`, and `request_cost` in a bundle's
    `bundle.json`."""

    format_version: Literal[1] = 1
    """Version of the file format."""
    groups: dict[str, GroupCost] = Field({})
    """Group → model."""

    @classmethod
    def of_terms(cls, terms: Mapping[str, Mapping[str, float]]) -> RequestCost:
        """Models that are in force."""
        return cls(groups={group: GroupCost(terms=dict(each), r2=1.0) for group, each in terms.items()})

    @classmethod
    def load(cls, path: Path) -> RequestCost:
        """From a file, or from a bundle's folder. Raises ConfigError."""
        where, member = (path / "bundle.json", "request_cost") if path.is_dir() else (path, "")
        found = read_document(cls, where, what="not what requests cost", remedy=_REMEDY, member=member)
        if found is None:
            raise ConfigError("the bundle does not hold what requests cost", where=str(where), remedy=_REMEDY)
        return found

    def of(self, group: str, seen: SeenRequest) -> float:
        """The cost of a request of the group."""
        model = self.groups.get(group)
        return 1.0 if model is None else model.of(seen)

    def in_force(self) -> dict[str, dict[str, float]]:
        """Group → terms of the models that are used."""
        return {group: model.terms for group, model in self.groups.items() if model.counts}


@dataclass(frozen=True)
class RequestKind:
    """Requests of a group that look alike on a testbed, and what they cost.

    Attributes:
        share: of the group's requests.
        work: mean work in relation to that of all requests of the group.
    """

    share: float
    work: float
    seen: SeenRequest


def oracle_r2(kinds: Sequence[RequestKind], service_cv: float) -> float:
    """What a perfect predictor explains of the variance of the costs, whose rest varies by `service_cv`."""
    shares, works = np.array([kind.share for kind in kinds]), np.array([kind.work for kind in kinds])
    second = float(shares @ works**2)
    return float((second - 1.0) / (second * (1.0 + service_cv**2) - 1.0))


def kind_tables(kinds: Sequence[Sequence[RequestKind]]) -> tuple[FloatArray, FloatArray]:
    """Cumulated shares and works ``[groups, kinds]`` of each group's kinds; one kind of work 1 for a group without."""
    most = max((len(each) for each in kinds), default=1) or 1
    reached, works = np.ones((len(kinds), most)), np.ones((len(kinds), most))
    for g, each in enumerate(kinds):
        if each:
            reached[g, : len(each) - 1] = np.cumsum([kind.share for kind in each])[:-1]
            works[g, : len(each)] = [kind.work for kind in each]
    return reached, works
