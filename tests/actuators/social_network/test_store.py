"""Posts and timelines: parsing, the follower graph, fan-out, several servers on one database.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actuators.errors import ServiceError
from actuators.social_network.posts import BadRequestError, draft, parse_form
from actuators.social_network.store import SocialNetworkOptions, SocialStore, create_database, follower_graph

OPTIONS = SocialNetworkOptions(users=30, follows_per_user=4, posts_per_user=2)
USERS = {number: f"username_{number}" for number in range(30)}
IDS = {name: number for number, name in USERS.items()}
FORM = {"username": "username_5", "user_id": "5", "text": "hello", "post_type": "0"}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("social") / "network.sqlite"
    create_database(path, OPTIONS, seed=1)
    return path


@pytest.fixture
def stores(database: Path) -> Iterator[list[SocialStore]]:
    opened = [SocialStore(database, index) for index in range(2)]
    yield opened
    for store in opened:
        store.close()


def test_the_form_of_deathstarbenchs_script_is_understood() -> None:
    """Captured from wrk2's compose-post.lua: nothing in it is url-encoded."""
    body = (
        b"username=username_5&user_id=5&text=abc @username_7 @username_7 @username_999 http://xyz1 http://xyz2"
        b'&media_ids=["123456789012345678","2"]&media_types=["png","png"]&post_type=0'
    )
    post = draft(parse_form(body), USERS, IDS)
    assert post.mentions == {7: "username_7"}
    assert list(post.urls.values()) == ["http://xyz1", "http://xyz2"]
    assert "xyz" not in post.text
    assert all(short in post.text for short in post.urls)
    assert post.media == (("123456789012345678", "png"), ("2", "png"))
    shown = json.loads(post.body(17, 1000))
    assert (shown["post_id"], shown["creator"]["user_id"], shown["timestamp"]) == ("17", "5", "1000")


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.text(max_size=20)))
def test_encoded_forms_survive(fields: dict[str, str]) -> None:
    assert {name: value for name, value in parse_form(urlencode(fields).encode()).items() if name} == fields


@pytest.mark.parametrize(("change", "says"), [
    ({"username": ""}, "'username' is missing"),
    ({"username": "username_6"}, "no user 'username_6' with user_id 5"),
    ({"user_id": "5.0"}, "'user_id' must be a whole number"),
    ({"user_id": "-5"}, "'user_id' must be a whole number"),
    ({"user_id": "31"}, "no user"),
    ({"text": ""}, "'text' is missing"),
    ({"post_type": "4"}, "post_type"),
    ({"post_type": ""}, "'post_type' is missing"),
    ({"media_ids": "12"}, "'media_ids' must be a JSON list of strings"),
    ({"media_ids": "[1]", "media_types": '["png"]'}, "'media_ids' must be a JSON list of strings"),
    ({"media_ids": "[" * 60_000}, "'media_ids' must be a JSON list"),
    ({"media_ids": '["1"]'}, "1 media_ids but 0 media_types"),
])  # fmt: skip
def test_wrong_forms_are_refused_in_words(change: dict[str, str], says: str) -> None:
    with pytest.raises(BadRequestError, match=says.replace("[", r"\[")):
        draft(FORM | change, USERS, IDS)


@given(st.binary(max_size=200))
def test_no_bytes_can_break_the_form_parser(data: bytes) -> None:
    with pytest.raises(BadRequestError):
        draft(parse_form(b"post_type=7&" + data), USERS, IDS)


def test_the_number_of_followers_has_a_power_law() -> None:
    """Hill's estimate of the exponent over the upper tail, averaged over seeds."""
    exponents = []
    for seed in range(4):
        options = SocialNetworkOptions(users=1500, follows_per_user=20, popularity_exponent=2.5)
        graph = follower_graph(options, seed)
        assert all(user not in follows and len(set(follows)) == len(follows) for user, follows in enumerate(graph))
        assert np.mean([len(follows) for follows in graph]) == pytest.approx(20, rel=0.1)
        followers = np.sort(np.bincount(np.concatenate(graph), minlength=1500))[::-1]
        assert followers[0] > 10 * np.median(followers)
        tail = followers[:150].astype(float)
        exponents.append(1 + 1 / np.mean(np.log(tail[:-1] / tail[-1])))
    assert np.mean(exponents) == pytest.approx(2.5, abs=0.35)


