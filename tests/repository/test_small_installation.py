"""An NGINX host needs neither torch nor Ray: the small installation records, steers, and says what it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rayjobs.cli.extras import MODULES
from tests.support.paths import ROOT, environment_elsewhere
from tests.support.small_host import BLOCKED, SmallHost, small_host

TIMEOUT_S = 900.0
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(requirements: list[str]) -> set[str]:
    return {text.partition("==")[0].partition("[")[0] for text in requirements}


def check_commands(host: SmallHost, done: dict[str, subprocess.CompletedProcess[str]]) -> None:
    """What every command of the host printed, and what it left."""
    for name in ("collect", "weights", "steer", "status"):
        assert done[name].returncode == 0, f"{name}: {done[name].stdout}{done[name].stderr}"
    assert "Steering can" in done["doctor"].stdout, done["doctor"].stdout + done["doctor"].stderr
    assert "compose_backend/127.0.0.1:18101=5" in done["weights"].stdout
    assert len((host.folder / "recording.json").read_text().splitlines()) >= 2
    usable = [line for line in host.decisions() if line["policy"] is not None]
    assert len(usable) >= 3
    assert {line["source"] for line in usable} <= {"policy", "baseline", "hold"}
    # Shadow changes nothing.
    assert host.conf.read_text() == host.original


def test_every_package_of_an_extra_is_known_by_its_modules() -> None:
    extras = PROJECT["optional-dependencies"]
    for extra, modules in MODULES.items():
        listed = set(modules.values())
        assert listed <= pinned(extras[extra])
        shared = {name for other in MODULES if other != extra for name in MODULES[other].values()}
        assert pinned(extras[extra]) - listed <= shared
    assert pinned(extras["train"]) & pinned(PROJECT["dependencies"]) == set()
    assert {"torch", "ray"} <= pinned(extras["train"])


@pytest.mark.slow
@pytest.mark.nginx
def test_a_host_without_the_extras_records_and_steers(tmp_path: Path) -> None:
    with small_host(tmp_path) as host:
        done = {}
        for name, words in host.commands().items():
            program = f"{BLOCKED}\nfrom rayjobs.cli.main import main\nsys.exit(main({words!r}))"
            done[name] = subprocess.run(
                [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S,
                check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        check_commands(host, done)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["demo", "--quick"], "train"),
        (["simulate"], "train"),
        (["serve", "bundle", "--front", "uvicorn"], "serve"),
    ],
)
def test_a_verb_that_needs_more_says_what_to_install(words: list[str], extra: str, tmp_path: Path) -> None:
    program = f"{BLOCKED}\nfrom rayjobs.cli.main import main\nsys.exit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"pip install 'deep-scheduling[{extra}]'" in line
    assert any(f"{name} is not installed" in line for name in MODULES[extra].values()), line


@pytest.mark.slow
@pytest.mark.nginx
def test_the_wheel_alone_records_and_steers_in_a_fresh_environment(tmp_path: Path) -> None:
    """With what pip installs for `pip install deep-scheduling`, from the index that pip uses."""
    source, environment = tmp_path / "source", tmp_path / "environment"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run([*pip, *build], check=True, timeout=TIMEOUT_S)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=TIMEOUT_S)
    python = environment / "bin" / "python"
    variables = environment_elsewhere()
    install = [*pip, "--python", str(python), "install", str(wheel)]
    subprocess.run(install, check=True, timeout=TIMEOUT_S, env=variables)
    freeze = [*pip[:4], "--python", str(python), "list", "--format=freeze"]
    packages = subprocess.run(freeze, capture_output=True, text=True, check=True, env=variables).stdout
    installed = {line.partition("==")[0].lower().replace("_", "-") for line in packages.splitlines()}
    assert pinned(PROJECT["dependencies"]) <= installed
    assert installed & {name for modules in MODULES.values() for name in modules.values()} == set()
    with small_host(tmp_path) as host:
        done = {
            name: subprocess.run(
                [str(environment / "bin" / "deepsched"), *words], cwd=tmp_path, capture_output=True, text=True,
                timeout=TIMEOUT_S, check=False, env=variables,
            )
            for name, words in host.commands().items()
        }  # fmt: skip
        check_commands(host, done)
