"""Every verb: found under its name, explained, with an example that parses, and quick to ask for help."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys

import pytest

from rayjobs.cli.config import fields_of, load_options
from rayjobs.cli.flags import build_parser, describe
from rayjobs.cli.main import Verb, load_verb
from rayjobs.cli.verbs import VERBS as TABLE
from tests.support.paths import ROOT

HEAVY = ("ray", "torch", "numba", "plotly", "sklearn", "pandas", "scipy", "pyarrow", "gymnasium", "safetensors")
"""What `--help` must not import: each takes from 0.1 to 3 seconds."""


@pytest.fixture(params=sorted(TABLE))
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
