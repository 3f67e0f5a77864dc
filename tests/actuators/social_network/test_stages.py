"""What all stand-in servers share: stages with few connections, their line, contention and cache."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actuators.contract.script import Cache, RateStep, Script, ServerProfile, Stage, StageBehaviour, Stream
from actuators.contract.topology import Topology, social_network
from actuators.social_network.server import SharedStages, SocialNetworkServer
from actuators.social_network.stages import StageQueue, Stages, StagesPlan, Visitor, stages_plan
from actuators.social_network.store import SocialNetworkOptions, create_database
from tests.support.social_site import HOME, call
from tests.support.waiting import wait_until


def visitor(left: list[str], name: str, *, missed: bool = False) -> Visitor:
    return Visitor("home_read", name, lambda: left.append(name), missed=missed)


def ends(queue: StageQueue) -> list[tuple[float, str]]:
    """(seconds, name) of all visits, in their order."""
    found = []
    while (at_s := queue.next_finish_s) < math.inf:
        done = queue.pop_finished(at_s)
        assert done is not None
        found.append((round(at_s, 9), done.sequence))
    return found


def test_visits_take_connections_and_then_wait_in_line() -> None:
    queue = StageQueue(Stage(2, (1.0,), (1.0,)), 0.0)
    for name, work_s in (("a", 3.0), ("b", 1.0), ("c", 1.0), ("d", 5.0)):
        queue.enter(visitor([], name), work_s, 0.0)
    assert queue.waiting == 2
    assert ends(queue) == [(1.0, "b"), (2.0, "c"), (3.0, "a"), (7.0, "d")]


def test_contention_makes_work_longer_by_the_length_of_the_line_when_it_begins() -> None:
    queue = StageQueue(Stage(1, (1.0,), (1.0,), contention=0.5), 0.0)
    for name in "abcd":
        queue.enter(visitor([], name), 1.0, 0.0)
    # a begins alone, b with two behind it, c with one, d with none.
    assert ends(queue) == [(1.0, "a"), (3.0, "b"), (4.5, "c"), (5.5, "d")]
    crowded = StageQueue(Stage(1, (1.0,), (1.0,), contention=10.0), 0.0)
    for name in "abc":
        crowded.enter(visitor([], name), 1.0, 0.0)
    assert ends(crowded)[1] == (4.0, "b"), "never more than three times as long"


def test_a_slow_stage_takes_longer_for_visits_in_progress_too() -> None:
    queue = StageQueue(Stage(1, (1.0,), (1.0,)), 0.0)
    queue.enter(visitor([], "a"), 2.0, 0.0)
    queue.enter(visitor([], "b"), 1.0, 0.0)
    queue.behave(StageBehaviour(1.0, 0, speed=0.5), 1.0)
    assert ends(queue) == [(3.0, "a"), (5.0, "b")]


def test_misses_fill_the_cache_which_fades_and_can_be_flushed() -> None:
    stage = Stage(1, (1.0,), (1.0,), cache=Cache((True,), hit=0.5, fill=10.0, most=0.95, decay_s=20.0))
    queue = StageQueue(stage, 0.0)
    assert queue.hit_share(20.0) == pytest.approx(0.5 / math.e)
    queue.enter(visitor([], "a", missed=True), 0.0, 20.0)
    queue.pop_finished(20.0)
    filled = 0.5 / math.e + (0.95 - 0.5 / math.e) / 10
    assert queue.hit_share(20.0) == pytest.approx(filled)
    gone = visitor([], "b", missed=True)
    gone.gone = True
    queue.enter(gone, 0.0, 20.0)
    queue.pop_finished(20.0)
    assert queue.hit_share(20.0) == pytest.approx(filled), "a request that was given up does not fill the cache"
    queue.behave(StageBehaviour(20.0, 0, flush=True), 20.0)
    assert queue.hit_share(20.0) == 0.0


def test_a_request_passes_the_stages_that_it_visits_in_turn() -> None:
    async def passed() -> list[str]:
        stages, left = Stages(asyncio.get_running_loop()), []
        stages.play(
            StagesPlan(
                1, ("home_read", "compose"), (Stage(1, (0.0, 0.02), (1.0, 1.0)), Stage(1, (0.0, 0.02), (0.0, 1.0)))
            )
        )
        began_s = time.monotonic()
        stages.enter(Visitor("elsewhere", "x-1", lambda: left.append("elsewhere")))
        assert left == ["elsewhere"], "an endpoint without stages is not held"
        stages.enter(Visitor("compose", "compose-1", lambda: left.append("compose")))
        stages.enter(Visitor("home_read", "home_read-1", lambda: left.append("home_read")))
        while len(left) < 3:
            await asyncio.sleep(0.001)
        assert time.monotonic() - began_s >= 0.04
        stages.close()
        return left

    assert asyncio.run(passed()) == ["elsewhere", "home_read", "compose"]


def script(connections: int, work_s: float) -> Script:
    mean_s, speeds = (0.0, 0.0, 0.0), ServerProfile((1.0, 1.0, 1.0), workers=16)
    streams = tuple(Stream(name, (RateStep(0.0, 0.0),)) for name in social_network().request_types)
    stage = Stage(connections, (work_s,) * 3, (1.0,) * 3)
    return Script("shared", 1, 60.0, streams, (speeds, speeds), mean_s, "constant", stages=(stage,))


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[Topology, list[SocialNetworkServer], SharedStages]]:
    options = SocialNetworkOptions(users=60)
    create_database(tmp_path / "db", options, 1)
    servers = [
        SocialNetworkServer(options, work_dir=tmp_path, database=tmp_path / "db", index=index) for index in range(2)
    ]
    stages = SharedStages(options, tmp_path)
    try:
        for server in servers:
            server.start()
        yield social_network(tuple(server.address for server in servers)), servers, stages
    finally:
        for part in (*servers, stages):
            part.close()


Shared = tuple[Topology, list[SocialNetworkServer], SharedStages]


def begin(shared: Shared, played: Script) -> None:
    topology, servers, stages = shared
    address = stages.play(played, topology)
    for server in servers:
        server.play(played, topology, address)


def read(server: SocialNetworkServer) -> int:
    return call(server.address, f"{HOME}?user_id=5&start=0&stop=1")[0]


def test_requests_of_all_servers_wait_for_one_connection(shared: Shared) -> None:
    begin(shared, script(1, 0.05))
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda each=server: statuses.append(read(each))) for server in shared[1] * 4]
    began_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8
    assert time.monotonic() - began_s >= 8 * 0.05
    assert shared[2].counters() == {"passed": 8, "inside": 0, "waiting": [0], "hits": [0.0]}


def test_a_script_without_stages_does_not_use_them(shared: Shared) -> None:
    begin(shared, script(1, 0.05))
    begin(shared, replace(script(1, 0.05), stages=()))
    assert read(shared[1][0]) == 200
    assert shared[2].counters()["passed"] == 0


def test_a_new_plan_answers_what_is_at_the_stages(shared: Shared) -> None:
    begin(shared, script(1, 30.0))
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(read(shared[1][0])))
    thread.start()
    wait_until(lambda: inside(shared) == 1)
    begin(shared, script(1, 0.0))
    thread.join()
    assert statuses == [200]


def inside(shared: Shared) -> int:
    return int(shared[2].counters()["inside"])


def test_stages_that_die_are_an_error_of_the_servers_and_come_back_with_the_next_plan(shared: Shared) -> None:
    begin(shared, script(1, 30.0))
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(read(shared[1][0])))
    thread.start()
    wait_until(lambda: inside(shared) == 1)
    shared[2].kill()
    thread.join()
    assert statuses == [500]
    begin(shared, script(1, 0.0))
    assert read(shared[1][0]) == 200


def test_a_plan_survives_json() -> None:
    plan = stages_plan(
        replace(
            script(2, 0.1), stages=(Stage(2, (0.1,) * 3, (1.0,) * 3, 0.1, Cache((True, False, True), 0.5, 10.0)),),
            stage_behaviours=(StageBehaviour(1.0, 0, 0.5), StageBehaviour(2.0, 0, flush=True)),
        ),
        social_network(("127.0.0.1:1",)),
    )  # fmt: skip
    assert StagesPlan.from_json(plan.to_json()) == plan
