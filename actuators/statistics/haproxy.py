"""HAProxy's statistics as snapshots: counters per server from `show stat` and `show info` of its runtime API.

https://docs.haproxy.org/2.8/management.html#9.1 (the columns). A backend is a group. HAProxy has neither histograms nor
sums of response times: the sums are made here from its running average.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from actuators.errors import ActuationError, StatusError
from actuators.haproxy_api import RuntimeApi
from actuators.statistics.vts import ConnectionCounts, Responses, ServerCounters, Snapshot

LACKS = (
    "HAProxy reports an average response time of the last 1024 answers of a server, and no histogram: means follow"
    " late, percentiles and late shares are unknown"
)

_FRONTEND, _SERVER = "0", "2"
_CLASSES = ("hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx")
_FAILED = ("econ", "eresp", "wretr", "wredis")
"""Attempts without an answer: no connection, a broken answer, and those that were made again, there or elsewhere."""
_OUT = ("MAINT", "DRAIN", "DOWN", "NOLB")
_NO_ADDRESS = ("", "unix")
"""In place of an address; the latter for every Unix socket. Such servers have their names, as with the weights."""

Row = Mapping[str, str]


class HaproxyStatistics:
    """Reads one HAProxy. Stateful: response times are summed from the first reading on, and begin again at 0 when its
    process is a new one.

    Args:
        path: of its socket, with `level operator` or `level admin`; with less it hides the addresses of servers.
    """

    def __init__(self, path: Path) -> None:
        self._api = RuntimeApi(path)
        self._process = ""
        self._answers: dict[tuple[str, str], int] = {}
        self._msecs: dict[tuple[str, str], int] = {}

    def snapshot(self) -> Snapshot:
        """The counters now. Raises StatusError when they cannot be read or are of another format."""
        where = str(self._api.path)
        try:
            # In one connection, so that one process answers both: during a reload the next connection is another's.
            info, _, stat = self._api.ask("show info;show stat").partition("\n\n")
        except ActuationError as error:
            raise StatusError(error.what, where=where, remedy=error.remedy) from error
        facts = _facts(info)
        try:
            return self._snapshot(facts, _rows(stat))
        except (KeyError, ValueError) as error:
            remedy = "expected the columns of HAProxy 2.0 or later"
            raise StatusError(f"`show stat` cannot be read: {error!r}", where=where, remedy=remedy) from error

    def _snapshot(self, facts: Mapping[str, str], rows: Sequence[Row]) -> Snapshot:
        process, is_first = f"{facts.get('node', '')} process {facts['Pid']}", not self._process
        if process != self._process:
            self._process, self._answers, self._msecs = process, {}, {}
        groups: dict[str, dict[str, ServerCounters]] = {}
        duplicates = set()
        for row in rows:
            if row["type"] == _SERVER:
                counters = self._counters(row, is_first=is_first)
                servers = groups.setdefault(row["pxname"], {})
                if counters.server in servers:
                    duplicates.add((row["pxname"], counters.server))
                servers[counters.server] = counters
        connections = ConnectionCounts(
            active=int(facts["CurrConns"]), accepted=int(facts["CumConns"]), handled=int(facts["CumConns"]),
            requests=int(facts["CumReq"]),
        )  # fmt: skip
        return Snapshot(
            now_ms=round(time.time() * 1e3),
            load_ms=int(facts.get("Start_time_sec", "0")) * 1000,
            groups=groups,
            connections=connections,
            host_name=process,
            duplicates=frozenset(duplicates),
            client_errors=sum(_number(row, "hrsp_5xx") for row in rows if row["type"] == _FRONTEND),
            source="haproxy",
        )

    def _counters(self, row: Row, *, is_first: bool) -> ServerCounters:
        by_class = [_number(row, name) for name in _CLASSES]
        answered, failed = sum(by_class), sum(_number(row, name) for name in _FAILED)
        by_class[4] += failed
        place, now = (row["pxname"], row["svname"]), answered
        # Counters that fell were cleared.
        since = max(now - self._answers.get(place, now if is_first else 0), 0)
        self._msecs[place] = self._msecs.get(place, 0) + since * _number(row, "rtime")
        self._answers[place] = now
        weight = _number(row, "uweight") if row.get("uweight") else _number(row, "weight")
        return ServerCounters(
            row["svname"] if (address := row.get("addr", "")) in _NO_ADDRESS else address,
            answered + failed,
            in_bytes=_number(row, "bin"),
            out_bytes=_number(row, "bout"),
            responses=Responses(*by_class),
            request_msec_counter=self._msecs[place],
            response_msec_counter=self._msecs[place],
            response_msec=_number(row, "rtime"),
            weight=max(weight, 1),
            backup=_number(row, "bck") > 0 and _number(row, "act") == 0,
            down=weight == 0 or row["status"].startswith(_OUT),
        )


def _facts(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def _rows(text: str) -> list[Row]:
    """Raises ValueError for a text that does not begin with the names of its columns."""
    if not text.startswith("# "):
        raise ValueError(text[:80])
    return list(_dicts(text.removeprefix("# ").splitlines()))


def _dicts(lines: Sequence[str]) -> Iterator[Row]:
    for row in csv.DictReader(lines):
        # A short line lacks its last columns.
        yield {name: value or "" for name, value in row.items() if isinstance(name, str)}


def _number(row: Row, name: str) -> int:
    return int(row[name] or 0)