def test_equal_seeds_make_equal_databases(tmp_path: Path) -> None:
    dumps = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        create_database(tmp_path / name, OPTIONS, seed)
        database = sqlite3.connect(tmp_path / name)
        dumps.append(list(database.iterdump()))
        database.close()
    assert dumps[0] == dumps[1] != dumps[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_what_cannot_be_written_or_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="cannot write the database"):
        create_database(tmp_path / "missing" / "x", OPTIONS, 1)
    with pytest.raises(ServiceError, match="cannot open the database"):
        SocialStore(tmp_path / "x", 0)
    assert not (tmp_path / "x").exists()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 29), st.lists(st.integers(0, 29), max_size=4), st.integers(0, 1)), max_size=8),
    st.integers(0, 6), st.integers(0, 6),
)  # fmt: skip
def test_a_post_is_read_from_any_server_by_author_followers_and_mentioned(
    database: Path, stores: list[SocialStore], posts: list[tuple[int, list[int], int]], start: int, length: int
) -> None:
    connection = sqlite3.connect(database)
    followers = {user: set() for user in USERS}
    for user, follower in connection.execute("SELECT * FROM followers"):
        followers[user].add(follower)
    connection.close()
    home = {user: ids(stores[0].home_timeline(user, 0, 1000)) for user in USERS}
    own = {user: ids(stores[0].user_timeline(user, 0, 1000)) for user in USERS}
    for author, mentioned, server in posts:
        text = "hi " + " ".join(f"@username_{user}" for user in mentioned)
        form = FORM | {"username": USERS[author], "user_id": str(author), "text": text}
        [post_id] = stores[server].write([draft(form, USERS, IDS)]) or []
        own[author].insert(0, post_id)
        for user in followers[author] | set(mentioned):
            home[user].insert(0, post_id)
    for store in stores:
        for user in USERS:
            assert ids(store.home_timeline(user, start, start + length)) == home[user][start : start + length]
            assert ids(store.user_timeline(user, start, start + length)) == own[user][start : start + length]


def test_several_posts_are_one_transaction(database: Path, stores: list[SocialStore]) -> None:
    post = draft(FORM, USERS, IDS)
    written = stores[0].write([post, post, post])
    assert written == sorted(set(written or ()))
    assert ids(stores[1].user_timeline(5, 0, 3)) == written[::-1]


def test_a_writer_does_not_wait_for_another_and_stores_nothing(database: Path, stores: list[SocialStore]) -> None:
    blocker = sqlite3.connect(database, isolation_level=None)
    before = stores[1].user_timeline(5, 0, 100)
    blocker.execute("BEGIN IMMEDIATE")
    assert stores[0].write([draft(FORM, USERS, IDS)]) is None
    assert stores[1].user_timeline(5, 0, 100) == before
    blocker.execute("ROLLBACK")
    blocker.close()
    assert stores[0].write([draft(FORM, USERS, IDS)])


def test_a_post_that_fails_takes_its_transaction_with_it(stores: list[SocialStore]) -> None:
    before = stores[1].user_timeline(5, 0, 100)
    post = draft(FORM, USERS, IDS)
    broken = replace(post, mentions={object(): "its id cannot be stored, which is found after the post is"})
    with pytest.raises(sqlite3.Error):
        stores[0].write([post, broken])
    assert stores[1].user_timeline(5, 0, 100) == before
    assert stores[0].write([post])


def ids(timeline: bytes) -> list[int]:
    return [int(post["post_id"]) for post in json.loads(timeline)]
