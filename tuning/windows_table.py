"""The windows behind an evaluation as one parquet table: a row per window, group and server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actuators.files import replacing
from tuning.evaluation import Evaluation


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
                "block": index, "round": block.place.round, "policy": block.place.policy, "usable": block.usable,
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
