"""Options of a live testbed; apart from the parts because `--help` must not import them."""

from __future__ import annotations

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
