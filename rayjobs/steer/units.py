"""`deepsched steer units`: systemd units for a controller and its watchdog, with the options that they run with."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from actuators.credentials import without_credentials
from actuators.errors import ConfigError
from actuators.files import writable_folder, write_atomic
from actuators.options import Never
from rayjobs.cli.config import dump_yaml
from rayjobs.cli.console import console_out
from rayjobs.cli.main import Verb
from rayjobs.steer.options import SteerOptions, WatchdogOptions

_UNIT = """\
[Unit]
Description={description}
After={after}
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
User={user}
ExecStart={command}
Environment=OMP_NUM_THREADS=1
Restart=on-failure
RestartSec={restart_s}
TimeoutStopSec=30
UMask=0077
{hardening}

[Install]
WantedBy=multi-user.target
"""
_ALWAYS = ("ProtectHome=read-only", "PrivateTmp=yes", "ProtectControlGroups=yes")
_ALONE = (
    "NoNewPrivileges=yes", "PrivateDevices=yes", "ProtectKernelTunables=yes", "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes", "ProtectClock=yes", "ProtectHostname=yes", "RestrictSUIDSGID=yes",
    "RestrictNamespaces=yes", "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX", "LockPersonality=yes",
    "SystemCallArchitectures=native",
)  # fmt: skip
"""Every one of them also takes away what sudo needs."""


OWN_USER = "deepsched"
"""The user that is made for the services and removed with them; any other one is the administrator's."""


class UnitsOptions(SteerOptions):
    """What the controller runs with, and where its units are written."""

    only: ClassVar = {
        **SteerOptions.only,
        "duration_s": Never("a service runs until it is stopped"),
        "actor": Never("Ray restarts an actor, systemd a service: run one of them"),
        "scenario": Never("a service steers an NGINX of yours"),
        "seed": Never("a service steers an NGINX of yours"),
        "live": Never("a service steers an NGINX of yours"),
    }

    out: Path = Path("deepsched-units")
    """Folder for `deepsched-steer.service`, `deepsched-watchdog.service` and the options of both; it has to stay."""
    user: str = Field(OWN_USER, pattern=r"^[a-z_][a-z0-9_-]*\$?$")
    """User that both run as; it must be able to write the controller's folder and, to change weights by reload, the
    configuration."""
    watchdog_after_s: float = Field(30.0, gt=0)
    """Silence of the controller after which the watchdog restores the first weights."""


def run(options: UnitsOptions) -> int:
    """Writes the files and prints the commands that install, start and remove them. Raises ConfigError."""
    if options.nginx_conf is None and not options.control_url:
        raise ConfigError("no NGINX is given", where="steer units", remedy="give --nginx-conf or --control-url")
    _check_no_password(options)
    out = writable_folder(options.out)
    steer, watchdog = _controller(options), _watchdog(options)
    for path in (out, steer.folder, steer.bundle, Path(sys.executable)):
        _check_word(path)
    files = {
        "deepsched-steer.yaml": dump_yaml(steer),
        "deepsched-watchdog.yaml": dump_yaml(watchdog),
        "deepsched-steer.service": unit("run", "Deep Scheduling, the controller of NGINX", out, steer, options.user),
        "deepsched-watchdog.service": unit("watchdog", "Deep Scheduling, the watchdog", out, steer, options.user),
    }
    for name, content in files.items():
        write_atomic(out / name, content)
    for line in commands(out, steer, options.user):
        console_out().print(line, markup=False, soft_wrap=True, highlight=False)
    return 0


def unit(subcommand: str, description: str, out: Path, steer: SteerOptions, user: str) -> str:
    """The text of one unit; it may write the controller's folder and what a reload changes, and nothing else."""
    watches = subcommand == "watchdog"
    name = "watchdog" if watches else "steer"
    program = [sys.executable, "-m", "rayjobs.steer", subcommand, "--config", str(out / f"deepsched-{name}.yaml")]
    return _UNIT.format(
        description=description,
        after="network-online.target nginx.service" + (" deepsched-steer.service" if watches else ""),
        user=user,
        command=shlex.join(program),
        # Before the first controller the watchdog has nothing to watch and ends.
        restart_s=5 if watches else 2,
        hardening="\n".join(_hardening(steer)),
    )


