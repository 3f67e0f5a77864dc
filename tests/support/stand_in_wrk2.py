"""A program that prints what wrk2 prints, and keeps the commands that it was given."""

from __future__ import annotations

import stat
from pathlib import Path

OUTPUT = """Running 12s test @ http://localhost:8080
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     99%   +/- Stdev
    Latency     1.21ms  312.00us   2.31ms   71.43%
    Req/Sec       -nan      -nan   0.00      0.00%
  Latency Distribution (HdrHistogram - Recorded Latency)
 50.000%    1.13ms
 75.000%    1.36ms
 90.000%    1.62ms
 99.000%    2.31ms
 99.900%    3.02ms
 99.990%    3.21ms
 99.999%    3.21ms
100.000%    3.21ms

  Detailed Percentile spectrum:
       Value   Percentile   TotalCount 1/(1-Percentile)

       0.421     0.000000            1         1.00
       1.132     0.500000         1000         2.00
       1.621     0.900000         1800        10.00
       2.307     0.990000         1980       100.00
       3.211     1.000000         2000          inf
#[Mean    =        1.213, StdDeviation   =        0.312]
#[Max     =        3.211, Total count    =         2000]
#[Buckets =           27, SubBuckets     =         2048]
----------------------------------------------------------
Sent 11911 requests

  11904 requests in 12.00s, 2.50MB read
  Socket errors: connect 3, read 4, write 1, timeout 7
  Non-2xx or 3xx responses: 9
Requests/sec:    992.00
Transfer/sec:    213.33KB
"""


USAGE = "wrk 4.0.0 [epoll]\\n-D, --dist  fixed, exp, norm, zipf\\n-R, --rate  work rate\\n"
SENT = "-r, --requests  Show the number of sent requests\\n"


def fake_wrk2(folder: Path, body: str, usage: str = USAGE + SENT) -> Path:
    path = folder / "wrk2"
    about = f"if [ \"$1\" = -v ]; then printf '%b' '{usage}'; exit 1; fi"
    path.write_text(f'#!/bin/sh\n{about}\necho "$@" >> {folder}/commands\n{body}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
