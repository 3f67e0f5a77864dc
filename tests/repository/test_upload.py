"""What `ray job submit --working-dir .` uploads: the code and its configs, small, and nothing else."""

import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Zipped by Ray's own code (private API, pinned with ray in pyproject.toml)."""
    from ray._private.runtime_env.packaging import create_package

    target = tmp_path_factory.mktemp("upload") / "package.zip"
    create_package(str(ROOT), target, include_gitignore=True)
    return target


def test_the_code_is_in_it(package: Path) -> None:
    names = set(zipfile.ZipFile(package).namelist())
    assert {
        "rayjobs/cli/main.py",
        "actuators/processes/guardian.py",
        "actuators/load/gen_load/main.c",
        "actuators/nginx/lua/status.lua",
    } <= names


def test_what_only_this_machine_needs_is_not(package: Path) -> None:
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(package).namelist()}
    assert not tops & {".git", ".venv", ".ci", "tests", "runs", "docs", ".mypy_cache", ".ruff_cache"}, tops


def test_it_is_small(package: Path) -> None:
    # Ray stores files uncompressed.
    assert package.stat().st_size < 4 * 2**20
