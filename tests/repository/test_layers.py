"""The arrows of the house: rayjobs → tuning → envs → actuators, and what may be imported where."""

import ast
import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayjobs.cli.config import fields_of, load_options
from rayjobs.cli.flags import build_parser, describe
from rayjobs.cli.main import Verb, load_verb
from rayjobs.cli.verbs import VERBS as TABLE
from tests.support.paths import ROOT

LAYERS = ("actuators", "envs", "tuning", "rayjobs")
"""Lowest first; each may import itself and those before it."""
FOREIGN = {"ray", "torch", "gymnasium", "socket", "requests", "subprocess", "asyncio", "http", "urllib"}
HEAVY = ("ray", "torch", "numba", "plotly", "sklearn", "pandas", "scipy", "pyarrow", "gymnasium", "safetensors")
"""What `--help` must not import: each takes from 0.1 to 3 seconds."""

VERBS = sorted(TABLE)
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imports_of(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Every module that a file imports, at any depth, also by name (`import_module("x")`), absolute."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def packages_of(path: Path, root: Path = ROOT) -> set[str]:
    return {module.partition(".")[0] for module in imports_of(path, root)}


def test_the_reader_of_imports_sees_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "envs" / "deep" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import a.b, c\nfrom d import e\nfrom ..f import g\nfrom . import h\n"
        'def k():\n    import ray\n    importlib.import_module("tuning.x")\n'
    )
    assert set(imports_of(file, tmp_path)) == {
        "a.b", "c", "d.e", "envs.f.g", "envs.deep.h", "ray", "tuning.x",
    }  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_downwards(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    above = packages_of(path) & set(LAYERS[layer + 1 :])
    assert not above, f"{name(path)} imports {above}, which is above it"
    assert "tests" not in packages_of(path)


def test_ray_stays_in_its_places() -> None:
    users = {name(path) for path in SOURCES if "ray" in packages_of(path)}
    outside = {user for user in users if not user.startswith(("tuning/", "rayjobs/"))}
    assert outside <= {"actuators/testbed/placement.py", "actuators/testbed/remote.py"}


def test_the_decision_problem_touches_no_world() -> None:
    allowed = {"gymnasium"}
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == "envs":
            touched = packages_of(path) & (FOREIGN - allowed)
            assert not touched, f"{name(path)} imports {touched}"


def test_every_file_says_what_it_is_for() -> None:
    silent = [name(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


@pytest.fixture(params=VERBS)
def verb(request: pytest.FixtureRequest) -> Verb:
    return load_verb(request.param)


def test_every_verb_is_found_under_its_own_name(verb: Verb) -> None:
    assert verb is importlib.import_module(TABLE[verb.name][0]).VERB
    assert verb.summary


def test_every_option_explains_itself(verb: Verb) -> None:
    silent = [field.path for field in fields_of(verb.options) if not field.info.description]
    assert not silent, f"deepsched {verb.name}: no docstring under {silent}"
    assert all(describe(field.info, field.path) for field in fields_of(verb.options))


def test_every_example_is_a_command_that_parses(verb: Verb) -> None:
    parser = build_parser(f"deepsched {verb.name}", verb.summary, verb.example, verb.options, verb.positional)
    assert verb.example in parser.format_help()
    program, named, *words = shlex.split(verb.example)
    assert (program, named) == ("deepsched", verb.name)
    given = parser.parse(words)
    file, assignments = given.pop("config", None), given.pop("set", ())
    load_options(verb.options, file=file, assignments=assignments, flags=given)


def test_help_needs_neither_ray_nor_torch() -> None:
    """Heavy imports belong inside a verb's `run`: `deepsched VERB --help` answers at once."""
    code = (
        "import sys, json; from rayjobs.cli.main import load_verb; from rayjobs.cli.verbs import VERBS\n"
        "loaded = {}\n"
        "for name in VERBS:\n"
        "    load_verb(name)\n"
        "    loaded[name] = sorted(set(sys.argv[1:]) & set(sys.modules))\n"
        "print(json.dumps(loaded))"
    )
    done = subprocess.run([sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {verb: modules for verb, modules in json.loads(done.stdout).items() if modules}
    assert not heavy, f"first verb in the list is the one that imports: {heavy}"
