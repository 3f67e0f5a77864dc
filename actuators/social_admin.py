"""The owner's side door of one stand-in server: plays plans, changes behaviour over time, tells counters."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from actuators.errors import ConfigError, closest
from actuators.script import Behaviour
from actuators.social_behaviours import behaviours_from_json, check
from actuators.social_capacity import ServerPlan
from actuators.social_http import Exchange
from actuators.social_listener import Listener
from actuators.social_service import SocialService


class Admin:
    """Handles the exchanges of the admin listener.

    POST /play: ``{"plan": ServerPlan, "start_s": time.monotonic() of its time 0}``.
    POST /behaviours: see `behaviours_from_json`; seconds count from now, the plan's own are dropped.
    GET /counters: what `SocialService.status` says.
    """

    def __init__(self, service: SocialService, public: Listener) -> None:
        self._service, self._public = service, public
        self._script: asyncio.Task[None] | None = None
        self._routes = {"/play": self._play, "/behaviours": self._behave, "/counters": self._counters}

    def handle(self, exchange: Exchange) -> None:
        """Answers 200, or 400 and 404 with a JSON error."""
        route = self._routes.get(exchange.path)
        if route is None:
            exchange.fail(404, f"unknown path '{exchange.path}'; {closest(exchange.path, self._routes)}")
            return
        try:
            route(exchange)
        except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            exchange.fail(400, str(error) if isinstance(error, ConfigError) else repr(error))

    def close(self) -> None:
        if self._script is not None:
            self._script.cancel()

    def _play(self, exchange: Exchange) -> None:
        message = json.loads(exchange.data)
        plan, start_s = ServerPlan.from_json(message["plan"]), float(message["start_s"])
        behaviours = check((Behaviour(0.0, 0), *plan.behaviours))
        self._service.play(plan)
        self._begin(exchange, behaviours, start_s)

    def _behave(self, exchange: Exchange) -> None:
        self._begin(exchange, behaviours_from_json(json.loads(exchange.data)), time.monotonic())

    def _counters(self, exchange: Exchange) -> None:
        exchange.answer(200, json.dumps(self._service.status()).encode())

    def _begin(self, exchange: Exchange, behaviours: Sequence[Behaviour], start_s: float) -> None:
        self.close()
        self._script = asyncio.get_running_loop().create_task(self._follow(exchange, behaviours, start_s))

    async def _follow(self, exchange: Exchange, behaviours: Sequence[Behaviour], start_s: float) -> None:
        """Answers when what holds from now on is in force, then brings the later changes."""
        answered = False
        for behaviour in behaviours:
            wait_s = start_s + behaviour.at_s - time.monotonic()
            if wait_s > 0:
                if not answered:
                    exchange.answer(200, b"{}")
                    answered = True
                await asyncio.sleep(wait_s)
            await self._apply(behaviour)
        if not answered:
            exchange.answer(200, b"{}")

    async def _apply(self, behaviour: Behaviour) -> None:
        self._service.behave(behaviour)
        if behaviour.refused:
            self._service.crash(self._public.close())
        else:
            await self._public.open()


def to_message(plan: ServerPlan, start_s: float) -> dict[str, Any]:
    """Body of POST /play."""
    return {"plan": plan.to_json(), "start_s": start_s}
