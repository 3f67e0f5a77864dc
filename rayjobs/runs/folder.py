"""The folder of a run and its provenance: enough to retell and repeat it.

What a bundle says about its origin: seed, command, config, versions, training curve, evaluation.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from actuators.credentials import without_credentials
from actuators.files import writable_folder, write_atomic
from actuators.options import Options
from rayjobs.cli.config import dump_yaml
from rayjobs.cli.console import console_err
from rayjobs.runs.joining import in_job, submitted_job

if TYPE_CHECKING:
    from tuning.learning.trainer import CurveRow

_DISTRIBUTION = "deep-scheduling"
STAYS = "the results of this job stay in PATH on HOST until Ray clears it"
"""Begin of the line that a submitted job says; `deepsched fetch` reads it in the job's log."""
RUNS = Path("runs")
"""Where runs are kept when nothing else is said."""
TRAIN = "train"
"""The extra with all that a host that only steers does not need."""


@dataclass(frozen=True)
class RunFolder:
    """One run's files under `path`; made before anything starts, so that a bad folder costs nothing."""

    path: Path

    @classmethod
    def create(
        cls, out: Path | None, name: str, seed: int, options: Options, argv: Sequence[str] | None = None
    ) -> RunFolder:
        """Makes `OUT/NAME-SEED-TIME/` (OUT: `RUNS` when None) with config.yaml, command.txt and versions.txt.

        Raises:
            ConfigError: the folder cannot be written.
        """
        parent = writable_folder(out or RUNS)
        time = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        run = cls(_new_folder(parent, f"{name}-{seed}-{time}"))
        run.write("config.yaml", dump_yaml(options))
        run.write("command.txt", command_line(name, argv) + "\n")
        run.write("versions.txt", "".join(f"{key}: {value}\n" for key, value in versions().items()))
        # The working directory of a job is below Ray's session folder, which Ray clears.
        if in_job() and run.path.absolute().is_relative_to(Path.cwd()):
            line = left_on_the_cluster(run.path, getattr(options, "storage", None))
            console_err().print(line, markup=False, soft_wrap=True)
        return run

    def file(self, *parts: str) -> Path:
        """A path in the folder; the folders above it are made."""
        path = self.path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def contents(self) -> str:
        """The files and folders in it, in words."""
        return ", ".join(sorted(entry.name + ("/" if entry.is_dir() else "") for entry in self.path.iterdir()))

    def write(self, name: str, data: bytes | str) -> Path:
        """Atomically writes one file; its path."""
        path = self.file(name)
        write_atomic(path, data)
        return path


def left_on_the_cluster(folder: Path, storage: str | None = None) -> str:
    """What a user of `ray job submit` must know whose results are in the job's working directory.

    Args:
        storage: where they are copied to at the end, if that succeeds.
    """
    stays = STAYS.replace("PATH", str(folder.absolute())).replace("HOST", socket.gethostname())
    copied = f"they are copied to {without_credentials(storage)}" if storage else "train and sweep take --storage"
    return f"{stays}; `deepsched fetch {submitted_job()}` fetches them; {copied}"


def command_line(verb: str, argv: Sequence[str] | None = None) -> str:
    """The command as one would type it again, without credentials of URLs.

    Args:
        argv: the words after the verb; this process's when None.
    """
    return without_credentials(shlex.join(_words(verb, argv)))


def _words(verb: str, argv: Sequence[str] | None) -> list[str]:
    if argv is not None:
        return ["deepsched", verb, *argv]
    program, checkout = Path(sys.argv[0]), Path(__file__).parents[2]
    if program.is_relative_to(checkout / "rayjobs"):
        module = program.parent if program.stem == "__main__" else program.with_suffix("")
        return ["python", "-m", ".".join(module.relative_to(checkout).parts), *sys.argv[1:]]
    if program.suffix == ".py":
        return ["python", *sys.argv]
    return [program.name, *sys.argv[1:]]


def versions() -> dict[str, str]:
    """What this run ran on: time, commit, machine, Python, NGINX and our pinned packages."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "python": platform.python_version(),
        "nginx": _nginx_version(),
        **package_versions(),
    }


def commit() -> str:
    """The git commit of this checkout, `-dirty` when tracked files differ; 'unknown' outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "unknown"
    head = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    dirty = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return f"{head}-dirty" if head and dirty else head or "unknown"


def machine() -> str:
    """Processor, cores that this process may use, memory and kernel in one line."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory_gb = next((int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if "MemTotal" in line), 0.0)
    processor = models[0] if models else platform.machine()
    cores = len(os.sched_getaffinity(0))
    return f"{processor}, {cores} cores, {memory_gb:.1f} GB, {platform.system()} {platform.release()}"


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that pyproject.toml pins."""
    return {name: _installed(name) for name in pinned_versions() | pinned_versions(TRAIN)}


def pinned_versions(extra: str = "") -> dict[str, str]:
    """Package → version as pyproject.toml pins it, for the small installation or in addition for an extra.

    Empty when this project is not installed.
    """
    try:
        required = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    pins = {}
    for text in required:
        package, _, marker = (part.strip() for part in text.partition(";"))
        if marker == (f'extra == "{extra}"' if extra else ""):
            name, _, version = package.partition("==")
            pins[name.partition("[")[0]] = version
    return pins


def _new_folder(parent: Path, name: str) -> Path:
    """A folder that did not exist before; two runs in one second get different ones."""
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(0o700)
            return path
        except FileExistsError:
            number += 1


def _nginx_version() -> str:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    return _output([program, "-v"]).partition("nginx/")[2] or "unknown" if program else "not installed"


def _output(command: Sequence[str]) -> str:
    """What a short command prints on stdout and stderr, empty when it fails."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


@cache
def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def provenance(run: RunFolder, seed: int, curve: Sequence[CurveRow]) -> dict[str, Any]:
    """Plain JSON for `bundle.json`; unknown numbers of the curve are null."""
    return {
        "seed": seed,
        "command": (run.path / "command.txt").read_text().strip(),
        "config": yaml.safe_load((run.path / "config.yaml").read_text()),
        "versions": versions(),
        "curve": [_finite(asdict(row)) for row in curve],
    }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
