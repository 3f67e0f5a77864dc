"""Fixtures that several integration tests share."""

from tests.support.social_site import server, servers

__all__ = ["server", "servers"]
