"""`deepsched doctor`: checks the requirements of this machine, or of an external NGINX, and names remedies.

One check per function; those of an NGINX are in `actuators.external.preflight`. It changes nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from actuators.credentials import without_credentials
from actuators.errors import DeepSchedError, MissingToolError
from actuators.external.preflight import PreflightOptions, preflight
from actuators.files import writable_folder
from actuators.load.build import cache_dir, find_compiler
from actuators.nginx.detect import INSTALL, NginxBuild, detect
from rayjobs.cli.console import console_out
from rayjobs.cli.main import EXIT_USER_ERROR, Verb, run_verb
from rayjobs.runs.folder import TRAIN, pinned_versions

Level = Literal["ok", "poor", "missing"]
OLDEST_NGINX = (1, 18)
_GB = 2**30
_PORTS = 64
_SETUP = "run: make setup"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: `poor` works with a restriction; with `missing` the demo cannot run.
        found: what is installed or available.
        remedy: what to do; empty for `ok`.
    """

    name: str
    level: Level
    found: str
    remedy: str = ""


def python() -> Finding:
    """The Python version; the packages need 3.11 or newer."""
    return Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})")


def packages() -> Finding:
    """The packages that pyproject.toml pins, and their versions."""
    wrong = []
    pins = pinned_versions() if is_small() else pinned_versions() | pinned_versions(TRAIN)
    for name, wanted in pins.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return Finding("packages", "missing", f"{name} is not installed", _SETUP)
        if installed.partition("+")[0] != wanted:
            wrong.append(f"{name} {installed} instead of {wanted}")
    if not pins:
        return Finding("packages", "missing", "this project is not installed in this Python", _SETUP)
    return (
        Finding("packages", "poor", ", ".join(wrong), _SETUP)
        if wrong
        else Finding("packages", "ok", f"{len(pins)} as pinned")
    )


def is_small() -> bool:
    """Whether this is the small installation, which records and steers but does not learn."""
    return importlib.util.find_spec("torch") is None and importlib.util.find_spec("ray") is None


def ray() -> Finding:
    """Ray can be imported."""
    try:
        version = importlib.import_module("ray").__version__
    except ImportError as error:
        return Finding("Ray", "missing", f"cannot be imported: {error}", _SETUP)
    return Finding("Ray", "ok", str(version))


def compiler() -> Finding:
    """A C compiler with the headers of the load engine; it must build a program that runs."""
    name, remedy = "C compiler", "run: apt-get install gcc libc6-dev"
    source = "#include <sys/epoll.h>\n#include <netinet/tcp.h>\n#include <math.h>\nint main(void) { return 0; }\n"
    try:
        program = find_compiler()
        with tempfile.TemporaryDirectory(prefix="deepsched-") as folder:
            binary = str(Path(folder) / "probe")
            _run([program, "-x", "c", "-", "-o", binary, "-lm"], source)
            _run([binary])
            version = _run([program, "--version"]).splitlines()[0]
    except MissingToolError as error:
        return Finding(name, "missing", error.what, remedy)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(name, "missing", f"{program} cannot build a program: {_reason(error)}", remedy)
    return Finding(name, "ok", version)


def engine_cache() -> Finding:
    """The folder of the compiled load engine can be written."""
    try:
        folder = writable_folder(cache_dir())
    except DeepSchedError as error:
        return Finding(
            "engine cache", "missing", f"{error.what} ({error.where})", "set XDG_CACHE_HOME to a writable folder"
        )
    return Finding("engine cache", "ok", str(folder))


