"""Parquet tables: the published numbers of evaluations (a row per policy, type and metric), and their windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actuators.files import replacing
from tuning.judging.evaluation import Evaluation
from tuning.judging.statistics import METRICS

PLAIN = ("throughput_rps", "changes_per_minute", "jain_utilisation", "proxy_cpu_us")
"""Values that have no ratio: more or less of them is not better or worse."""

_COLUMNS = pa.schema(
    [
        ("testbed", pa.string()), ("scenario", pa.string()), ("policy", pa.string()), ("method", pa.string()),
        ("request_type", pa.string()), ("metric", pa.string()), ("value", pa.float64()),
        ("reference", pa.string()), ("ratio", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
        ("median_ratio", pa.float64()), ("paired_rounds", pa.int64()), ("discarded_blocks", pa.int64()),
    ]
)  # fmt: skip


def write_results(evaluations: Sequence[dict[str, Any]], path: Path) -> int:
    """Writes `evaluation.parquet` atomically from contents of `evaluation.json`; the number of rows. Raises OSError."""
    rows = [row for evaluation in evaluations for row in result_rows(evaluation)]
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, _COLUMNS), temporary)
    return len(rows)


def result_rows(evaluation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of one evaluation; `request_type` is "all" for all of them together."""
    for name, policy in evaluation["policies"].items():
        told = {
            "testbed": evaluation["testbed"], "scenario": evaluation["scenario"], "policy": name,
            "method": policy["method"], "reference": evaluation["reference"],
            "discarded_blocks": policy["discarded_blocks"],
        }  # fmt: skip
        for request_type, source in (("all", policy), *policy["per_type"].items()):
            for metric in METRICS:
                low, high = source["intervals"][metric] or (None, None)
                yield {
                    **told, "request_type": request_type, "metric": metric, "value": source[metric],
                    "ratio": source["ratios"][metric], "low": low, "high": high,
                    "median_ratio": source["median_ratios"][metric], "paired_rounds": source["paired_rounds"],
                }  # fmt: skip
            for metric in PLAIN:
                if metric in source:
                    yield {**told, "request_type": request_type, "metric": metric, "value": source[metric]}


def write_windows(evaluation: Evaluation, path: Path) -> int:
    """Writes `windows.parquet` atomically; returns the number of rows. Raises OSError."""
    rows = [row for block in range(len(evaluation.blocks)) for row in _block_rows(evaluation, block)]
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    return len(rows)


def _block_rows(evaluation: Evaluation, index: int) -> list[dict[str, Any]]:
    block, topology = evaluation.blocks[index], evaluation.topology
    rows = []
    for number, window in enumerate(block.windows):
        client = window["client"]
        for g, group in enumerate(topology.groups):
            shared = {
                "block": index, "round": block.planned.round, "policy": block.planned.policy, "usable": block.usable,
                "window": number, "drain": window["drain"], "start_s": window["start_s"], "end_s": window["end_s"],
                "group": group.name, "request_type": group.request_type,
                "client_p50_ms": client["per_type"]["p50_ms"][g] if client else None,
                "client_p99_ms": client["per_type"]["p99_ms"][g] if client else None,
            }  # fmt: skip
            for server in group.servers:
                s = topology.server_index(server)
                row = {name: window[name][g][s] for name in ("requests", "mean_ms", "errors")}
                rows.append({**shared, "server": server, **row, "weight": window["weights"][g][s],
                             "share": window["shares"][g][s]})  # fmt: skip
    return rows
