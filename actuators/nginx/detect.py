"""Detects the NGINX of this machine: version, Lua, nginx-module-vts. Starts and changes nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from actuators.errors import MissingToolError

INSTALL = "apt-get install -y nginx libnginx-mod-http-lua"
MODULE_DIRS = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/etc/nginx/modules", "/usr/local/nginx/modules")
_LUA_LIBRARIES = ("/usr/share/lua/5.1", "/usr/local/share/lua/5.1", "/usr/local/openresty/lualib")


@dataclass(frozen=True)
class NginxBuild:
    """One NGINX binary and its dynamic modules.

    Attributes:
        lua: modules to load for Lua, in order; empty when it is compiled in, None when it is missing.
        vts: module to load for vts; an empty path when it is compiled in, None when it is missing.
        lua_library: directory with resty/core.lua; None when it is on Lua's path.
    """

    binary: Path
    version: str
    lua: tuple[Path, ...] | None
    vts: Path | None
    lua_library: Path | None = None

    @property
    def has_lua(self) -> bool:
        return self.lua is not None

    @property
    def has_vts(self) -> bool:
        return self.vts is not None


def detect(binary: str = "nginx") -> NginxBuild:
    """Runs `nginx -V` and searches the module directories. Raises MissingToolError without an NGINX."""
    program = shutil.which(binary) or shutil.which(binary, path="/usr/sbin:/usr/local/sbin:/usr/local/nginx/sbin")
    if program is None:
        raise MissingToolError(f"no NGINX ('{binary}')", remedy=f"install it: {INSTALL}")
    try:
        about = subprocess.run([program, "-V"], capture_output=True, text=True, timeout=10, check=True).stderr
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingToolError(
            f"NGINX does not run: {error}", where=program, remedy=f"install it: {INSTALL}"
        ) from error
    version = re.search(r"nginx version: \S+?/([\d.]+)", about)
    modules = re.search(r"--modules-path=(\S+)", about)
    directories = [Path(d) for d in (modules.group(1) if modules else "", *MODULE_DIRS) if d]
    return NginxBuild(
        binary=Path(program),
        version=version.group(1) if version else "unknown",
        lua=_lua(about, directories),
        vts=_vts(about, directories),
        lua_library=next((Path(d) for d in _LUA_LIBRARIES if (Path(d) / "resty/core.lua").exists()), None),
    )


def need_lua(build: NginxBuild) -> tuple[Path, ...]:
    """The Lua modules to load. Raises MissingToolError with the command that installs them."""
    if build.lua is None:
        raise MissingToolError("NGINX has no Lua module", where=str(build.binary), remedy=f"install it: {INSTALL}")
    return build.lua


def _lua(about: str, directories: list[Path]) -> tuple[Path, ...] | None:
    module = _find(directories, "ngx_http_lua_module.so")
    if module is not None:
        kit = _find(directories, "ndk_http_module.so")
        return (kit, module) if kit else (module,)
    return () if re.search(r"--add-module=\S*(lua-nginx-module|ngx_lua)", about) else None


def _vts(about: str, directories: list[Path]) -> Path | None:
    module = _find(directories, "ngx_http_vhost_traffic_status_module.so")
    if module is not None:
        return module
    return Path() if re.search(r"--add-module=\S*nginx-module-vts", about) else None


def _find(directories: list[Path], name: str) -> Path | None:
    return next((directory / name for directory in directories if (directory / name).exists()), None)
