"""Handles the requests of one stand-in server: emulated capacity, real storage, behaviour over time."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from collections import deque

from actuators.contract.script import Behaviour
from actuators.social_network.capacity import (
    EMULATED,
    PATHS,
    ServerPlan,
    ServiceCounters,
    VirtualQueue,
    WorkDraws,
    endpoint_of,
)
from actuators.social_network.costs import post_work, read_work
from actuators.social_network.http_protocol import Exchange
from actuators.social_network.posts import BadRequestError, Draft, draft, parse_form, whole_number
from actuators.social_network.stages_endpoint import StagesClient
from actuators.social_network.store import SocialStore
from actuators.social_network.timer import PreciseTimer

MAX_PAGE = 1000
"""Posts that one timeline read may ask for."""

_WRITE_RETRY_S = 0.0005
_WRITE_PATIENCE_S = 2.0
_METHODS = {"compose": "POST", "home_read": "GET", "user_read": "GET"}


class SocialService:
    """Handles exchanges; plays one ServerPlan at a time.

    Args:
        index: 0…1023, unique among the servers of the database.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, store: SocialStore, index: int) -> None:
        self._loop, self._store, self._index = loop, store, index
        self._woken_s: float | None = None
        self._timer = PreciseTimer(loop, self._answer_finished)
        self._write_timer = PreciseTimer(loop, self._write)
        self._unwritten: deque[tuple[float, Draft, Exchange]] = deque()
        self._queue: VirtualQueue[Exchange] = VirtualQueue(1, 0)
        self._held: list[Exchange] = []
        self._passed_in_hang: list[Exchange] = []
        self._stages: StagesClient | None = None
        self._frozen_s = 0.0
        self.play(ServerPlan())

    def play(self, plan: ServerPlan) -> None:
        """Starts a plan with an empty queue, zero counters and undisturbed behaviour.

        Requests in progress get their responses at once, requests in a hang get a 503.
        """
        self._finish_everything()
        self._queue = VirtualQueue(plan.workers, plan.queue_limit)
        self._draws = WorkDraws(plan.seed, plan.distribution, plan.cv)
        self._varied = plan.varied
        self._service_s = dict.fromkeys(PATHS.values(), 0.0) | dict(plan.service_s)
        if self._stages is not None:
            self._stages.close()
            self._stages = None
        self.counters = ServiceCounters()
        self.behaviour = Behaviour(0.0, self._index)
        self._unnamed = 0

    async def reach_stages(self, address: str) -> None:
        """From now on requests pass the stages there after their work here. Raises OSError."""
        host, _, port = address.rpartition(":")
        _, client = await self._loop.create_connection(lambda: StagesClient(self._stages_lost), host, int(port))
        self._stages = client

    def behave(self, behaviour: Behaviour) -> None:
        """Changes the behaviour now; a new speed holds for the work in progress too.

        During a hang no work is done and no response sent. After it the server continues with the requests that it had,
        and with those that came during the hang from clients that are still connected.
        """
        before, now_s = self.behaviour, self._now_s()
        if behaviour.speed != before.speed:
            self._queue.stretch(now_s, before.speed / behaviour.speed)
        self.behaviour = behaviour
        if behaviour.hang:
            self._frozen_s = now_s
            self._timer.set(None)
            return
        if before.hang:
            self._queue.delay(now_s, time.monotonic())
            held, self._held = self._held, []
            for exchange in held:
                if not exchange.gone:
                    self.handle(exchange)
            passed, self._passed_in_hang = self._passed_in_hang, []
            for exchange in passed:
                self._passed(exchange)
        self._answer_finished()

    def crash(self, connections: int) -> None:
        """Drops the requests in progress, as a dead process does; `connections` is the number that was reset."""
        self._unwritten.clear()
        self._held.clear()
        self._passed_in_hang.clear()
        self._queue.clear()
        self._timer.set(None)
        self.counters.reset += connections

    def status(self) -> dict[str, object]:
        """Counters since `play`, requests waiting and workers busy now."""
        now_s = self._now_s()
        waiting = self._queue.waiting(now_s) + len(self._held)
        return self.counters.to_json() | {"waiting": waiting, "busy": self._queue.busy(now_s)}

    def handle(self, exchange: Exchange) -> None:
        """Takes one request. Its real work is done now, as a part of its service time."""
        now_s = self._arrival_s()
        if self.behaviour.hang:
            self.counters.hung += 1
            self._held.append(exchange)
            return
        request_type = endpoint_of(exchange.path)
        if request_type is None or request_type not in self._service_s:
            self._answer_others(exchange)
        elif exchange.method != _METHODS.get(request_type, exchange.method):
            self._fail(request_type, exchange, 405, f"use {_METHODS[request_type]}")
        else:
            self._serve(request_type, exchange, now_s)
            self._answer_finished()

    def close(self) -> None:
        self._timer.close()
        self._write_timer.close()

    def _arrival_s(self) -> float:
        """When the event loop woke up: all data that it then reads had arrived by that time."""
        if self._woken_s is None:
            self._woken_s = time.monotonic()
            self._loop.call_soon(self._forget_waking)
        return self._woken_s

    def _forget_waking(self) -> None:
        self._woken_s = None

    def _now_s(self) -> float:
        """The clock of the queue, which stops during a hang."""
        return self._frozen_s if self.behaviour.hang else time.monotonic()

    def _serve(self, request_type: str, exchange: Exchange, now_s: float) -> None:
        if not exchange.sequence:
            self._unnamed += 1
            exchange.sequence = f"server{self._index}-{self._unnamed}"
        exchange.request_type = request_type
        work, fate = self._draws.draw(exchange.sequence)
        if fate < self.behaviour.error_ratio:
            exchange.prepare(500, b'{"error": "emulated failure"}')
            service_s = self.behaviour.error_service_s
        else:
            service_s = self._service_s[request_type] * work / self.behaviour.speed
            if request_type.startswith(EMULATED):
                exchange.prepare(200, b"{}")
        try:
            job = None if exchange.prepared else self._checked(request_type, exchange)
        except BadRequestError as error:
            self._fail(request_type, exchange, 400, str(error))
            return
        if self._varied and job is not None:
            service_s *= _work_of(job)
        if self._queue.offer(now_s, service_s, exchange) is None:
            self.counters.rejected += 1
            self._fail(request_type, exchange, 503, "the queue is full")
            return
        self.counters.service_s += service_s
        if job is not None:
            self._work(job, exchange)

    def _checked(self, request_type: str, exchange: Exchange) -> Draft | tuple[int, int, int]:
        if request_type == "compose":
            return draft(parse_form(exchange.data), self._store.users, self._store.ids)
        fields = parse_form(exchange.query)
        user_id, start, stop = (whole_number(fields, name) for name in ("user_id", "start", "stop"))
        if user_id not in self._store.users:
            raise BadRequestError(f"no user with user_id {user_id}")
        if not start <= stop <= start + MAX_PAGE:
            raise BadRequestError(f"stop must lie between start and start + {MAX_PAGE}")
        return user_id, start, stop

    def _work(self, job: Draft | tuple[int, int, int], exchange: Exchange) -> None:
        if isinstance(job, Draft):
            self._unwritten.append((time.monotonic() + _WRITE_PATIENCE_S, job, exchange))
            self._write()
            return
        read = self._store.home_timeline if exchange.request_type == "home_read" else self._store.user_timeline
        try:
            exchange.prepare(200, read(*job))
        except sqlite3.Error as error:
            self._store_error(exchange, error)

    def _write(self) -> None:
        """Stores all waiting posts together; tries again later while another server writes."""
        now_s = time.monotonic()
        while self._unwritten and self._unwritten[0][0] < now_s:
            exchange = self._unwritten.popleft()[2]
            self._prepared(exchange, 503, b'{"error": "the database is busy"}')
        if not self._unwritten:
            return
        try:
            ids = self._store.write([post for _, post, _ in self._unwritten])
        except sqlite3.Error as error:
            while self._unwritten:
                self._store_error(self._unwritten.popleft()[2], error)
            return
        if ids is None:
            self.counters.write_retries += 1
            self._write_timer.set(now_s + _WRITE_RETRY_S)
            return
        for post_id in ids:
            self._prepared(self._unwritten.popleft()[2], 200, json.dumps({"post_id": str(post_id)}).encode())

    def _store_error(self, exchange: Exchange, error: sqlite3.Error) -> None:
        print(f"{exchange.request_type}: {error!r}", file=sys.stderr, flush=True)
        self.counters.store_errors += 1
        self._prepared(exchange, 500, b'{"error": "the database failed"}')

    def _prepared(self, exchange: Exchange, status: int, body: bytes) -> None:
        exchange.prepare(status, body)
        if exchange.due:
            self._send(exchange)

    def _answer_finished(self) -> None:
        """Sends the responses of finished requests and sets the timer for the next one."""
        if self.behaviour.hang:
            return
        now_s = time.monotonic()
        while (finished := self._queue.pop_finished(now_s)) is not None:
            finish_s, exchange = finished
            self.counters.late_s += now_s - finish_s
            if self._stages is not None and self._stages.is_open and not (exchange.prepared and exchange.status >= 400):
                self._stages.enter(exchange, self._passed)
            else:
                self._passed(exchange)
        self._timer.set(self._queue.next_finish_s)

    def _passed(self, exchange: Exchange) -> None:
        """The emulated work for a request has ended, here and at the stages."""
        if self.behaviour.hang:
            self._passed_in_hang.append(exchange)
            return
        exchange.due = True
        if exchange.prepared:
            self._send(exchange)

    def _stages_lost(self, inside: list[Exchange]) -> None:
        for exchange in inside:
            exchange.prepare(500, b'{"error": "the stages behind this server are gone"}')
            self._passed(exchange)

    def _finish_everything(self) -> None:
        while (finished := self._queue.pop_finished(float("inf"))) is not None:
            finished[1].due = True
            if finished[1].prepared:
                self._send(finished[1])
        while self._held:
            self._held.pop().fail(503, "a new plan began")

    def _answer_others(self, exchange: Exchange) -> None:
        if exchange.path == "/healthz":
            exchange.answer(200, b'{"status": "ok"}')
        else:
            exchange.fail(404, f"no {exchange.path}; there are {', '.join(PATHS)}")

    def _fail(self, request_type: str, exchange: Exchange, status: int, error: str) -> None:
        self.counters.count(request_type, status)
        exchange.fail(status, error)

    def _send(self, exchange: Exchange) -> None:
        self.counters.count(exchange.request_type, exchange.status)
        exchange.send()


def _work_of(job: Draft | tuple[int, int, int]) -> float:
    """How much work it is in relation to others of its type."""
    if isinstance(job, Draft):
        return post_work(len(job.mentions), len(job.media))
    _, start, stop = job
    return read_work(stop - start)