def commands(out: Path, steer: SteerOptions, user: str) -> list[str]:
    """What an administrator types, in this order; docs/your-nginx.md#as-a-service explains it."""
    folder, conf, ours = steer.folder, steer.nginx_conf, user == OWN_USER
    names = ("deepsched-steer", "deepsched-watchdog")
    # Files of a folder that was used before, as by `onboard`, belong to another user. systemd itself changes the owner
    # of a folder below /var/lib.
    made = f"sudo install -d -m 700 -o {user} {folder} && sudo chown -R {user} {folder}"
    made = "" if _state_directory(folder) else made
    return [
        "# install and start",
        *([f"sudo useradd --system --no-create-home --shell /usr/sbin/nologin {user}"] if ours else []),
        *([made] if made else []),
        f"sudo chgrp -R {user} {steer.bundle} && sudo chmod -R g+rX {steer.bundle}",
        f"sudo systemctl enable --now {' '.join(str(out / f'{name}.service') for name in names)}",
        "# remove",
        f"sudo -u {user} {shlex.join([sys.executable, '-m', 'rayjobs.steer', 'revert', '--folder', str(folder)])}",
        f"sudo systemctl disable --now {' '.join(names)}",
        *([] if conf is None else [f"sudo find {conf.parent} -name '.*.deepsched*' -delete"]),
        f"sudo rm -r {out} {folder}",
        *([f"sudo userdel {user}"] if ours else []),
    ]


def _hardening(steer: SteerOptions) -> list[str]:
    writable = [str(steer.folder)]
    strict, sudo = "strict", False
    if steer.nginx_conf is not None:
        # `nginx -t` opens logs, its pid file and temporary folders below /var and /run.
        strict, sudo = "full", "sudo" in (*steer.reload.test_command[:1], *steer.reload.reload_command[:1])
        writable.append(str(steer.nginx_conf.parent))
    state = _state_directory(steer.folder)
    lines = [f"ProtectSystem={strict}", *_ALWAYS, *(() if sudo else _ALONE)]
    if state:
        return [*lines, f"StateDirectory={state}", "StateDirectoryMode=0700", *_writable(writable[1:])]
    return [*lines, *_writable(writable)]


def _writable(paths: Sequence[str]) -> list[str]:
    return [f"ReadWritePaths={' '.join(paths)}"] if paths else []


def _state_directory(folder: Path) -> str:
    """The folder's name when systemd can make it below /var/lib; else empty."""
    return str(folder.relative_to("/var/lib")) if folder.is_relative_to("/var/lib") else ""


def _controller(options: UnitsOptions) -> SteerOptions:
    return SteerOptions(**_given(options, SteerOptions))


def _watchdog(options: UnitsOptions) -> WatchdogOptions:
    values = _given(options, WatchdogOptions)
    return WatchdogOptions(**{**values, "watchdog_after_s": options.watchdog_after_s})


def _given(options: UnitsOptions, kind: type[SteerOptions | WatchdogOptions]) -> dict[str, Any]:
    """The values that were given, for a class that shares the options; paths from the root, for a service."""
    values = {}
    for name in options.model_fields_set & kind.model_fields.keys() | {"folder"}:
        value = getattr(options, name)
        values[name] = value.expanduser().absolute() if isinstance(value, Path) else value
    return values


def _check_no_password(options: UnitsOptions) -> None:
    for name in ("status_url", "control_url", "serve_url"):
        if without_credentials(getattr(options, name)) != getattr(options, name):
            remedy = "let its location take this machine without one: satisfy any; allow 127.0.0.1; deny all;"
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError("files of a service keep no password of a URL", where=flag, remedy=remedy)


def _check_word(path: Path) -> None:
    if not re.fullmatch(r"[\w@.,:=+/-]+", str(path)):
        raise ConfigError(
            "systemd would not take this path as one word", where=str(path), remedy="use one without blanks, % and $"
        )


UNITS = Verb(
    name="steer units",
    example="deepsched steer units /etc/deepsched --bundle /etc/deepsched/bundle --nginx-conf /etc/nginx/nginx.conf"
    " --status-url http://127.0.0.1:8081/status/format/json --folder /var/lib/deepsched",
    options=UnitsOptions,
    run=run,
    shares=True,
    positional=("out",),
    common=(
        "bundle", "mode", "nginx_conf", "status_url", "control_url", "token_file", "folder", "interval_s",
        "metrics_port", "user", "watchdog_after_s",
    ),
)  # fmt: skip