def nginx(binary: str = "nginx") -> list[Finding]:
    """NGINX and its modules for statistics and for weights in memory; it loads them in a temporary folder."""
    try:
        build = detect(binary)
    except MissingToolError as error:
        return [Finding("NGINX", "missing", error.what, f"run: {INSTALL}")]
    found = f"{build.version} ({build.binary})"
    if tuple(int(part) for part in build.version.split(".")[:2] if part.isdigit()) < OLDEST_NGINX:
        oldest = ".".join(map(str, OLDEST_NGINX))
        return [Finding("NGINX", "missing", found, f"use NGINX {oldest} or newer")]
    findings = [Finding("NGINX", "ok", found)]
    vts_fault = "not installed" if build.vts is None else _fault(build, [build.vts], "vhost_traffic_status_zone;")
    library = f'lua_package_path "{build.lua_library}/?.lua;;";' if build.lua_library else ""
    lua_probe = library + ' init_by_lua_block { require "resty.core" }'
    lua_fault = "not installed" if build.lua is None else _fault(build, build.lua, lua_probe)
    findings.append(_statistics(vts_fault, lua_fault))
    if lua_fault:
        findings.append(
            Finding("weights in memory", "poor", f"Lua: {lua_fault}; weights change by reload", f"run: {INSTALL}")
        )
    else:
        findings.append(Finding("weights in memory", "ok", "Lua module"))
    return findings


def ports() -> Finding:
    """Enough free ports on 127.0.0.1."""
    with contextlib.ExitStack() as stack:
        try:
            for _ in range(_PORTS):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", 0))
        except OSError as error:
            return Finding(
                "ports", "missing", f"127.0.0.1: {error.strerror}", "free some ports on the loopback interface"
            )
    return Finding("ports", "ok", f"{_PORTS} free on 127.0.0.1")


def cores() -> Finding:
    """Processor cores that this process may use."""
    count = len(os.sched_getaffinity(0))
    remedy = "" if count >= 2 else "use two or more: with one, load and servers disturb each other"
    return Finding("cores", "poor" if remedy else "ok", str(count), remedy)


def memory(root: Path = Path("/")) -> Finding:
    """Available memory, within the limit of the container."""
    lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    with contextlib.suppress(OSError, ValueError):
        group = root / "sys/fs/cgroup"
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        used = int((group / "memory.current").read_text(encoding="utf-8")) - int(stat.get("inactive_file", 0))
        free = min(free, int((group / "memory.max").read_text(encoding="utf-8")) - used)
    return _amount(
        "memory", free, least=3 * _GB // 2, good=4 * _GB, remedy="close other programs or use a larger machine"
    )


