"""Our histograms as HdrHistogram files that its standard viewers open: percentile tables (.hgrm) and logs (.hlog).

Package hdrhistogram encodes. The table and the log's lines are our own, because its table (0.10.8) has other steps than
HdrHistogram's AbstractHistogram.outputPercentileDistribution and a standard deviation in the wrong unit, and its log
has no tags. Log values are nanoseconds, as the viewers assume; percentile tables are in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from actuators.contract import histogram
from actuators.contract.arrays import IntArray
from actuators.load.summary import LoadSummary

_TICKS_PER_HALF_DISTANCE = 5
_LOWEST_NS, _HIGHEST_NS, _DIGITS = 1000, 3_600_000_000_000, 2


def percentile_table(counts: IntArray) -> str:
    """The .hgrm text of counts ``[histogram.SIZE]``; a header and footer only when empty."""
    values_ms = histogram.midpoints_s() * 1e3
    cumulative = np.cumsum(counts)
    total = int(cumulative[-1])
    lines = ["       Value     Percentile TotalCount 1/(1-Percentile)", ""]
    if total:
        for share in _shares(total):
            at = int(np.searchsorted(cumulative, max(int(np.ceil(share * total)), 1)))
            odds = f" {1 / (1 - share):14.2f}" if share < 1 else ""
            lines.append(f"{values_ms[at]:12.3f} {share:.12f} {int(cumulative[at]):10d}{odds}")
    mean, deviation = _moments(counts, values_ms)
    largest = float(values_ms[np.flatnonzero(counts)[-1]]) if total else 0.0
    lines += [
        f"#[Mean    = {mean:12.3f}, StdDeviation   = {deviation:12.3f}]",
        f"#[Max     = {largest:12.3f}, Total count    = {total:12d}]",
        f"#[Buckets = {histogram.SIZE // histogram.SUB_BUCKETS:12d}, SubBuckets     = {2 * histogram.SUB_BUCKETS:12d}]",
    ]
    return "\n".join(lines) + "\n"


def log_header(start_unix_s: float) -> str:
    """First lines of a .hlog file."""
    return (
        "#[Logged with Deep Scheduling's load engine]\n"
        "#[Histogram log format version 1.3]\n"
        f"#[StartTime: {start_unix_s:.3f} (seconds since epoch)]\n"
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n'
    )


def log_lines(window: LoadSummary) -> Iterator[str]:
    """Lines of a .hlog file, one per request type that has answers, tagged `TYPE` (corrected) and `TYPE-raw`."""
    for i, name in enumerate(window.request_types):
        for tag, counts in ((name, window.latency_counts[i]), (f"{name}-raw", window.raw_counts[i])):
            if counts.any():
                largest_ms = histogram.midpoints_s()[np.flatnonzero(counts)[-1]] * 1e3
                length_s = window.end_s - window.start_s
                yield f"Tag={tag},{window.start_s:.3f},{length_s:.3f},{largest_ms:.3f},{encode(counts).decode()}\n"


def encode(counts: IntArray) -> bytes:
    """Base64 of the compressed V2 encoding of counts ``[histogram.SIZE]``: nanoseconds, two significant digits."""
    from hdrh.histogram import HdrHistogram  # noqa: PLC0415 - `collect` imports this module and works without it

    encoded = HdrHistogram(_LOWEST_NS, _HIGHEST_NS, _DIGITS)
    values_ns = np.rint(histogram.midpoints_s() * 1e9).astype(np.int64)
    for bucket in np.flatnonzero(counts):
        encoded.record_value(int(values_ns[bucket]), int(counts[bucket]))
    text: bytes = encoded.encode()
    return text


def _shares(total: int) -> Iterator[float]:
    """0, then ever finer steps towards 1 until they pass the last sample, then 1."""
    share = 0.0
    while share < 1 - 1 / total:
        yield share
        half_distance = 2.0 ** (int(np.log2(1 / (1 - share))) + 1)
        share += 1 / (_TICKS_PER_HALF_DISTANCE * half_distance)
    yield 1.0


def _moments(counts: IntArray, values: np.ndarray) -> tuple[float, float]:
    total = counts.sum()
    if total == 0:
        return 0.0, 0.0
    mean = float((counts * values).sum() / total)
    return mean, float(np.sqrt((counts * (values - mean) ** 2).sum() / total))
