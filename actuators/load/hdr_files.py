"""Our histograms as HdrHistogram files that its standard viewers open: percentile tables (.hgrm) and logs (.hlog).

Formats read from HdrHistogram's sources: AbstractHistogram.outputPercentileDistribution,
AbstractHistogram.encodeIntoByteBuffer (V2) and HistogramLogWriter (1.3). Log values are nanoseconds,
as the viewers assume; percentile tables are in milliseconds.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from actuators.contract import histogram
from actuators.contract.arrays import IntArray
from actuators.load.summary import LoadSummary

_TICKS_PER_HALF_DISTANCE = 5
_LOWEST_NS, _HIGHEST_NS, _DIGITS = 1000, 3_600_000_000_000, 2
_SUB_BUCKETS, _UNIT_MAGNITUDE = 256, 9  # what HdrHistogram derives from the line above
_COOKIE, _COMPRESSED_COOKIE = 0x1C849303 | 0x10, 0x1C849304 | 0x10


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
    """Base64 of the compressed V2 encoding, values in nanoseconds, two significant digits."""
    hdr_counts: dict[int, int] = {}
    for bucket in np.flatnonzero(counts):
        index = _hdr_index(round(float(histogram.midpoints_s()[bucket]) * 1e9))
        hdr_counts[index] = hdr_counts.get(index, 0) + int(counts[bucket])
    payload = b"".join(_zigzag(value) for value in _runs(hdr_counts))
    head = struct.pack(">iiiiqqd", _COOKIE, len(payload), 0, _DIGITS, _LOWEST_NS, _HIGHEST_NS, 1.0)
    packed = zlib.compress(head + payload)
    return base64.b64encode(struct.pack(">ii", _COMPRESSED_COOKIE, len(packed)) + packed)


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


def _hdr_index(value_ns: int) -> int:
    """Index into HdrHistogram's counts array."""
    half = _SUB_BUCKETS // 2
    mask = (_SUB_BUCKETS - 1) << _UNIT_MAGNITUDE
    bucket = (value_ns | mask).bit_length() - _SUB_BUCKETS.bit_length() + 1 - _UNIT_MAGNITUDE
    return (bucket + 1) * half + (value_ns >> (bucket + _UNIT_MAGNITUDE)) - half


def _runs(counts: dict[int, int]) -> Iterable[int]:
    """The counts up to the last, with runs of zeros as their negative length."""
    position = 0
    for index in sorted(counts):
        if index > position:
            yield position - index
        yield counts[index]
        position = index + 1


def _zigzag(value: int) -> bytes:
    """ZigZag LEB128 of a signed 64-bit integer; the ninth byte, if any, carries eight bits."""
    rest = (value << 1) ^ (value >> 63)
    out = bytearray()
    for _ in range(8):
        if rest < 0x80:
            break
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest & 0xFF)
    return bytes(out)
