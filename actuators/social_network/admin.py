"""The admin endpoint of one stand-in server: plays plans, changes behaviour over time, reports counters.

Also the patterns of behaviour for experiments by hand; scenarios (`envs.scenarios.catalogue`) have their own.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from actuators.contract.script import Behaviour
from actuators.errors import ConfigError, closest
from actuators.social_network.capacity import ServerPlan
from actuators.social_network.http_protocol import Exchange, Listener
from actuators.social_network.service import SocialService

Behaviours = tuple[Behaviour, ...]
MAX_CHANGES = 100_000
"""Most changes of behaviour that a pattern may have."""
_MAY_BE_ZERO = ("phase_s", "error_service_s")


class Admin:
    """Handles the exchanges of the admin listener.

    POST /play: ``{"plan": ServerPlan, "start_s": time.monotonic() of its time 0}``.
    POST /behaviours: see `behaviours_from_json`; seconds count from now, the plan's own are dropped.
    GET /counters: see `SocialService.status`.
    """

    def __init__(self, service: SocialService, public: Listener) -> None:
        self._service, self._public = service, public
        self._script: asyncio.Task[None] | None = None
        self._routes = {"/play": self._play, "/behaviours": self._behave, "/counters": self._counters}

    def handle(self, exchange: Exchange) -> None:
        """Responds with 200, or with 400 or 404 and a JSON error."""
        route = self._routes.get(exchange.path)
        if route is None:
            exchange.fail(404, f"unknown path '{exchange.path}'; {closest(exchange.path, self._routes)}")
            return
        try:
            route(exchange)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, ConfigError) as error:
            exchange.fail(400, str(error) if isinstance(error, ConfigError) else repr(error))

    def close(self) -> None:
        if self._script is not None:
            self._script.cancel()

    def _play(self, exchange: Exchange) -> None:
        message = json.loads(exchange.data)
        plan, start_s = ServerPlan.from_json(message["plan"]), float(message["start_s"])
        behaviours = check((Behaviour(0.0, 0), *plan.behaviours))
        self._service.play(plan)
        self._begin(exchange, behaviours, start_s, plan.stages)

    def _behave(self, exchange: Exchange) -> None:
        self._begin(exchange, behaviours_from_json(json.loads(exchange.data)), time.monotonic())

    def _counters(self, exchange: Exchange) -> None:
        exchange.answer(200, json.dumps(self._service.status()).encode())

    def _begin(self, exchange: Exchange, behaviours: Sequence[Behaviour], start_s: float, stages: str = "") -> None:
        self.close()
        self._script = asyncio.get_running_loop().create_task(self._follow(exchange, behaviours, start_s, stages))

    async def _follow(self, exchange: Exchange, behaviours: Sequence[Behaviour], start_s: float, stages: str) -> None:
        """Responds when the present behaviour is in force, then applies the later ones."""
        answered = False
        if stages:
            try:
                await self._service.reach_stages(stages)
            except OSError as error:
                exchange.fail(400, f"the stages at {stages} do not answer: {error}")
                return
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


def steps(speeds: list[float], step_s: float, server: int = 0) -> Behaviours:
    """Interference in steps: each speed holds for `step_s` seconds."""
    changes = [Behaviour(number * step_s, server, speed) for number, speed in enumerate(speeds)]
    return (*changes, Behaviour(len(speeds) * step_s, server))


def telegraph(
    speed: float, duration_s: float, good_s: float = 10.0, bad_s: float = 5.0, seed: int = 0, server: int = 0
) -> Behaviours:
    """Random telegraph: good and bad (`speed`) periods of exponential length with the given means."""
    generator, at_s, bad = random.Random(seed), 0.0, False
    changes: list[Behaviour] = []
    while at_s < duration_s:
        _check_count(len(changes))
        changes.append(Behaviour(at_s, server, speed if bad else 1.0))
        at_s += generator.expovariate(1 / (bad_s if bad else good_s))
        bad = not bad
    return (*changes, Behaviour(duration_s, server))


def periodic(
    speed: float, duration_s: float, period_s: float = 20.0, slow_s: float = 6.67, phase_s: float = 0.0, server: int = 0
) -> Behaviours:
    """Speed `speed` for the first `slow_s` of every period; the first period begins at `phase_s`."""
    changes = []
    periods = max(duration_s - phase_s, 0) / period_s
    _check_count(2 * periods)
    for number in range(math.ceil(periods)):
        begin_s = phase_s + number * period_s
        changes += [Behaviour(begin_s, server, speed), Behaviour(begin_s + slow_s, server)]
    return (*(change for change in changes if change.at_s < duration_s), Behaviour(duration_s, server))


def slow_start(speed: float = 0.2, steps: int = 9, step_s: float = 5.0, server: int = 0) -> Behaviours:
    """From `speed` to 1 in equal steps, as caches warm up."""
    _check_count(steps)
    rise = (1.0 - speed) / max(steps - 1, 1)
    return tuple(Behaviour(number * step_s, server, speed + number * rise) for number in range(steps))


def crash(down_s: float, slow_start_speed: float = 1.0, server: int = 0) -> Behaviours:
    """Refuses connections for `down_s` seconds, then starts slowly when a speed below 1 is given."""
    recovery = slow_start(slow_start_speed, server=server) if slow_start_speed < 1 else (Behaviour(0.0, server),)
    return Behaviour(0.0, server, refused=True), *(replace(b, at_s=b.at_s + down_s) for b in recovery)


def errors(ratio: float, duration_s: float, error_service_s: float = 0.0005, server: int = 0) -> Behaviours:
    """A share of the requests fails at once with a 500."""
    failing = Behaviour(0.0, server, error_ratio=ratio, error_service_s=error_service_s)
    return failing, Behaviour(duration_s, server)


PATTERNS: Mapping[str, Callable[..., Behaviours]] = {
    function.__name__: function for function in (steps, telegraph, periodic, slow_start, crash, errors)
}


def behaviours_from_json(data: Any) -> Behaviours:
    """Behaviours from the JSON that a user or a program posts.

    ``{"speed": 0.5}`` holds from now on; a list of such objects with ``at_s``; or a pattern with its
    arguments, ``{"pattern": "telegraph", "speed": 0.5, "duration_s": 600}``. All numbers of a pattern are finite, times
    and lengths are positive (`phase_s` and `error_service_s` may be 0), and it has at most `MAX_CHANGES` changes.
    Raises ConfigError.
    """
    try:
        if isinstance(data, dict) and "pattern" in data:
            return check(_pattern(data))
        entries = data if isinstance(data, list) else [data]
        return check(tuple(Behaviour(**{"at_s": 0.0, "server": 0, **entry}) for entry in entries))
    except (TypeError, OverflowError) as error:
        raise ConfigError(f"invalid behaviour: {error}", remedy=closest("", Behaviour.__dataclass_fields__)) from error


def check(behaviours: Behaviours) -> Behaviours:
    """Returns the behaviours. Raises ConfigError for a value that no server can play."""
    for behaviour in behaviours:
        if not (behaviour.speed > 0 and math.isfinite(behaviour.speed) and behaviour.at_s >= 0):
            raise ConfigError(f"speed {behaviour.speed} at {behaviour.at_s} s", remedy="speed > 0, time >= 0")
        if not (0 <= behaviour.error_ratio <= 1 and behaviour.error_service_s >= 0):
            raise ConfigError(f"error ratio {behaviour.error_ratio}", remedy="give 0…1 and a service time >= 0")
    if any(later.at_s < earlier.at_s for earlier, later in itertools.pairwise(behaviours)):
        raise ConfigError("behaviours are not in the order of their at_s", remedy="sort them")
    return behaviours


def _pattern(data: dict[str, Any]) -> Behaviours:
    arguments = dict(data)
    name = str(arguments.pop("pattern"))
    if name not in PATTERNS:
        raise ConfigError(f"unknown pattern '{name}'", remedy=closest(name, PATTERNS))
    known = inspect.signature(PATTERNS[name]).parameters
    for argument in arguments:
        if argument not in known:
            raise ConfigError(f"pattern {name} has no '{argument}'", remedy=closest(argument, known))
    for argument, value in arguments.items():
        for number in value if isinstance(value, list) else [value]:
            _check_number(number, argument, f"pattern {name}")
    return PATTERNS[name](**arguments)


def _check_number(number: Any, argument: str, where: str) -> None:
    try:
        finite = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    except OverflowError:  # a whole number beyond all floats
        finite = False
    if not finite:
        raise ConfigError(f"{argument} is {number!r}", where=where, remedy="give a finite number")
    if argument.endswith("_s") and argument not in _MAY_BE_ZERO and not number > 0:
        raise ConfigError(f"{argument} is {number!r}", where=where, remedy="it must be more than 0")


def _check_count(changes: float) -> None:
    """Raises ConfigError before more changes are made than a server should hold."""
    if not changes <= MAX_CHANGES:
        raise ConfigError(f"more than {MAX_CHANGES} changes", remedy="give a shorter duration, or longer periods")
