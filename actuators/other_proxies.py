"""How options name a load balancer that is not an NGINX."""

from __future__ import annotations

from actuators import envoy_admin, haproxy_api


def names_another(url: str) -> bool:
    """Whether one URL names all of a load balancer: ``haproxy:PATH`` or ``envoy:http://HOST:PORT``."""
    return url.startswith((haproxy_api.SCHEME, envoy_admin.SCHEME))
