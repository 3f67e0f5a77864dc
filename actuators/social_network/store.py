"""The database of the social network: how it is created, and one server's reads and writes.

A writer never waits for another one. The stand-in servers of a testbed on one machine share a database; machines do
not: WAL mode needs memory that all processes of the database share (https://www.sqlite.org/wal.html).
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import string
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from actuators.errors import ServiceError
from actuators.files import replacing
from actuators.options import Options
from actuators.social_network.posts import Draft, draft

SCHEMA = """
CREATE TABLE users (user_id INTEGER PRIMARY KEY, username TEXT NOT NULL UNIQUE);
CREATE TABLE followers (user_id INTEGER, follower_id INTEGER, PRIMARY KEY (user_id, follower_id)) WITHOUT ROWID;
CREATE TABLE posts (post_id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX user_timeline ON posts (user_id, post_id);
CREATE TABLE home_timeline (user_id INTEGER, post_id INTEGER, PRIMARY KEY (user_id, post_id)) WITHOUT ROWID;
CREATE TABLE urls (short TEXT PRIMARY KEY, url TEXT NOT NULL) WITHOUT ROWID;
"""

_FIRST_POST_MS = 1_767_225_600_000
"""2026-01-01; first posts are one second apart from here, so that equal seeds give equal databases."""
_HOME = "SELECT post_id FROM home_timeline WHERE user_id = ? ORDER BY post_id DESC LIMIT ? OFFSET ?"
_USER = "SELECT post_id FROM posts WHERE user_id = ? ORDER BY post_id DESC LIMIT ? OFFSET ?"
_CHECKPOINT_PAGES = 512
"""1 MiB: about one commit in twenty copies the log to the database, which takes 1.5 ms."""
_BODIES_KEPT = 8192
"""Posts in memory, about 1.4 kB each: the commit of another server empties SQLite's cache, but posts never change."""


class SocialNetworkOptions(Options):
    """The users of the stand-in social network."""

    users: int = Field(962, ge=2, le=20_000)
    """Number of users, from `username_0` on; DeathStarBench's scripts use 962."""
    follows_per_user: float = Field(20.0, ge=1)
    """Mean number of users that a user follows."""
    popularity_exponent: float = Field(2.5, gt=2)
    """Exponent of the power law of the number of followers: P(more than k) is proportional to k^(1 - exponent)."""
    posts_per_user: int = Field(5, ge=0)
    """Posts per user in a new database."""
    start_timeout_s: float = Field(15.0, gt=0)
    """Seconds within which a server must respond to /healthz after a start."""


def create_database(path: Path, options: SocialNetworkOptions, seed: int) -> None:
    """Writes a new database to `path`, in WAL mode; equal seeds give equal contents.

    Replaces an existing one, which no server may have open. Raises ServiceError when the folder cannot be written.
    """
    try:
        with replacing(path) as temporary:
            with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as database:
                # A post changes a page per follower: small pages halve the bytes of a commit.
                database.execute("PRAGMA page_size = 2048")
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = OFF")
                database.executescript("BEGIN;" + SCHEMA)
                _fill(database, options, seed)
                database.execute("COMMIT")
            # The log of the old database must not be replayed into the new one.
            remove_database(path)
    except (OSError, sqlite3.Error) as error:
        raise ServiceError(
            f"cannot write the database: {error}", where=str(path), remedy="give another folder"
        ) from error


def remove_database(path: Path) -> None:
    """Removes a database that no process has open, with its log, if it is there. Raises OSError."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def follower_graph(options: SocialNetworkOptions, seed: int) -> list[NDArray[np.int64]]:
    """For each user, the distinct other users whom it follows.

    User r's popularity is proportional to (r + 1)^(-1 / (exponent - 1)), in a shuffled order, which
    gives the number of followers a power law (Chung and Lu 2002). The number followed is geometric.
    """
    generator = np.random.default_rng([seed, 1])
    ranks = np.arange(1, options.users + 1, dtype=float)
    log_popularity = generator.permutation(-np.log(ranks) / (options.popularity_exponent - 1))
    counts = np.clip(generator.geometric(1 / options.follows_per_user, options.users), 1, options.users - 1)
    graph = []
    for user, count in enumerate(counts):
        # The largest sums of log-weight and Gumbel noise are a weighted sample without replacement.
        keys = log_popularity + generator.gumbel(size=options.users)
        keys[user] = -np.inf
        graph.append(np.argpartition(-keys, count - 1)[:count])
    return graph


class SocialStore:
    """Connections for reading and writing to a database of `create_database`.

    synchronous = OFF: a commit survives the death of any process, but not a power cut.

    Args:
        server: 0…1023, unique among the servers of the database; a part of each post's id.

    Raises:
        ServiceError: there is no such database.
    """

    def __init__(self, path: Path, server: int) -> None:
        self._server, self._last_us = server, 0
        try:
            # Readers wait only for a recovery by another server; writers do not wait.
            self._reader = _connect(path, timeout_s=1.0)
            self._writer = _connect(path, timeout_s=0.0)
            self.users: dict[int, str] = dict(self._reader.execute("SELECT user_id, username FROM users"))
        except sqlite3.Error as error:
            raise ServiceError(f"cannot open the database: {error}", where=str(path), remedy="create it") from error
        self._body = lru_cache(_BODIES_KEPT)(self._read_body)
        self.ids = {name: number for number, name in self.users.items()}

    def home_timeline(self, user_id: int, start: int, stop: int) -> bytes:
        """JSON list of posts `start`…`stop` - 1 of the home timeline, newest first."""
        return self._posts(_HOME, (user_id, stop - start, start))

    def user_timeline(self, user_id: int, start: int, stop: int) -> bytes:
        """JSON list of the user's own posts `start`…`stop` - 1, newest first."""
        return self._posts(_USER, (user_id, stop - start, start))

    def write(self, posts: Sequence[Draft]) -> list[int] | None:
        """Stores all posts in one transaction; returns their ids, or None while another server writes."""
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                return None
            raise
        try:
            ids = [self._insert(post) for post in posts]
            self._writer.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            raise
        return ids

    def close(self) -> None:
        self._writer.close()
        self._reader.close()

    def _posts(self, query: str, parameters: tuple[int, int, int]) -> bytes:
        return b"[" + b",".join([self._body(row[0]) for row in self._reader.execute(query, parameters)]) + b"]"

    def _read_body(self, post_id: int) -> bytes:
        body: bytes = self._reader.execute("SELECT body FROM posts WHERE post_id = ?", (post_id,)).fetchone()[0]
        return body

    def _insert(self, post: Draft) -> int:
        self._last_us = max(time.time_ns() // 1000, self._last_us + 1)
        post_id = post_id_of(self._last_us, self._server)
        insert_post(self._writer, post, post_id, self._last_us // 1000)
        return post_id


def post_id_of(time_us: int, server: int) -> int:
    """Ids ascend with time; the servers 0…1023 never make equal ones."""
    return (time_us << 10) | server


def insert_post(database: sqlite3.Connection, post: Draft, post_id: int, time_ms: int) -> None:
    """Stores a post and fans it out to followers and mentioned users, inside the caller's transaction."""
    execute = database.execute
    execute("INSERT INTO posts VALUES (?, ?, ?)", (post_id, post.user_id, post.body(post_id, time_ms)))
    execute("INSERT INTO home_timeline SELECT follower_id, ? FROM followers WHERE user_id = ?", (post_id, post.user_id))
    for user_id in post.mentions:
        execute("INSERT OR IGNORE INTO home_timeline VALUES (?, ?)", (user_id, post_id))
    for short, url in post.urls.items():
        execute("INSERT OR IGNORE INTO urls VALUES (?, ?)", (short, url))


def _connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    database = sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None, timeout=timeout_s)
    for pragma in ("synchronous = OFF", "mmap_size = 268435456", f"wal_autocheckpoint = {_CHECKPOINT_PAGES}"):
        database.execute(f"PRAGMA {pragma}")
    return database


def _fill(database: sqlite3.Connection, options: SocialNetworkOptions, seed: int) -> None:
    users = {number: f"username_{number}" for number in range(options.users)}
    database.executemany("INSERT INTO users VALUES (?, ?)", users.items())
    edges = (
        (int(followed), follower)
        for follower, follows in enumerate(follower_graph(options, seed))
        for followed in follows
    )
    database.executemany("INSERT INTO followers VALUES (?, ?)", sorted(edges))
    for number, post in enumerate(_first_posts(users, options.posts_per_user, seed)):
        time_ms = _FIRST_POST_MS + 1000 * number
        insert_post(database, post, post_id_of(time_ms * 1000, 0), time_ms)


def _first_posts(users: dict[int, str], per_user: int, seed: int) -> Iterator[Draft]:
    """Posts like those of DeathStarBench's compose-post script, shuffled over the users."""
    generator = random.Random(f"posts {seed}")
    ids = {name: number for number, name in users.items()}
    authors = [number for number in users for _ in range(per_user)]
    generator.shuffle(authors)

    def letters(count: int) -> str:
        return "".join(generator.choices(string.ascii_letters + string.digits, k=count))

    for author in authors:
        text = letters(256)
        text += "".join(f" @{users[generator.randrange(len(users))]}" for _ in range(generator.randint(1, 6)))
        text += "".join(f" http://{letters(64)}" for _ in range(generator.randint(1, 6)))
        form = {"user_id": str(author), "username": users[author], "text": text, "post_type": "0"}
        yield draft(form, users, ids)
