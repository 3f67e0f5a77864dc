"""Which tests go to one worker of pytest-xdist: those of a file, and all files that use the session's one Ray."""

from __future__ import annotations

from functools import cache

from xdist.scheduler import LoadFileScheduling

from tests.support.paths import ROOT

RAY = "ray"


class OneRay(LoadFileScheduling):
    """As `--dist loadfile`, but only one worker starts a Ray and imports what learning needs: 15 s of CPU each."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return RAY if uses_ray(file) else file


@cache
def uses_ray(file: str) -> bool:
    """Whether a test of the file uses the fixture `ray`; the process that shares out the tests imports none."""
    return 'usefixtures("ray")' in (ROOT / file).read_text(encoding="utf-8")
