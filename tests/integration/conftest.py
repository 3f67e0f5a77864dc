"""Fixtures that several integration tests share."""

from social_site import server, servers

__all__ = ["server", "servers"]
