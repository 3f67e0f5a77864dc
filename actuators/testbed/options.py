"""Options of a live testbed; apart from the parts because `--help` must not import them."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from actuators.errors import ConfigError
from actuators.load.engine import LoadOptions
from actuators.nginx.config import NginxOptions
from actuators.options import Options
from actuators.social_network.store import SocialNetworkOptions
from actuators.statistics.reader import CollectOptions


class LiveOptions(Options):
    """Options of every part of a live testbed."""

    load: LoadOptions = LoadOptions()
    """The load engine."""
    service: SocialNetworkOptions = SocialNetworkOptions()
    """The stand-in servers and their database."""
    nginx: NginxOptions = NginxOptions()
    """The NGINX in front."""
    collect: CollectOptions = CollectOptions()
    """The reader of its statistics."""

    @model_validator(mode="after")
    def _knows_its_users(self) -> Self:
        if self.load.users > self.service.users:
            raise ConfigError(
                f"{self.load.users} users in the requests, {self.service.users} in the database", where="load.users",
                remedy=f"set load.users to at most {self.service.users}",
            )  # fmt: skip
        return self
