"""The cache of compiled functions goes by the content of the sources, not by their place."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from envs.simulator import compiling

SOURCE = "from envs.simulator.compiling import compiled\n\n\n@compiled\ndef twice(x):\n    return 2 * x\n"


def function_in(folder: Path) -> Any:
    folder.mkdir()
    file = folder / "module.py"
    file.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("module", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.twice


def test_a_copy_in_another_folder_is_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "FOLDER", tmp_path)
    first, second = function_in(tmp_path / "a"), function_in(tmp_path / "b")
    assert (first(3), second(4)) == (6, 8)
    assert (first.stats.cache_hits.total(), second.stats.cache_hits.total()) == (0, 1)
    monkeypatch.setattr(compiling, "STAMP", "sources have changed")
    third = function_in(tmp_path / "c")
    assert third(5) == 10
    assert third.stats.cache_hits.total() == 0


def test_a_folder_of_others_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("numba.core.config.CACHE_DIR", "")  # the drill of the bounds checks has set it
    assert compiling.cache_folder() == tmp_path / "deepsched" / f"simulator-{compiling.STAMP[:16]}"
    (tmp_path / "deepsched" / f"simulator-{compiling.STAMP[:16]}").chmod(0o777)
    assert compiling.cache_folder() is None
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    assert compiling.cache_folder() is None
