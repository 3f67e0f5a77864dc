"""`import envs` registers the ids in any order of the imports and imports nothing heavy itself."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import pytest

from envs.registration import IDS, register
from tests.support.paths import ROOT


def output_of(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


@pytest.mark.parametrize("imports", ["import envs, gymnasium", "import gymnasium, envs"])
def test_the_order_of_the_imports_does_not_matter(imports: str) -> None:
    program = f"{imports}\nprint(*[name for name in gymnasium.registry if name.startswith('DeepScheduling/')])"
    assert output_of(program).split() == list(IDS)


def test_a_look_for_gymnasium_is_no_import() -> None:
    program = (
        "import envs, importlib.util\n"
        "for _ in range(2): importlib.util.find_spec('gymnasium')\n"
        "import gymnasium\n"
        "print(*[name for name in gymnasium.registry if name.startswith('DeepScheduling/')])"
    )
    assert output_of(program).split() == list(IDS)


def test_gymnasium_is_itself_again_after_it_was_imported() -> None:
    program = (
        "import sys, envs, gymnasium, importlib\n"
        "importlib.reload(gymnasium)\n"
        "print(type(gymnasium.__spec__.loader).__module__, [type(f).__name__ for f in sys.meta_path if not "
        "isinstance(f, type)])"
    )
    assert "_AfterImport" not in output_of(program)
    assert output_of(program).startswith(("_frozen_importlib_external", "importlib"))


def test_it_imports_nothing_heavy() -> None:
    heavy = ("gymnasium", "numba", "numpy", "sklearn", "torch", "ray", "socket")
    program = "import sys\nbefore = set(sys.modules)\nimport envs\nprint(*(set(sys.modules) - before))"
    assert not set(output_of(program).split()) & set(heavy)


def test_registering_again_changes_nothing(recwarn: pytest.WarningsRecorder) -> None:
    before = {name: gymnasium.spec(name) for name in IDS}
    register()
    assert {name: gymnasium.spec(name) for name in IDS} == before
    assert not list(recwarn)


def test_without_gymnasium_envs_still_imports() -> None:
    """An NGINX host has none."""
    program = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'gymnasium':\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import envs\n"
        "try:\n"
        "    import gymnasium\n"
        "except ModuleNotFoundError as error:\n"
        "    print('missing', error.name)\n"
    )
    assert output_of(program) == "missing gymnasium"
