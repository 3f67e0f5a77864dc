"""The markers of the running test, where every Python of the session finds them (see `every_python/`)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.support.every_python import sitecustomize
from tests.support.paths import ROOT

_KEPT = tempfile.TemporaryDirectory(prefix="ds-needs-")
FOLDER = Path(_KEPT.name)
_MARKERS = FOLDER / "markers"
_REFUSED = FOLDER / "markers.refused"


def prepare_environment() -> None:
    """From now on programs that are started run this checkout's code, and check the markers."""
    searched = [str(Path(sitecustomize.__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, searched))
    _MARKERS.write_text("collection")
    os.environ[sitecustomize.NEEDS] = str(_MARKERS)


def announce(item: pytest.Item) -> None:
    """This test runs from now on."""
    _MARKERS.write_text(" ".join([item.nodeid.replace(" ", "_"), *(mark.name for mark in item.iter_markers())]))


def take_refusals() -> str:
    """Lines about programs that were refused since the last call; empty when there were none."""
    text = _REFUSED.read_text() if _REFUSED.exists() else ""
    _REFUSED.unlink(missing_ok=True)
    return text
