"""make and rayjobs/setup.sh: signals reach the program, and what is missing is one line with its remedy."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S

PROGRAM = f"""#!{sys.executable}
import signal, sys
sys.path.insert(0, {str(ROOT)!r})
from actuators.options import Options
from rayjobs.cli.main import Verb, run_verb

def wait(options):
    try:
        print("up", flush=True)
        signal.pause()
    finally:
        print("cleaned up", flush=True)
    return 0

sys.exit(run_verb(Verb("demo", "", Options, wait), []))
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Our Makefile and setup.sh in a folder of their own."""
    (tmp_path / "rayjobs").mkdir()
    for name in ("Makefile", "rayjobs/setup.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def demo(project: Path) -> Iterator[subprocess.Popen[str]]:
    """`make demo` of a program that waits, in a process group of its own, as a terminal would start it."""
    executable(project / ".venv/bin/deepsched", PROGRAM)
    (project / ".venv/.installed").touch()
    with subprocess.Popen(
        ["make", "demo"], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as make:
        assert make.stdout is not None
        assert make.stdout.readline() == "up\n"
        yield make
        make.kill()


@pytest.mark.parametrize(
    ("number", "to_group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, True, 143), (signal.SIGTERM, False, 143)],
    ids=["Ctrl-C", "SIGTERM to the group", "SIGTERM to make"],
)
def test_a_signal_to_make_lets_the_program_clean_up(
    demo: "subprocess.Popen[str]", number: signal.Signals, to_group: bool, code: int
) -> None:
    (os.killpg if to_group else os.kill)(demo.pid, number)
    output, _ = demo.communicate(timeout=PATIENCE_S)
    assert output.count("cleaned up") == 1
    assert f"Error {code}" in output
    assert "Traceback" not in output
    assert demo.returncode != 0


def test_killing_make_ends_the_program_cleanly(demo: "subprocess.Popen[str]") -> None:
    demo.kill()
    output, _ = demo.communicate(timeout=PATIENCE_S)
    assert "cleaned up" in output


def test_help_names_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "help", "setup", "setup-peers", "demo", "lint", "check", "test", "drills", "fuzz", "bench", "docs", "run",
        "doctor", "clean",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["bench"], "deepsched bench"),
        (["bench", "BENCH=load", "BENCH_QUICK=1"], "deepsched bench load --quick"),
        (["bench", "BENCH_QUICK=0"], "deepsched bench"),
        (["demo", "ARGS=--quick --seed 2"], "deepsched demo --quick --seed 2"),
        (["run", "ARGS=--help"], "deepsched collect --help"),
        (["setup-peers"], "./rayjobs/setup.sh peers"),
    ],
)
def test_targets_are_thin(project: Path, arguments: list[str], command: str) -> None:
    (project / ".venv").mkdir()
    (project / ".venv/.installed").touch()
    done = subprocess.run(["make", "-n", *arguments], cwd=project, capture_output=True, text=True, check=True)
    assert " ".join(done.stdout.split()).endswith(command)


def setup(project: Path, path: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`make setup` where only the programs of `path` exist."""
    for name in ("bash", "dirname", "head", "flock", "tr", "sed", "grep", "env", "make"):
        found = shutil.which(name)
        assert found is not None
        (path / name).symlink_to(found)
    variables = {"PATH": str(path), **environment}
    return subprocess.run(["make", "setup"], cwd=project, env=variables, capture_output=True, text=True, check=False)


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
    """The only line on stderr beside make's own."""
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(lines) == 1, done.stderr
    assert not list(Path(done.args[0]).glob(".venv"))
    return lines[0]


def test_an_old_python_is_one_line(project: Path, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    executable(programs / "python3", '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" || exit 1\n')
    assert one_line(setup(project, programs)) == (
        "setup: Python 3.11 or newer is needed, found Python 3.9.2;"
        " install one and give it with make PYTHON=/path/to/python3"
    )


@pytest.mark.parametrize(
    ("apt", "uid", "remedy"),
    [
        (True, 1000, "run: sudo ./rayjobs/setup.sh system"),
        (False, 0, "install them with your package manager"),
    ],
)
def test_missing_packages_that_it_may_not_install_are_one_line(
    project: Path, tmp_path: Path, apt: bool, uid: int, remedy: str
) -> None:
    programs = tmp_path / "programs"
    executable(programs / "python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    executable(programs / "id", f"#!/bin/sh\necho {uid}\n")
    if apt:
        executable(programs / "apt-get", "#!/bin/sh\necho called >&2; exit 1\n")
    line = one_line(setup(project, programs))
    assert "gcc libc6-dev" in line
    assert remedy in line


def test_a_second_setup_does_nothing(project: Path) -> None:
    (project / ".venv").mkdir()
    (project / ".venv/.installed").touch()
    done = subprocess.run(["./rayjobs/setup.sh"], cwd=project, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
