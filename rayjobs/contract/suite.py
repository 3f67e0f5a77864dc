"""Judges one proxy on the stand: what is done to servers and proxy, and when. Limits stand in `checks`."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actuators.contract.arrays import IntArray
from actuators.contract.script import Behaviour
from actuators.errors import ConfigError, DeepSchedError
from rayjobs.contract.checks import (
    BACK_WITHIN_S,
    CHECKS,
    LEAST_BEFORE,
    LEAST_SHARE,
    Judged,
    Verdict,
    judge_back,
    judge_change,
    judge_cold,
    judge_failing,
    judge_fair,
    judge_slow,
    judge_unused,
    not_applicable,
    shares_of_fair,
)
from rayjobs.contract.options import LEAST_RATE_RPS
from rayjobs.contract.proxies import Log, Proxy
from rayjobs.contract.stand import TYPES, WINDOW_S, Load, Stand, lost, p99_ms

SLOW, VICTIM, COLD, FAILING = range(4)
"""Index of the server that is slow, of the two that go away, the second to come back cold, and of the one that fails.
Each is another one: a proxy may avoid a server for seconds after its fault."""
_WARM_UP_S, _FAIR_S, _SLOW_S, _FAILING_S = 3.0, 7.0, 5.0, 3.0
_BEFORE_FAILURE_S = 1.5
_EXTENSIONS, _BACK_EXTENSIONS = 1, 3
"""A share below its limit is measured on this many times before it counts. Of a proxy that draws servers at random,
chance makes one in 1000 in Return, and one in 10,000 among equal servers."""
_AWAY_AT_S, _AWAY_S, _SHARE_S = 2.0, 1.0, 2.0
_PATIENCE_S = 15.0
"""After its return, until a server has got a request."""
_WARMING_STEP_S, _LOOK_S = 0.4, 0.05
_WARMING = tuple(Behaviour(step * _WARMING_STEP_S, COLD, 0.2 * (step + 1)) for step in range(5))
"""Of the cold server, from its first answer on."""
_WARM_S = len(_WARMING) * _WARMING_STEP_S
_HEAVY = 10
_CHANGES, _BETWEEN_S = 5, 0.3
_RELOADS = 2

MOST_LOAD = 0.7
"""Of the capacity of all servers but one: above it the test servers are overloaded behind any proxy."""
_MEAN_WORK_S = sum(share * mean_s for share, mean_s in TYPES.values())
_ROUNDING = 1e-6


def check_load(servers: int, workers: int, rate_rps: float) -> None:
    """Raises ConfigError for more load than the test servers carry, with what fits.

    Args:
        workers: requests that each server serves at once.
    """
    each_rps = MOST_LOAD * (servers - 1) / _MEAN_WORK_S
    least = math.ceil(rate_rps / each_rps - _ROUNDING)
    if workers >= least:
        return
    load, most_rps = MOST_LOAD * rate_rps / (each_rps * workers), math.floor(each_rps * workers + _ROUNDING)
    rate = f"--rate-rps {most_rps} or less, or " if most_rps >= LEAST_RATE_RPS else ""
    raise ConfigError(
        f"{rate_rps:g} requests per second are {load:.0%} of what {servers - 1} of the {servers} servers can do, "
        f"more than {MOST_LOAD:.0%}",
        where="rate_rps", remedy=f"give {rate}--workers {least} or more",
    )  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """The checks, for any number of proxies before the same servers."""

    stand: Stand
    rate_rps: float
    log: Log

    def judge(self, proxy: Proxy, *, required: bool) -> Judged:
        """All verdicts. A measurement that fails is a failed check with the reason."""
        began_s = time.monotonic()
        verdicts: list[Verdict] = []
        for keys, measure in self._parts(proxy):
            self.log(", ".join(check.title.lower() for check in CHECKS if check.key in keys))
            try:
                verdicts += measure()
            except DeepSchedError as error:
                verdicts += [Verdict(key, "fail", f"not measured: {error}") for key in keys]
        return Judged(proxy.name, proxy.what, required, tuple(verdicts), time.monotonic() - began_s)

    def _parts(self, proxy: Proxy) -> Sequence[tuple[tuple[str, ...], Callable[[], list[Verdict]]]]:
        """In the order of `CHECKS`. Servers go away and come back before one is made slow: a balancer may avoid one
        that was slow for a while, and then does not notice that it is away. The one that fails comes last: many take it
        out of the pool for ten seconds, and the rest would have more load than the pool that the slow one is judged by.
        """
        equal = functools.cache(lambda: self._equal(proxy.address))
        return (
            (("fair",), lambda: [equal()[0]]),
            (("back", "cold"), lambda: self._returning(proxy.address)),
            (("slow",), lambda: [self._slow(proxy.address, equal()[1])]),
            (("failing",), lambda: [self._failing(proxy.address)]),
            (("weights",), lambda: [self._weights(proxy)]),
            (("reload",), lambda: [self._reload(proxy)]),
        )

    def _equal(self, address: str) -> tuple[Verdict, float]:
        """Shares of equal servers, and the 99th percentile in milliseconds. The pool carries per server what it carries
        without one of them.
        """
        size = len(self.stand.servers)
        whole = self.rate_rps * size / (size - 1)
        most_s = _WARM_UP_S + _FAIR_S * (1 + _EXTENSIONS)
        with self.stand.load(address, whole, most_s + 1) as load:
            seconds = load.by_second(_WARM_UP_S, _WARM_UP_S + _FAIR_S)
            while _is_close(seconds) and len(seconds) < _FAIR_S * (1 + _EXTENSIONS):
                since_s = _WARM_UP_S + len(seconds)
                seconds += load.by_second(since_s, since_s + _FAIR_S)
            load.finish()
            return judge_fair(seconds), p99_ms(load.part(_WARM_UP_S, _WARM_UP_S + _FAIR_S))

    def _slow(self, address: str, without_ms: float) -> Verdict:
        with self.stand.load(address, self.rate_rps, _WARM_UP_S + _SLOW_S + 1) as load:
            self._behave(Behaviour(0.0, SLOW, speed=0.1))
            load.wait_until(_WARM_UP_S + _SLOW_S + WINDOW_S)
            load.finish()
            slow = load.part(_WARM_UP_S, _WARM_UP_S + _SLOW_S)
        gone = sum(int(counts.sum()) for counts in slow.errors.values())
        return judge_slow(p99_ms(slow), without_ms, gone)

    def _failing(self, address: str) -> Verdict:
        since_s = _BEFORE_FAILURE_S + 1
        with self.stand.load(address, self.rate_rps, since_s + _FAILING_S + 1) as load:
            (before,) = load.by_second(_BEFORE_FAILURE_S - 1, _BEFORE_FAILURE_S)
            used = float(shares_of_fair(before)[FAILING])
            self._behave(Behaviour(0.0, FAILING, error_ratio=1.0, error_service_s=0.001))
            seconds = load.by_second(since_s, since_s + _FAILING_S)
        counts = np.sum(seconds, axis=0)
        if used < LEAST_BEFORE:
            return judge_unused("failing", used)
        return judge_failing(int(counts[FAILING]), int(counts.sum()))

    def _returning(self, address: str) -> list[Verdict]:
        """Two servers refuse connections for a while, and one of them comes back cold."""
        most_s = _AWAY_AT_S + _AWAY_S + _PATIENCE_S + _WARM_S + BACK_WITHIN_S + _SHARE_S * (1 + _BACK_EXTENSIONS) + 1
        with self.stand.load(address, self.rate_rps, most_s) as load:
            (counts,) = load.by_second(_AWAY_AT_S - 1, _AWAY_AT_S)
            used = shares_of_fair(counts)
            for server in (VICTIM, COLD):
                self._behave(Behaviour(0.0, server, refused=True))
            load.wait_until(_AWAY_AT_S + _AWAY_S)
            before = {server: self._successes(server) for server in (VICTIM, COLD)}
            self._behave(Behaviour(0.0, VICTIM))
            self._behave(_WARMING[0])
            returned_s = load.now_s
            firsts, most_waiting = self._watch(load, before, returned_s + _PATIENCE_S)
            share, tried_s = None, None
            if VICTIM in firsts:
                tried_s = firsts[VICTIM] - returned_s
                share = self._share_later(load, firsts[VICTIM] + BACK_WITHIN_S)
        cold = judge_cold(most_waiting if COLD in firsts else None, self.stand.workers)
        return [
            verdict if used[server] >= LEAST_BEFORE else judge_unused(verdict.key, float(used[server]))
            for server, verdict in ((VICTIM, judge_back(share, tried_s)), (COLD, cold))
        ]

    def _watch(self, load: Load, before: Mapping[int, int], until_s: float) -> tuple[dict[int, float], int]:
        """Warms the cold server up from its first answer on; when each has answered (not before `until_s`: absent), and
        how many requests waited at the cold one.
        """
        firsts: dict[int, float] = {}
        most = 0

        def goes_on() -> bool:
            missing = len(firsts) < len(before) and load.now_s < until_s
            return missing or (COLD in firsts and load.now_s < firsts[COLD] + _WARM_S)

        while goes_on():
            load.wait_until(load.now_s + _LOOK_S)
            for server in before.keys() - firsts.keys():
                if self._successes(server) > before[server]:
                    firsts[server] = load.now_s
                    if server == COLD:
                        self._behave(*_WARMING)
            if COLD in firsts:
                most = max(most, int(self.stand.servers[COLD].counters()["waiting"]))
        return firsts, most

    def _share_later(self, load: Load, at_s: float) -> float:
        """Of the fair share of the server that came back, from that second on, among all but the cold one."""
        at_s = max(at_s, load.now_s)
        seconds = self._without_cold(load, at_s)
        while _is_close(seconds, VICTIM) and len(seconds) < _SHARE_S * (1 + _BACK_EXTENSIONS):
            seconds += self._without_cold(load, at_s + len(seconds))
        return float(shares_of_fair(np.sum(seconds, axis=0))[VICTIM])

    def _without_cold(self, load: Load, at_s: float) -> list[IntArray]:
        return [np.delete(counts, COLD) for counts in load.by_second(at_s, at_s + _SHARE_S)]

    def _successes(self, server: int) -> int:
        counters = self.stand.servers[server].counters()
        return sum(by_status.get("200", 0) for by_status in counters["requests"].values())

    def _weights(self, proxy: Proxy) -> Verdict:
        if proxy.without_weights:
            return not_applicable("weights", proxy.without_weights)
        equal = [1] * len(self.stand.servers)
        heavy = [_HEAVY if index == VICTIM else 1 for index in range(len(equal))]
        with self.stand.load(proxy.address, self.rate_rps, 20.0, "constant") as load:
            load.wait_until(0.5)
            try:
                with load.long_requests() as whole:
                    for number in range(_CHANGES):
                        proxy.set_weights(heavy if number % 2 == 0 else equal)
                        load.wait_until(load.now_s + _BETWEEN_S)
                since_s = load.now_s
                # Of the last change, which made one server heavy.
                (counts,) = load.by_second(since_s, since_s + 1)
            finally:
                # A user's proxy serves others after this, on every path.
                proxy.set_weights(equal)
            summary = load.finish()
        share = shares_of_fair(counts)[VICTIM]
        effect = f"at weight {_HEAVY} a server gets {share:.1f} of its share"
        return judge_change("weights", int(summary.sent.sum()), lost(summary), whole.count(False), len(whole), effect)

    def _reload(self, proxy: Proxy) -> Verdict:
        if proxy.without_reload:
            return not_applicable("reload", proxy.without_reload)
        with self.stand.load(proxy.address, self.rate_rps, 30.0, "constant") as load:
            load.wait_until(0.5)
            with load.long_requests() as whole:
                for _ in range(_RELOADS):
                    proxy.reload()
                    load.wait_until(load.now_s + 2 * _BETWEEN_S)
            summary = load.finish()
        return judge_change("reload", int(summary.sent.sum()), lost(summary), whole.count(False), len(whole))

    def _behave(self, *behaviours: Behaviour) -> None:
        """All of one server."""
        self.stand.servers[behaviours[0].server].behave(*behaviours)


def _is_close(seconds: Sequence[IntArray], server: int | None = None) -> bool:
    """Whether chance may have put a share below its limit: it is missed by less than a fifth of it."""
    shares = shares_of_fair(np.sum(seconds, axis=0))
    share = shares.min() if server is None else shares[server]
    return bool(LEAST_SHARE * 0.8 <= share < LEAST_SHARE)