def shared_memory(root: Path = Path("/")) -> Finding:
    """Space for Ray's object store; without it Ray uses files, which is slow."""
    folder = root / "dev/shm"
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    return _amount("shared memory", free, least=0, good=_GB // 2, remedy="in a container: --shm-size=1g")


def disk() -> Finding:
    """Space for run folders here and for temporary files."""
    places = {Path.cwd(), Path(tempfile.gettempdir())}
    place = min(places, key=lambda path: shutil.disk_usage(path).free)
    remedy = f"free some space under {place}"
    return _amount("disk", shutil.disk_usage(place).free, least=_GB // 2, good=2 * _GB, remedy=remedy)


def open_files() -> Finding:
    """Maximum number of open connections of one process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = "" if soft >= 4096 or soft == resource.RLIM_INFINITY else "run: ulimit -n 65536"
    return Finding("open files", "poor" if remedy else "ok", f"{soft} per process", remedy)


def _statistics(vts_fault: str, lua_fault: str) -> Finding:
    if not vts_fault:
        return Finding("statistics", "ok", "nginx-module-vts")
    if not lua_fault:
        return Finding("statistics", "ok", f"by Lua, in vts' format (nginx-module-vts: {vts_fault})")
    return Finding("statistics", "missing", f"nginx-module-vts: {vts_fault}; Lua: {lua_fault}", f"run: {INSTALL}")


def _fault(build: NginxBuild, modules: Sequence[Path], directives: str) -> str:
    """The error of `nginx -t` with these modules and directives; empty when it accepts them."""
    loads = "".join(f"load_module {path};\n" for path in modules if path != Path())
    config = f"{loads}pid probe.pid;\nerror_log stderr;\nevents {{}}\nhttp {{ access_log off; {directives} }}\n"
    with tempfile.TemporaryDirectory(prefix="deepsched-") as folder:
        (Path(folder) / "probe.conf").write_text(config, encoding="utf-8")
        try:
            _run([str(build.binary), "-t", "-p", folder, "-c", "probe.conf"])
        except (OSError, subprocess.SubprocessError) as error:
            return _reason(error)
    return ""


def _run(command: Sequence[str], text: str = "") -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=20, check=True).stdout


def _reason(error: Exception) -> str:
    """The first line that the program printed, without NGINX's time, level and process."""
    lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
    return re.sub(r"^.*\[emerg\] (\d+#\d+: )?", "", lines[0]) if lines else type(error).__name__


def _amount(name: str, free: int, *, least: int, good: int, remedy: str) -> Finding:
    level: Level = "ok" if free >= good else "poor" if free >= least else "missing"
    return Finding(
        name,
        level,
        f"{free / _GB:.1f} GB free",
        "" if level == "ok" else f"{good / _GB:g} GB are recommended; {remedy}",
    )


_MARKS = {"ok": ("✓", "green"), "poor": ("!", "yellow"), "missing": ("✗", "bold red")}


class DoctorOptions(PreflightOptions):
    """What is checked: the NGINX of a status URL, or this machine."""


_FOR_LEARNING = ("Ray", "C compiler", "engine cache")
_LEARN = f"for training and the demo: pip install 'deep-scheduling[{TRAIN}]'"


def diagnose(binary: str = "nginx") -> list[Finding]:
    """All findings, in about 3 s. What only learning needs is not missing from the small installation."""
    first = [python(), packages(), ray(), compiler(), engine_cache(), *nginx(binary)]
    findings = [*first, ports(), cores(), memory(), shared_memory(), disk(), open_files()]
    if not is_small():
        return findings
    return [
        replace(found, level="poor", remedy=_LEARN)
        if found.name in _FOR_LEARNING and found.level == "missing"
        else found
        for found in findings
    ]


def require(findings: Sequence[Finding]) -> None:
    """Raises MissingToolError, with every remedy, when the demo cannot run."""
    missing = [finding for finding in findings if finding.level == "missing"]
    if missing:
        what = "; ".join(f"{finding.name}: {finding.found}" for finding in missing)
        remedy = "; ".join(dict.fromkeys(finding.remedy for finding in missing if finding.remedy))
        raise MissingToolError(what, remedy=remedy)


def table(findings: Sequence[Finding], title: str = "deepsched doctor") -> Table:
    """The findings as a table."""
    drawn = Table(title=Text(title), title_justify="left")
    for column in ("", "part", "found", "remedy"):
        drawn.add_column(column, overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.level]
        drawn.add_row(Text(mark, style=style), Text(finding.name), Text(finding.found), Text(finding.remedy))
    return drawn


def run(options: DoctorOptions) -> int:
    """Prints the table; the exit status.

    For this machine 0 when the demo (in the small installation: steering) can run, else 2. For the NGINX of the status
    URL 0 when it can be watched and, where a way is given, steered, else 1.
    """
    return _see_nginx(options) if options.status_url else _see_machine(options)


def _see_nginx(options: DoctorOptions) -> int:
    levels: dict[str, Level] = {"ok": "ok", "warn": "poor", "fail": "missing"}
    findings = [Finding(each.name, levels[each.level], each.what, each.remedy) for each in preflight(options)]
    out = console_out()
    out.print(table(findings, without_credentials(f"deepsched doctor --status-url {options.status_url}")))
    wrong = [finding.name for finding in findings if finding.level == "missing"]
    out.print("Everything that is needed is there." if not wrong else f"To be corrected first: {', '.join(wrong)}.")
    return 1 if wrong else 0


def _see_machine(options: DoctorOptions) -> int:
    findings = diagnose(options.nginx)
    out = console_out()
    out.print(table(findings))
    missing = [finding.name for finding in findings if finding.level == "missing"]
    what, command = ("Steering", "deepsched steer run --help") if is_small() else ("The demo", "make demo")
    out.print(f"{what} can run: {command}" if not missing else f"{what} cannot run yet: {', '.join(missing)}.")
    return EXIT_USER_ERROR if missing else 0


VERB = Verb(
    "doctor",
    "deepsched doctor --status-url http://127.0.0.1:8081/status/format/json --nginx-conf /etc/nginx/nginx.conf",
    DoctorOptions,
    run,
    common=("status_url", "groups", "nginx_conf", "control_url", "token_file", "load_balancers", "nginx"),
)


if __name__ == "__main__":
    sys.exit(run_verb(VERB))
