"""How long a body may take and how many large ones are in memory: slow and many clients cost others nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import Message, Receive

from actuators.processes.system import release_memory

SMALL_BYTES = 100_000
"""Bodies up to this size are read at once and answered on the event loop: handing them to a thread takes longer."""
LARGE_AT_ONCE = 4
"""Larger bodies in memory at once; each has at most `max_body_bytes`."""
BODY_S = 15.0
"""Longest time in which a body must arrive."""
ROOM_S = 5.0
"""Longest time that a large body waits for others."""
RELEASE_S = 0.5
"""How long after the answer to a large body its memory goes back to the system."""


class Refused(Exception):  # noqa: N818 - an answer to the client, not an error of the server
    """The request is answered with this status and sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class Body:
    """A whole body; `large` when it has one of the places of `Intake`."""

    data: bytes
    large: bool

    def replayed(self, receive: Receive) -> Receive:
        """The body as one message, then what `receive` gives: the end of the connection."""
        messages: list[Message] = [{"type": "http.request", "body": self.data, "more_body": False}]

        async def next_message() -> Message:
            return messages.pop() if messages else await receive()

        return next_message


class Intake:
    """Reads bodies; belongs to one event loop.

    Args:
        most_bytes: longest body.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._places = asyncio.Semaphore(LARGE_AT_ONCE)

    async def read(self, receive: Receive) -> Body | None:
        """The body, to be given to `release` after the answer; None when the client has gone.

        Raises Refused: 413 for a body that is too long, 408 for one that is too slow, 503 when there is no room.
        """
        data, large = bytearray(), False
        try:
            async with asyncio.timeout(BODY_S) as deadline:
                while (message := await receive())["type"] != "http.disconnect":
                    data += message.get("body", b"")
                    if len(data) > self._most_bytes:
                        raise self.too_long()
                    if not message.get("more_body", False):
                        body = Body(bytes(data), large)
                        large = False  # the place is the caller's now
                        return body
                    if len(data) > SMALL_BYTES and not large:
                        deadline.reschedule(None)
                        await self._take_place()
                        large = True
                        deadline.reschedule(asyncio.get_running_loop().time() + BODY_S)
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {BODY_S:g} s") from None
        finally:
            if large:
                self._places.release()
        return None

    def release(self, body: Body) -> None:
        """The request is answered."""
        if body.large:
            self._places.release()
            # Later: the body and what was made of it are still referred to.
            asyncio.get_running_loop().call_later(RELEASE_S, release_memory)

    def too_long(self) -> Refused:
        """The refusal of a body that is longer than allowed."""
        return Refused(413, f"the body is longer than {self._most_bytes} bytes")

    async def _take_place(self) -> None:
        try:
            await asyncio.wait_for(self._places.acquire(), ROOM_S)
        except TimeoutError:
            raise Refused(503, f"{LARGE_AT_ONCE} other large requests are in work; send it again") from None
