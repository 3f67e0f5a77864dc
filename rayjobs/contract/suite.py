"""Judges one proxy on the stand: what is done to servers and proxy, and when. Limits stand in `checks`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from actuators.contract.arrays import IntArray
from actuators.contract.script import Behaviour
from actuators.errors import DeepSchedError
from rayjobs.contract.checks import (
    BACK_WITHIN_S,
    CHECKS,
    LEAST_SHARE,
    Judged,
    Verdict,
    judge_back,
    judge_change,
    judge_cold,
    judge_failing,
    judge_fair,
    judge_slow,
    not_applicable,
    shares_of_fair,
)
from rayjobs.contract.proxies import Log, Proxy
from rayjobs.contract.stand import WINDOW_S, Load, Stand, lost, p99_ms

VICTIM = 1
"""Index of the server that is slow, fails and goes away."""
_WARM_UP_S, _FAIR_S, _SLOW_S, _FAILING_S = 3.0, 8.0, 6.0, 3.0
_BEFORE_FAILURE_S = 1.0
_MOST_EXTENSIONS = 3
"""A share below its limit is measured on this many times before it counts: chance makes one in 1000 of a proxy that
draws servers at random."""
_DOWN_AT_S, _DOWN_S, _SHARE_S = 0.5, 1.0, 2.0
_PATIENCE_S = 15.0
"""After its return, until a server has got a request."""
_WARMING = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Speeds of a cold server, 0.4 s each."""
_WARMING_STEP_S, _LOOK_S = 0.4, 0.05
_HEAVY = 10
_CHANGES, _BETWEEN_S = 5, 0.3
_RELOADS = 2


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
            self.log(f"{proxy.name}: {', '.join(check.title.lower() for check in CHECKS if check.key in keys)}")
            try:
                verdicts += measure()
            except DeepSchedError as error:
                verdicts += [Verdict(key, "fail", f"not measured: {error}") for key in keys]
        return Judged(proxy.name, proxy.what, required, tuple(verdicts), time.monotonic() - began_s)

    def _parts(self, proxy: Proxy) -> Sequence[tuple[tuple[str, ...], Callable[[], list[Verdict]]]]:
        return (
            (("fair", "failing", "slow"), lambda: self._speeds(proxy.address)),
            (("back",), lambda: [self._back(proxy.address)]),
            (("cold",), lambda: [self._cold(proxy.address)]),
            (("weights",), lambda: [self._weights(proxy)]),
            (("reload",), lambda: [self._reload(proxy)]),
        )

    def _speeds(self, address: str) -> list[Verdict]:
        """The pool with equal servers carries per server what it carries without the slow one."""
        size = len(self.stand.servers)
        whole = self.rate_rps * size / (size - 1)
        most_s = _WARM_UP_S + _FAIR_S * (1 + _MOST_EXTENSIONS)
        with self.stand.load(address, whole, most_s + 1) as load:
            seconds = load.by_second(_WARM_UP_S, _WARM_UP_S + _FAIR_S)
            while _is_close(seconds) and len(seconds) < _FAIR_S * (1 + _MOST_EXTENSIONS):
                since_s = _WARM_UP_S + len(seconds)
                seconds += load.by_second(since_s, since_s + _FAIR_S)
            load.finish()
            without_ms = p99_ms(load.part(_WARM_UP_S, _WARM_UP_S + _FAIR_S))
        failing = self._failing(address)
        with self.stand.load(address, self.rate_rps, _WARM_UP_S + _SLOW_S + 1) as load:
            self._behave(Behaviour(0.0, VICTIM, speed=0.1))
            load.wait_until(_WARM_UP_S + _SLOW_S + WINDOW_S)
            load.finish()
            slow = load.part(_WARM_UP_S, _WARM_UP_S + _SLOW_S)
        gone = sum(int(counts.sum()) for counts in slow.errors.values())
        return [judge_fair(seconds), failing, judge_slow(p99_ms(slow), without_ms, gone)]

    def _failing(self, address: str) -> Verdict:
        since_s = _BEFORE_FAILURE_S + 1
        with self.stand.load(address, self.rate_rps, since_s + _FAILING_S + 1) as load:
            load.wait_until(_BEFORE_FAILURE_S)
            self._behave(Behaviour(0.0, VICTIM, error_ratio=1.0, error_service_s=0.001))
            seconds = load.by_second(since_s, since_s + _FAILING_S)
        counts = np.sum(seconds, axis=0)
        return judge_failing(int(counts[VICTIM]), int(counts.sum()))

    def _back(self, address: str) -> Verdict:
        """The server refuses connections for a while."""
        most_s = _DOWN_AT_S + _DOWN_S + _PATIENCE_S + BACK_WITHIN_S + _SHARE_S * (1 + _MOST_EXTENSIONS)
        with self.stand.load(address, self.rate_rps, most_s) as load:
            returned_s, first_s = self._away(load, Behaviour(0.0, VICTIM))
            if first_s is None:
                return judge_back(None, None)
            seconds = load.by_second(first_s + BACK_WITHIN_S, first_s + BACK_WITHIN_S + _SHARE_S)
            while _is_close(seconds, VICTIM) and len(seconds) < _SHARE_S * (1 + _MOST_EXTENSIONS):
                since_s = first_s + BACK_WITHIN_S + len(seconds)
                seconds += load.by_second(since_s, since_s + _SHARE_S)
        share = float(shares_of_fair(np.sum(seconds, axis=0))[VICTIM])
        return judge_back(share, first_s - returned_s)

    def _cold(self, address: str) -> Verdict:
        """The server refuses connections, comes back slow, and warms up from its first answer on."""
        warming = [Behaviour(i * _WARMING_STEP_S, VICTIM, speed) for i, speed in enumerate(_WARMING)]
        warm_s = len(_WARMING) * _WARMING_STEP_S
        with self.stand.load(address, self.rate_rps, _DOWN_AT_S + _DOWN_S + _PATIENCE_S + warm_s) as load:
            _, first_s = self._away(load, warming[0])
            if first_s is None:
                return judge_cold(None, self.stand.workers)
            self._behave(*warming)
            return judge_cold(self._most_waiting(load, first_s + warm_s), self.stand.workers)

    def _away(self, load: Load, returning: Behaviour) -> tuple[float, float | None]:
        """Takes the server away and back; when it came back, and when it has answered (None: not in time)."""
        load.wait_until(_DOWN_AT_S)
        self._behave(Behaviour(0.0, VICTIM, refused=True))
        load.wait_until(_DOWN_AT_S + _DOWN_S)
        before = int(self.stand.counts()[VICTIM])
        self._behave(returning)
        returned_s = load.now_s
        return returned_s, self._first_answer(load, before, returned_s + _PATIENCE_S)

    def _first_answer(self, load: Load, before: int, until_s: float) -> float | None:
        """When the server has answered its first request after its return; None when it has not by then."""
        while load.now_s < until_s:
            load.wait_until(load.now_s + _LOOK_S)
            counters = self.stand.servers[VICTIM].counters()
            if sum(by_status.get("200", 0) for by_status in counters["requests"].values()) > before:
                return load.now_s
        return None

    def _most_waiting(self, load: Load, until_s: float) -> int:
        most = 0
        while load.now_s < until_s:
            most = max(most, int(self.stand.servers[VICTIM].counters()["waiting"]))
            load.wait_until(load.now_s + _LOOK_S)
        return most

    def _weights(self, proxy: Proxy) -> Verdict:
        if proxy.without_weights:
            return not_applicable("weights", proxy.without_weights)
        equal = [1] * len(self.stand.servers)
        heavy = [_HEAVY if index == VICTIM else 1 for index in range(len(equal))]
        with self.stand.load(proxy.address, self.rate_rps, 20.0, "constant") as load:
            load.wait_until(0.5)
            with load.long_requests() as whole:
                for number in range(_CHANGES):
                    proxy.set_weights(heavy if number % 2 == 0 else equal)
                    load.wait_until(load.now_s + _BETWEEN_S)
            since_s = load.now_s
            # Of the last change, which made one server heavy.
            (counts,) = load.by_second(since_s, since_s + 1)
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
        self.stand.servers[VICTIM].behave(*behaviours)


def _is_close(seconds: Sequence[IntArray], server: int | None = None) -> bool:
    """Whether chance may have put a share below its limit: it is missed by less than a fifth of it."""
    shares = shares_of_fair(np.sum(seconds, axis=0))
    share = shares.min() if server is None else shares[server]
    return bool(LEAST_SHARE * 0.8 <= share < LEAST_SHARE)
