"""Every verb: in the table under its name, with an example that parses, and quick to answer `--help`."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest

from rayjobs.cli.config import fields_of, load_options
from rayjobs.cli.main import Verb, load_verb
from rayjobs.cli.verbs import SUBCOMMANDS, VERBS, verb_names
from tests.support.paths import ROOT

HEAVY = ("ray", "torch", "numba", "plotly", "sklearn", "pandas", "scipy", "pyarrow", "gymnasium", "safetensors")
"""What `--help` must not import: each takes from 0.1 to 3 seconds."""


@pytest.fixture(params=sorted(verb_names()))
def verb(request: pytest.FixtureRequest) -> Verb:
    return load_verb(request.param)


def test_the_table_is_complete() -> None:
    """Every verb that a module declares is in the table under its name, and nothing else is."""
    declared = [
        name
        for path in (ROOT / "rayjobs").rglob("*.py")
        for name in re.findall(r'^[A-Z]+ = Verb\(\s*(?:name=)?"([a-z ]+)"', path.read_text(), re.MULTILINE)
        if path != ROOT / "rayjobs" / "bench" / "steer.py"  # a drill of its own, not a verb of `deepsched`
    ]
    assert sorted(declared) == sorted(verb_names())
    assert all(load_verb(name).name == name for name in verb_names())
    assert set(SUBCOMMANDS) <= set(VERBS)


def test_every_option_explains_itself(verb: Verb) -> None:
    silent = [field.path for field in fields_of(verb.options) if not field.info.description]
    assert not silent, f"deepsched {verb.name}: no docstring under {silent}"


def test_every_example_is_a_command_that_parses(verb: Verb) -> None:
    assert verb.example.startswith(f"deepsched {verb.name}")
    given = verb.parser().parse(shlex.split(verb.example)[1 + len(verb.name.split()) :])
    file, assignments = given.pop("config", None), given.pop("set", ())
    load_options(verb.options, file=file, assignments=assignments, flags=given)


def test_help_needs_neither_ray_nor_torch() -> None:
    """Heavy imports belong inside a verb's `run`: `deepsched VERB --help` answers at once."""
    code = (
        "import sys, json; from rayjobs.cli.main import load_verb; from rayjobs.cli.verbs import verb_names\n"
        "loaded = {}\n"
        "for name in verb_names():\n"
        "    load_verb(name)\n"
        "    loaded[name] = sorted(set(sys.argv[1:]) & set(sys.modules))\n"
        "print(json.dumps(loaded))"
    )
    done = subprocess.run([sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {verb: modules for verb, modules in json.loads(done.stdout).items() if modules}
    assert not heavy, f"first verb in the list is the one that imports: {heavy}"
