"""An endpoint of NGINX in Lua that serves a text: anyone reads it, changes need a token."""

from __future__ import annotations

from actuators.errors import ActuationError
from actuators.http_client import KeptConnection, NoResponseError

_TIMEOUT_S = 2.0


class RefusedError(ActuationError):
    """NGINX answered with another status than 200."""


class TextEndpoint:
    """One endpoint over a kept connection.

    Args:
        url: ``http://HOST:PORT/PATH``.
        token: that changes need; it is in the rendered configuration.
        where: the option that the address comes from, for errors.

    Raises:
        ConfigError: `url` is not an HTTP address.
    """

    def __init__(self, url: str, token: str, where: str) -> None:
        self._connection = KeptConnection(url, connect_timeout_s=_TIMEOUT_S, read_timeout_s=_TIMEOUT_S, where=where)
        self.url, self._token = url, token

    def request(self, method: str, body: str = "") -> str:
        """The text of the answer. Raises ActuationError for none, RefusedError for one of another status than 200."""
        # A text is put in force whole, so that a repeated call has the same effect as one.
        try:
            status, answer = self._connection.request(method, body.encode(), {"X-Deepsched-Token": self._token})
        except NoResponseError as error:
            raise ActuationError(f"no answer: {error}", where=self.url, remedy="is NGINX running?") from error
        text = answer.decode(errors="replace")
        if status != 200:
            remedy = "give the token of that NGINX" if status == 403 else ""
            raise RefusedError(text.strip()[:200] or f"HTTP status {status}", where=self.url, remedy=remedy)
        return text

    def close(self) -> None:
        self._connection.close()
