"""The suites that play compiled code, once more with numba's bounds checks.

Numba's cache ignores that flag, so that it has to be empty; a planted write shows that the checks are on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SUITES = ("tests/envs/simulator", "tests/envs/calibration", "tests/envs/environment", "tests/envs/study")


def checked(cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_no_suite_reads_or_writes_out_of_bounds(tmp_path: Path) -> None:
    cache = tmp_path / "numba"
    cache.mkdir()
    planted = checked(cache, "-p", "tests.support.planted_write", f"{SUITES[0]}/test_queues.py")
    assert planted.returncode == 1, planted.stdout
    assert "IndexError" in planted.stdout
    clean = checked(cache, *SUITES)
    assert clean.returncode == 0, clean.stdout[-4000:]
    assert list(cache.rglob("*.nbi")), "nothing was compiled into the empty cache"
