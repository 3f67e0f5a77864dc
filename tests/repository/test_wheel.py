"""The wheel, installed into a fresh environment: everything that the code reads is in it, and the quick demo runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import ROOT, environment_elsewhere

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.nginx]

PACKAGES = ("actuators", "envs", "tuning", "rayjobs")
TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Installed:
    """The wheel, the environment that holds it, and an empty folder to work in."""

    wheel: Path
    environment: Path
    work: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A program of the environment, where nothing else of this checkout can be imported."""
        variables = environment_elsewhere()
        # The load engine is compiled anew, from the sources in the wheel.
        variables["XDG_CACHE_HOME"] = str(self.work / "cache")
        program = str(self.environment / "bin" / command[0])
        return subprocess.run(
            [program, *command[1:]], cwd=self.work, env=variables, capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip


def tracked(*folders: str) -> list[str]:
    """Files of this checkout that git knows, changed or not."""
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The dependencies are those of the running environment; the code is the wheel's alone."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment, work = folder / "source", folder / "environment", folder / "work"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    work.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", str(folder), str(source)], check=True, timeout=TIMEOUT_S)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=TIMEOUT_S)
    python = str(environment / "bin" / "python")
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", str(wheel)], check=True, timeout=TIMEOUT_S,
        env=environment_elsewhere(),
    )  # fmt: skip
    # Folders that a .pth file names are searched last, and .pth files in them, such as an editable install's, are not
    # followed.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(wheel, environment, work)


def test_every_file_of_the_packages_is_in_the_wheel(installed: Installed) -> None:
    assert set(tracked(*PACKAGES)) - set(zipfile.ZipFile(installed.wheel).namelist()) == set()


def test_the_code_is_that_of_the_wheel(installed: Installed) -> None:
    program = f"import {', '.join(PACKAGES)}\nfor one in ({', '.join(PACKAGES)}): print(one.__file__)"
    done = installed.run("python", "-c", program)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(f"{installed.environment}/") for line in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == len(PACKAGES)


def test_the_entry_point_explains_itself_and_finds_the_configs(installed: Installed) -> None:
    done = installed.run("deepsched", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout
    done = installed.run("deepsched", "train", "--config", "train-quick", "--print-config")
    assert done.returncode == 0, done.stderr
    assert "training:" in done.stdout


def test_the_name_in_deployed_yaml_and_the_live_page_are_found(installed: Installed) -> None:
    program = "import rayjobs.serve_ray, rayjobs.serve.app as app\nprint(rayjobs.serve_ray.build, *app.PAGE.iterdir())"
    done = installed.run("python", "-c", program)
    assert done.returncode == 0, done.stderr
    for name in tracked("rayjobs/serve/page"):
        assert f"{name} " in f"{done.stdout.strip()} "


def test_the_quick_demo_runs_to_its_end(installed: Installed) -> None:
    done = installed.run("deepsched", "demo", "--quick", "--seed", "3", "--out", "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (installed.work / "runs").iterdir()
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert all(policy["requests"] > 0 for policy in evaluation["policies"].values())
    assert "plotly" in (folder / "report.html").read_text()
    assert (folder / "bundle" / "bundle.json").exists()
