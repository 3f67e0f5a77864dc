"""What `deepsched onboard` leaves in the folder for `deepsched steer`: bundle, NGINX and statistics, never a token."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from actuators.errors import ConfigError
from actuators.external.nginx import ExternalNginxOptions
from actuators.files import write_private
from actuators.options import Options

FILE = "onboarding.json"


class Handover(Options):
    """Values for options of `deepsched steer` that are not given."""

    bundle: Path
    """Folder of the bundle; relative to the folder of this file."""
    nginx_conf: Path | None = None
    """Configuration whose weights change by reload."""
    control_url: str = ""
    """Control endpoint, for changes in memory."""
    token_file: Path | None = None
    """File with its token."""
    status_url: str = ""
    """Statistics; empty when their URL has credentials."""
    groups: tuple[str, ...]
    """Groups of the bundle."""
    workers: float | None = None
    """Requests that a server serves at once, for a bundle that sets service times."""
    interval_s: float
    """Control interval that the bundle was made for."""
    reload: ExternalNginxOptions | None = None
    """How that NGINX is tested and reloaded."""

    def write(self, folder: Path) -> None:
        """Writes the file for its owner only, in one step. Raises OSError."""
        write_private(folder / FILE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Handover | None:
        """What the folder has; None without the file. Raises ConfigError for a file that is not ours."""
        path = folder / FILE
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
            raise ConfigError(
                f"cannot be used: {reason}", where=str(path), remedy="repeat deepsched onboard"
            ) from error
        return found.model_copy(update={"bundle": folder.absolute() / found.bundle})

    def completed(self, given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        """The given values, and these for what is not given; what is given to reach NGINX another way wins."""
        other_way = {
            "control_url": ("nginx_conf", "reload"),
            "nginx_conf": ("control_url", "token_file", "workers"),
        }
        left_out = {name for way, names_of_other in other_way.items() if given.get(way) for name in names_of_other}
        own = {name: getattr(self, name) for name in set(names) & set(type(self).model_fields) - left_out}
        values = {name: value for name, value in own.items() if value not in (None, "", ())}
        if self.reload is not None and "reload" in values:
            values["reload"] = {**self.reload.model_dump(exclude_defaults=True), **given.get("reload", {})}
        return {**values, **{name: value for name, value in given.items() if name != "reload" or name not in values}}
