"""Checks of a way to change weights, by reload or in memory; they read and change nothing."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from actuators.contract.topology import Topology
from actuators.envoy_admin import admin_of
from actuators.errors import ActuationError, ConfigError, DeepSchedError, MissingToolError
from actuators.external.config_reader import ParsedConfig
from actuators.external.envoy import EnvoyActuator
from actuators.external.haproxy import HaproxyActuator
from actuators.external.master import master_process
from actuators.external.nginx import ExternalNginxOptions, left_beside
from actuators.files import read_token
from actuators.haproxy_api import RuntimeApi, socket_of
from actuators.nginx.control_endpoint import MemoryControl, topology_from_text
from actuators.nginx.detect import INSTALL, detect
from actuators.nginx.reload import COMMAND_TIMEOUT_S, run_short
from actuators.statistics.names import server_names
from actuators.statistics.vts import Snapshot

Level = Literal["ok", "warn", "fail"]
_FIXED = frozenset(("hash", "ip_hash", "sticky", "sticky_route", "jvm_route"))
_METHODS = frozenset((*_FIXED, "least_conn", "least_time", "random", "fair"))
_BY_WEIGHT = {"HAProxy": ("roundrobin", "leastconn", "random"), "Envoy": ("ROUND_ROBIN", "LEAST_REQUEST")}
"""Methods of others in which weights decide, and can change while it runs; the other ones are static, tie requests to
servers or ignore weights (https://docs.haproxy.org/2.8/configuration.html#4.2-balance)."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        level: `warn` works with a restriction; `fail` must be corrected first.
        what: one sentence without a full stop.
        remedy: what to do about it; empty for `ok`.
    """

    name: str
    level: Level
    what: str
    remedy: str = ""

    def softer(self) -> Check:
        """The same as a warning."""
        return replace(self, level="warn")


def failed(name: str, error: DeepSchedError) -> Check:
    """The check that ended with this error."""
    where = f" ({error.where})" if error.where else ""
    return Check(name, "fail", error.what + where, error.remedy or "correct it, and check again")


def method_check(config: ParsedConfig, topology: Topology, *, named: bool) -> Check:
    """Whether weights decide in these groups: other methods tie a client or an address to a server.

    Args:
        named: whether the user chose these groups; else the others can be steered without them.
    """
    found = {
        group.name: " ".join(setting.name for setting in config.blocks[group.name].settings if setting.name in _METHODS)
        for group in topology.groups
    }
    fixed = [f"{name} ({method})" for name, method in found.items() if set(method.split()) & _FIXED]
    if fixed:
        steerable = [name for name, method in found.items() if not set(method.split()) & _FIXED]
        remedy = f"leave them out: --groups {','.join(steerable)[:200]}" if steerable else "change their method"
        what = f"weights cannot steer {', '.join(fixed)[:200]}: the method ties requests to servers"
        return Check("methods", "warn" if steerable and not named else "fail", what, remedy)
    flat = [name for name, method in found.items() if "random" in method]
    if flat:
        what = f"weights have little effect in {', '.join(flat)[:120]} while it is idle: random two"
        return Check("methods", "warn", what, "use round robin or least_conn to steer it well")
    words = sorted({method or "round robin" for method in found.values()})
    return Check("methods", "ok", f"{', '.join(words)}: weights decide")


def sharing_check(config: ParsedConfig, topology: Topology) -> Check:
    """Whether the workers of NGINX balance together."""
    name = "workers"
    alone = [group.name for group in topology.groups if not config.has_zone(group.name)]
    if config.workers == 1 or not alone:
        return Check(name, "ok", f"{config.workers}, which share the state of every upstream")
    what = f"{config.workers} balance {', '.join(alone)[:200]} each by what it sent itself"
    return Check(name, "warn", what, "write zone NAME 64k; into the upstreams: least_conn then sees all requests")


def names_check(topology: Topology, snapshot: Snapshot) -> Check:
    """Whether every server line has an entry of its own in the statistics."""
    names = server_names(topology, snapshot)
    missing = [group.name for group in topology.groups if names.groups[group.name] not in snapshot.groups]
    if missing and snapshot.source != "prometheus":
        remedy = "give the status URL and the configuration of the same NGINX, and reload it after changes"
        return Check("names", "fail", f"the statistics do not show {', '.join(missing)[:200]}", remedy)
    if names.problems and snapshot.source != "prometheus":
        more = f" (and {len(names.problems) - 1} more)" if len(names.problems) > 1 else ""
        return Check("names", "fail", names.problems[0] + more, "write the address in the configuration, once")
    if names.aliases:
        what = f"{'; '.join(names.aliases)[:200]}, and are taken for different ones"
        return Check("names", "warn", what, "write one name for it in every upstream")
    several = [server for (_, server), entries in names.entries.items() if len(entries) > 1]
    if several:
        what = f"{', '.join(several)[:200]}: several addresses behind one line, which share its weight"
        return Check("names", "warn", what, "write one line for each address to weigh them apart")
    return Check("names", "ok", "every server line has its entry in the statistics")


def reload_checks(config: ParsedConfig, options: ExternalNginxOptions) -> list[Check]:
    """Whether the weights of this configuration can be tested, written and reloaded by this user; and Lua."""
    try:
        build = detect(options.binary)
    except MissingToolError as error:
        return [failed("nginx -t", error)]
    master: psutil.Process | ActuationError
    try:
        master = master_process(options.pid_file or config.pid_file or Path("/run/nginx.pid"), config.main)
    except ActuationError as error:
        master = error
    lua = (
        Check("weights in memory", "ok", "this NGINX has the Lua module: weights can change without a reload")
        if build.has_lua
        else Check(
            "weights in memory", "warn", "no Lua module: weights change by reload", f"for changes in memory: {INSTALL}"
        )
    )
    return [_files(config), _test(config, options, str(build.binary), master), _signal(options, master), lua]


def control_checks(control_url: str, token_file: Path | None, groups: Sequence[str] = ()) -> list[Check]:
    """Whether the control endpoint answers, which groups it has, and whether the token can be read; of an HAProxy or
    Envoy, whether its socket or files allow changes, and whether weights decide there.

    Args:
        groups: those of an HAProxy or Envoy that the user chose; all when empty, of which some may be unfit.
    """
    if (path := socket_of(control_url)) is not None:
        return _haproxy(path, groups)
    if (admin := admin_of(control_url)) is not None:
        return _envoy(admin, groups)
    try:
        topology = topology_from_text(MemoryControl.read(control_url))
    except (ActuationError, ConfigError) as error:
        check = failed("control", error)
        return [check if error.remedy else replace(check, remedy="give the URL that deepsched weights snippet printed")]
    names = ", ".join(group.name for group in topology.groups)
    checks = [Check("control", "ok", f"answers, for the upstreams {names[:200]}")]
    if token_file is None:
        remedy = "give --token-file: the file beside the snippet"
        return [*checks, Check("token", "warn", "without a token weights can be read and not changed", remedy)]
    try:
        read_token(token_file)
    except ConfigError as error:
        return [*checks, failed("token", error)]
    return [*checks, Check("token", "ok", "can be read, by its user only")]


def _haproxy(path: Path, groups: Sequence[str]) -> list[Check]:
    try:
        actuator, level = HaproxyActuator(path, groups), RuntimeApi(path).ask("show cli level")
        methods = actuator.methods()
    except (ActuationError, ConfigError) as error:
        return [failed("control", error)]
    found = _answers("HAProxy answers, for the backends", actuator)
    if level != "admin":
        # Such a socket does not tell the methods.
        what, remedy = f"the socket's level is {level[:40]}: weights can be read and not changed", "write `level admin`"
        return [*found, Check("level", "warn", what, f"{remedy} behind its `stats socket`, and reload HAProxy")]
    return [*found, Check("level", "ok", "the socket allows changes"), _by_weight("HAProxy", methods, bool(groups))]


def _answers(words: str, actuator: HaproxyActuator | EnvoyActuator) -> list[Check]:
    """Its groups, and those that are left out."""
    names = ", ".join(group.name for group in actuator.topology.groups)
    left_out = [failed("control", reason).softer() for reason in actuator.left_out.values()]
    return [Check("control", "ok", f"{words} {names[:200]}"), *left_out]


def _by_weight(program: str, methods: Mapping[str, str], named: bool) -> Check:
    """Whether weights decide in these groups, as `method_check`."""
    good = _BY_WEIGHT[program]
    fixed = [f"{name} ({method})" for name, method in methods.items() if method not in good]
    if not fixed:
        return Check("methods", "ok", f"{', '.join(sorted(set(methods.values())))}: weights decide")
    steerable = [name for name, method in methods.items() if method in good]
    what = f"weights cannot steer {', '.join(fixed)[:200]}: it takes no weights at run time, or they do not decide"
    remedy = f"balance by {', '.join(good)}"
    remedy += f", or leave them out: --groups {','.join(steerable)[:200]}" if steerable else ""
    return Check("methods", "warn" if steerable and not named else "fail", what, remedy)


def _envoy(url: str, groups: Sequence[str]) -> list[Check]:
    try:
        actuator = EnvoyActuator(url, groups)
        sources, reasons = actuator.sources(), actuator.without_weights()
    except (ActuationError, ConfigError) as error:
        return [failed("control", error)]
    found = _answers("Envoy answers, for the clusters", actuator)
    found.append(_by_weight("Envoy", {name: source.policy for name, source in sources.items()}, bool(groups)))
    files = {source.file for name, source in sources.items() if name not in reasons and source.file is not None}
    if what := _kept_from(sorted(files)):
        return [*found, Check("files", "fail", what, "run as root or as the owner of the files")]
    if reasons:
        fixed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        level: Level = "warn" if files and not groups else "fail"
        remedy = "let Envoy read their servers from a file: type EDS with path_config_source; or name other --groups"
        return [*found, Check("files", level, f"weights can be read and not changed of {fixed[:300]}", remedy)]
    return [*found, Check("files", "ok", f"{len(files)} with endpoints can be written")]


def _files(config: ParsedConfig) -> Check:
    files = list(dict.fromkeys(line.file for line in config.servers))
    if what := _kept_from(files):
        return Check("files", "fail", what, "run as root or as their owner; see docs/your-nginx.md#rights")
    left = [path for each in (config.main.resolve(), *files) for path in left_beside(each)]
    closed = [str(path) for path in left if path.exists() and not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        what = f"what another user's run has left cannot be read or written: {', '.join(closed[:3])}"
        return Check("files", "fail", what, f"sudo chown $USER {' '.join(closed)[:300]}, for the user who steers")
    refused = [str(folder) for folder in _folders(config, files) if not os.access(folder, os.W_OK | os.X_OK)]
    if refused:
        what = f"folders of a lock and of the copies that `nginx -t` reads cannot be written: {', '.join(refused[:3])}"
        return Check("files", "fail", what, "run as root, or grant write access; see docs/your-nginx.md#rights")
    return Check("files", "ok", f"{len(files)} with server lines can be written")


def _folders(config: ParsedConfig, files: Sequence[Path]) -> list[Path]:
    """Those of the main file, of the files, and of all that include them: a test makes a copy beside each."""
    copied, size = {config.main, *files}, 0
    while size < len(copied):
        size = len(copied)
        copied |= {
            path for path, found in config.includers.items() if any(copied & set(each) for each in found.values())
        }
    return sorted({path.parent for path in copied} | {config.main.resolve().parent})


def _kept_from(files: Sequence[Path]) -> str:
    """Why this user cannot put a new file, which keeps its owner, in the place of one of these; empty when all can."""
    refused = [str(path) for path in files if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))]
    if refused:
        return f"cannot be written, or their folder cannot: {', '.join(refused[:3])}"
    others = [str(path) for path in files if os.geteuid() not in (0, path.stat().st_uid)]
    if others:
        return f"belong to another user, so that a changed file could not keep its owner: {', '.join(others[:3])}"
    return ""


def _test(
    config: ParsedConfig, options: ExternalNginxOptions, binary: str, master: psutil.Process | ActuationError
) -> Check:
    command = [*(options.test_command or (binary, "-t", "-q", "-c")), str(config.main)]
    try:
        done = run_short(command)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or f"no end within {COMMAND_TIMEOUT_S:g} s"
        return Check("nginx -t", "fail", f"{shlex.join(command)}: {reason}", "set reload.test_command")
    prefix = _argument([] if isinstance(master, ActuationError) else master.cmdline(), "-p")
    wanted = ["-p", prefix] if prefix and "-p" not in command else []
    if done.returncode != 0:
        words = " ".join((done.stderr or done.stdout).split())[-300:] or f"exit status {done.returncode}"
        return Check("nginx -t", "fail", f"{shlex.join(command)}: {words}", _test_remedy(options, binary, wanted))
    if wanted:
        what = f"NGINX runs with -p {prefix}, which the test lacks: relative paths may mean other files"
        return Check("nginx -t", "warn", what, _test_remedy(options, binary, wanted))
    return Check("nginx -t", "ok", f"accepts {config.main}")


def _test_remedy(options: ExternalNginxOptions, binary: str, wanted: Sequence[str]) -> str:
    if wanted:
        words = ",".join(
            (*options.test_command[:-1], *wanted, "-c") if options.test_command else (binary, *wanted, "-t", "-q", "-c")
        )
        return f"--set 'reload.test_command=[{words}]'"
    if os.geteuid() != 0 and not options.test_command:
        return (
            f"as root, or by sudo: --set 'reload.test_command=[sudo,-n,{binary},-t,-q,-c]' (docs/your-nginx.md#rights)"
        )
    return "correct what it names"


def _argument(words: Sequence[str], flag: str) -> str:
    """The word after a flag in the title of a master process, which is one text or several words."""
    flat = " ".join(words).split()
    return next((value for name, value in itertools.pairwise(flat) if name == flag), "")


def _signal(options: ExternalNginxOptions, master: psutil.Process | ActuationError) -> Check:
    name = "reload"
    command = list(options.reload_command)
    if command and shutil.which(command[0]) is None:
        return Check(name, "fail", f"'{command[0]}' is not a program", "correct reload.reload_command")
    if command[:1] == ["sudo"]:
        asked = ["sudo", "-n", "-l", *[word for word in command[1:] if word != "-n"]]
        allowed = _succeeds(asked)
        remedy = f"in /etc/sudoers.d/deepsched: USER ALL=(root) NOPASSWD: {shlex.join(asked[3:])}"
        return (
            Check(name, "ok", "sudo allows it") if allowed
            else Check(name, "fail", f"sudo does not allow {shlex.join(asked[3:])} without a password", remedy)
        )  # fmt: skip
    if command:
        return Check(name, "ok", f"by {shlex.join(command)}")
    if isinstance(master, ActuationError):
        return failed(name, master)
    try:
        os.kill(master.pid, 0)
    except PermissionError:
        remedy = "run as root, or --set 'reload.reload_command=[sudo,-n,/usr/sbin/nginx,-s,reload]'"
        return Check(name, "fail", f"process {master.pid} of NGINX belongs to {_owner(master)}", remedy)
    except ProcessLookupError:
        return Check(name, "fail", f"process {master.pid} of NGINX has ended", "start it")
    return Check(name, "ok", f"process {master.pid} takes signals of this user")


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _owner(process: psutil.Process) -> str:
    try:
        return process.username()
    except psutil.Error:
        return "another user"
