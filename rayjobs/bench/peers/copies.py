"""The simulator's copies of programs beside the programs: which server each picks with the same requests in flight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from actuators.testbed.peers import why_missing
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, figure
from rayjobs.bench.peers.picks import SERVERS, Picks, real_picks, simulated_picks

LEAST_P = 1e-5
"""Of the test whether both pick alike: an honest copy fails once in 100,000 runs."""
OTHER = {"least_request": "random_two", "random_two": "least_request", "random_choose": "random_two"}
"""A near rule, which the same test must tell from the program."""


@dataclass(frozen=True)
class Copy:
    """A program and the rule that stands for it.

    Attributes:
        exact: both pick the same server every time; else the ranks of what they pick have one distribution.
        least: share of its picks that are among those with the fewest requests in flight; the order of ties is its
            own. 0 where the rule is another one.
    """

    program: str
    rule: str
    exact: bool = False
    least: float = 0.0


COPIES = (
    Copy("shared_least_conn", "shared_least_conn", exact=True),
    # Of its two threads one may count an end a moment after the other has picked.
    Copy("haproxy_leastconn", "shared_least_conn", least=0.99),
    Copy("caddy_least_conn", "shared_least_conn", least=1.0),
    Copy("envoy_least_request", "least_request"),
    Copy("haproxy_random", "least_request"),
    Copy("traefik_p2c", "random_two"),
    Copy("caddy_random_choose", "random_choose"),
)


def measure(context: BenchContext) -> Sequence[Bar]:
    """Of every program that is installed; NGINX's least_time has a test (docs/peers.md#copies)."""
    count = 500 if context.quick else 5000
    bars: list[Bar] = []
    for copy in COPIES:
        if reason := why_missing(copy.program):
            context.log(f"left out: {copy.program}: {reason}")
            continue
        context.log(f"{copy.program}: {count} picks")
        bars += bars_of(copy, context.work_dir, count, context.seed)
    return bars


def bars_of(copy: Copy, work_dir: Path, count: int, seed: int) -> Iterator[Bar]:
    """Of one program. Raises LoadError when it does not answer."""
    real = real_picks(copy.program, work_dir / copy.program, count, seed)
    ours = simulated_picks(copy.rule, real.in_flight, seed)
    how = f"{count} picks among {SERVERS} servers that hold their requests"
    if copy.exact or copy.least:
        least = float((real.ranks == 0).mean())
        yield at_least(
            f"{copy.program}: picks among the servers with the fewest in flight", least, copy.least or 1.0, "", how=how
        )
    if copy.exact:
        same = float((real.chosen == ours.chosen).mean())
        yield at_least(f"{copy.program}: picks that are those of {copy.rule}", same, 1.0, "", how=how)
    elif not copy.least:
        name, p = f"{copy.program}: whether it picks as {copy.rule}, p", alike(real, ours)
        how_p = f"chi-square of ranks and ties; {how}"
        yield at_least(name, p, LEAST_P, "", how=how_p, reference=_shares(real, ours))
        other = OTHER[copy.rule]
        p = alike(real, simulated_picks(other, real.in_flight, seed))
        yield figure(f"{copy.program}: whether it picks as {other}, p", p, "", how="a near rule, in the same test")
    counts = np.bincount(real.chosen, minlength=SERVERS) * SERVERS / count
    yield figure(
        f"{copy.program}: least share of a server over the mean", float(counts.min()), "×", how=how,
        reference=f"most {counts.max():.3f}",
    )  # fmt: skip


def alike(one: Picks, other: Picks) -> float:
    """p of the hypothesis that both choose servers of each rank, with as many ties, equally often."""
    width = SERVERS + 1
    rows = [np.bincount(picks.ranks * width + picks.ties, minlength=width**2) for picks in (one, other)]
    table = np.array(rows)
    kept = table.sum(axis=0) >= 10
    few = table[:, ~kept].sum(axis=1, keepdims=True)
    table = np.hstack((table[:, kept], few)) if few.sum() >= 10 else table[:, kept]
    return float(stats.chi2_contingency(table).pvalue)


def _shares(real: Picks, ours: Picks) -> str:
    rows = [np.bincount(picks.ranks, minlength=SERVERS) / len(picks.chosen) for picks in (real, ours)]
    shown = (", ".join(f"{share:.3f}" for share in row) for row in rows)
    return "ranks {}; simulated {}".format(*shown)
