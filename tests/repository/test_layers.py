"""The shape of the packages: no circles, small folders that say what they hold.

Layers and forbidden imports are contracts in pyproject.toml, which `lint-imports` checks.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

from tests.support.paths import ROOT

PACKAGES = ("actuators", "envs", "tuning", "rayjobs")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ALIASES = {"rayjobs.serve_ray"}
"""Modules that only keep an old name alive."""
LARGEST_FOLDER = 20


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Which module imports which; only their sources are read."""
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def folder_of(graph: grimp.ImportGraph, module: str) -> str:
    """The package that holds a module; a package holds its own `__init__`."""
    return module if graph.find_children(module) else module.rpartition(".")[0]


def circle(graph: grimp.ImportGraph, unit: Callable[[str], str]) -> list[str]:
    """Units that import each other in a circle, the first one repeated at the end; empty when there is none."""
    imported: dict[str, set[str]] = {}
    for module in graph.modules:
        targets = {unit(target) for target in graph.find_modules_directly_imported_by(module)}
        imported.setdefault(unit(module), set()).update(targets - {unit(module)})
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_modules_import_each_other_in_a_circle(graph: grimp.ImportGraph) -> None:
    assert circle(graph, str) == []


def test_no_packages_import_each_other_in_a_circle(graph: grimp.ImportGraph) -> None:
    assert circle(graph, lambda module: folder_of(graph, module)) == []


def test_circles_are_found() -> None:
    graph = grimp.ImportGraph()
    for module in ("a", "a.x", "a.y", "b", "b.z"):
        graph.add_module(module)
    graph.add_import(importer="a.x", imported="b.z")
    assert circle(graph, str) == circle(graph, lambda module: folder_of(graph, module)) == []
    graph.add_import(importer="b.z", imported="a.y")
    assert circle(graph, str) == []
    assert sorted(set(circle(graph, lambda module: folder_of(graph, module)))) == ["a", "b"]
    graph.add_import(importer="a.y", imported="a.x")
    assert sorted(set(circle(graph, str))) == ["a.x", "a.y", "b.z"]


def test_no_folder_has_too_many_modules(graph: grimp.ImportGraph) -> None:
    folders: dict[str, set[str]] = {}
    for module in graph.modules - ALIASES:
        if not graph.find_children(module) and not module.endswith(".__main__"):
            folders.setdefault(folder_of(graph, module), set()).add(module)
    assert {name: len(held) for name, held in folders.items() if len(held) > LARGEST_FOLDER} == {}


def test_every_module_and_package_has_a_docstring() -> None:
    silent = [path for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent
    assert {path.parent for path in SOURCES} == {path.parent for path in SOURCES if path.name == "__init__.py"}
