"""HdrHistogram files: what we write is what HdrHistogram's own reader reads."""

from pathlib import Path

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from hypothesis import given
from hypothesis import strategies as st

from actuators.contract import histogram
from actuators.load.hdr_files import encode, log_header, log_lines, percentile_table
from actuators.load.summary import LoadSummary


def counts_of(values_us: list[int]) -> np.ndarray:
    counts = np.zeros(histogram.SIZE, dtype=np.int64)
    for value in values_us:
        counts[histogram.bucket_of(value)] += 1
    return counts


@given(st.lists(st.integers(1, 100_000_000), min_size=1, max_size=60))
def test_the_reference_reader_reads_our_encoding(values_us: list[int]) -> None:
    counts = counts_of(values_us)
    decoded = HdrHistogram.decode(encode(counts))
    assert decoded.get_total_count() == len(values_us)
    for bucket in np.flatnonzero(counts):
        value_ns = round(histogram.midpoints_s()[bucket] * 1e9)
        assert decoded.get_count_at_value(value_ns) == counts[bucket]


def test_a_percentile_table_has_the_reference_shape() -> None:
    counts = counts_of(list(range(1, 1001)))
    rows = [line.split() for line in percentile_table(counts).splitlines()[2:] if not line.startswith("#")]
    shares = [float(row[1]) for row in rows]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert int(rows[-1][2]) == 1000
    assert all(len(row) == 4 for row in rows[:-1])
    assert len(rows[-1]) == 3
    median = next(row for row in rows if float(row[1]) == 0.5)
    assert float(median[0]) == pytest.approx(0.5, rel=0.02)
    assert float(median[3]) == 2.0
    assert "Total count    =            0" in percentile_table(np.zeros(histogram.SIZE, dtype=np.int64))


def test_the_reference_reader_reads_our_log(tmp_path: Path) -> None:
    empty = LoadSummary.empty(("compose", "home_read"))
    counts = np.stack([counts_of([1000] * 5), counts_of([])])
    window = LoadSummary(
        **{**vars(empty), "start_s": 1.0, "end_s": 2.0, "latency_counts": counts, "raw_counts": counts}
    )
    path = tmp_path / "latency.hlog"
    path.write_text(log_header(1_790_000_000.0) + "".join(log_lines(window)))
    accumulated = HdrHistogram(1, 3_600_000_000_000, 2)
    reader = HistogramLogReader(str(path), accumulated)
    found = []
    while (one := reader.get_next_interval_histogram()) is not None:
        found.append((one.get_tag(), one.get_total_count(), one.get_value_at_percentile(50)))
    assert [(tag, count) for tag, count, _ in found] == [("compose", 5), ("compose-raw", 5)]
    assert found[0][2] == pytest.approx(1e6, rel=0.02)
