"""`make fuzz`: every fuzz target for FUZZ_S seconds; corpora and finds are kept in build/fuzz.

``python -m tests.support.fuzz [NAME …]``; the exit status is 1 when a target failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from tests.support.paths import ROOT
from tests.support.readers import READERS

CORPORA = ROOT / "build" / "fuzz"
CHECKED = ("vts", "fields", "config", "values")
"""Targets that make of the bytes what is read, or check what was read."""
NAMES = (*CHECKED, *(name for name in READERS if name not in CHECKED))


def fuzz(name: str) -> bool:
    """Whether a target was clean; prints the end of what it said when it was not."""
    corpus, finds = CORPORA / name, CORPORA / "finds" / name
    for folder in (corpus, finds):
        folder.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={os.environ.get('FUZZ_S') or 60}", "-timeout=30", "-rss_limit_mb=4096"]
    command = [sys.executable, "-m", "tests.support.fuzz_targets", name, str(corpus), f"-artifact_prefix={finds}/"]
    done = subprocess.run([*command, *limits], cwd=ROOT, stderr=subprocess.PIPE, check=False)
    print(f"{name}: {'clean' if done.returncode == 0 else f'failed, see {finds}'}", flush=True)
    if done.returncode:
        sys.stderr.write(done.stderr[-4000:].decode(errors="replace"))
    return done.returncode == 0


def main(names: Sequence[str]) -> int:
    """Runs the named targets, or all."""
    if unknown := set(names) - set(NAMES):
        print(f"no target {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    clean = [fuzz(name) for name in names or NAMES]
    return int(not all(clean))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
