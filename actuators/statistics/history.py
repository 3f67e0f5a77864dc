"""Snapshots of weeks that a Prometheus server kept: the metrics of nginx-module-vts, by `query_range`.

Needs a server with Prometheus' HTTP API (https://prometheus.io/docs/prometheus/latest/querying/api/).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from urllib.parse import urlencode

import msgspec

from actuators.closing import Closing
from actuators.credentials import without_credentials
from actuators.errors import ConfigError, StatusError
from actuators.http_client import KeptConnection, NoResponseError, TooLongError
from actuators.statistics.prometheus import METRICS, Sample, snapshot_of
from actuators.statistics.vts import Snapshot

_CLOCK = METRICS[0]
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_REMEDIES = {401: "put the user and the password before the host of the URL", 403: "ask for the right to read it"}
_STEPS_PER_QUERY = 240
_TIMEOUT_S = 60.0


class History(Closing):
    """One Prometheus server; a context manager.

    Args:
        url: ``http://[USER:PASSWORD@]HOST:PORT``, with the path below which ``/api/v1`` is.
        match: selector of one NGINX, as ``{instance="10.0.0.1:80"}``; empty where the server watches only one.
        groups: upstreams that are read; all when empty.

    Raises:
        ConfigError: `url` is not an HTTP address, or `match` is not a selector.
    """

    def __init__(self, url: str, match: str = "", groups: Sequence[str] = ()) -> None:
        if match and not (match.startswith("{") and match.endswith("}")):
            raise ConfigError(f"'{match}' is not a selector", where="--match", remedy='write {instance="HOST:PORT"}')
        self.url, self._match, self._groups = without_credentials(url), match, groups
        self._targets: set[tuple[tuple[str, str], ...]] = set()
        self._connection = KeptConnection(
            url.rstrip("/") + "/api/v1/query_range",
            connect_timeout_s=5.0,
            read_timeout_s=_TIMEOUT_S,
            where="--prometheus",
        )

    def snapshots(self, start_s: float, end_s: float, step_s: float) -> Iterator[Snapshot]:
        """The scrapes between two times (s since the epoch), oldest first, at most one every `step_s` seconds.

        Each has the time at which it was scraped. Steps without a new scrape are skipped.

        Raises:
            StatusError: the server does not answer as Prometheus does.
            ConfigError: the server refuses the selector, or several NGINX match it.
        """
        last_ms, steps, at_s = 0, _STEPS_PER_QUERY, start_s
        while at_s <= end_s:
            until_s = min(at_s + (steps - 1) * step_s, end_s)
            try:
                moments = self._moments(at_s, until_s, step_s)
            except TooLongError as error:
                if steps == 1:
                    remedy = "record fewer upstreams: --groups A,B"
                    raise StatusError("one moment is too much to read", where=self.url, remedy=remedy) from error
                steps = max(steps // 4, 1)
                continue
            for now_ms, samples in moments:
                if now_ms > last_ms:
                    yield snapshot_of(samples, now_ms)
                    last_ms = now_ms
            at_s = until_s + step_s

    def close(self) -> None:
        self._connection.close()

    def _moments(self, start_s: float, end_s: float, step_s: float) -> list[tuple[int, list[Sample]]]:
        """Time of the scrape (ms) and its samples, for each step that has one."""
        clock = self._query(f"timestamp({self._selector(_CLOCK)})", start_s, end_s, step_s)
        if not clock:
            return []
        self._check_one(clock)
        moments: dict[float, list[Sample]] = {at_s: [] for at_s, _ in _points(clock[0])}
        for metric in METRICS:
            for series in self._query(self._selector(metric), start_s, end_s, step_s):
                for at_s, value in _points(series):
                    if at_s in moments:
                        moments[at_s].append(Sample(metric, series.metric, value))
        return [(round(1000 * scraped_s), moments[at_s]) for at_s, scraped_s in _points(clock[0])]

    def _selector(self, metric: str) -> str:
        if not (self._groups and metric.startswith("nginx_vts_upstream_")):
            return metric + self._match
        wanted = "upstream=~" + json.dumps("|".join(map(re.escape, self._groups)), ensure_ascii=False)
        others = self._match[1:-1].strip().rstrip(",")
        return f"{metric}{{{others}{',' if others else ''}{wanted}}}"

    def _check_one(self, clock: Sequence[_Series]) -> None:
        """Raises ConfigError when the samples are of several NGINX."""
        targets = {tuple(sorted(series.metric.items())) for series in clock}
        self._targets |= targets
        if len(self._targets) > 1:
            labels = ", ".join(f'{{instance="{dict(each).get("instance", "?")}"}}' for each in sorted(self._targets))
            raise ConfigError(f"several NGINX match: {labels[:300]}", where="--match", remedy="name one of them")

    def _query(self, query: str, start_s: float, end_s: float, step_s: float) -> list[_Series]:
        body = urlencode({"query": query, "start": start_s, "end": end_s, "step": step_s}).encode()
        try:
            status, answer = self._connection.request("POST", body, _FORM)
        except TooLongError:
            raise
        except NoResponseError as error:
            raise StatusError(f"no answer: {error}", where=self.url, remedy="is Prometheus running there?") from error
        try:
            result = _ANSWER.decode(answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            what = f"HTTP status {status}" if status != 200 else f"not an answer of Prometheus: {error}"[:200]
            remedy = _REMEDIES.get(status, "give the address of a Prometheus server, as http://HOST:9090")
            raise StatusError(what, where=self.url, remedy=remedy) from error
        if result.status != "success" or result.data is None:
            reason = result.error[:300] or f"HTTP status {status}"
            raise ConfigError(f"Prometheus refuses the query: {reason}", where=self.url, remedy="correct --match")
        return result.data.result


class _Series(msgspec.Struct):
    metric: dict[str, str]
    values: list[tuple[float, str]]


class _Data(msgspec.Struct):
    result: list[_Series]


class _Answer(msgspec.Struct):
    status: str
    data: _Data | None = None
    error: str = ""


_ANSWER = msgspec.json.Decoder(_Answer)


def _points(series: _Series) -> Iterator[tuple[float, float]]:
    """Step and value; what is not a number is left out."""
    for at_s, text in series.values:
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value):
            yield at_s, value
