"""One server's view of the shared database: reads timelines, writes posts, never waits for another writer."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from actuators.errors import ServiceError
from actuators.social_posts import Draft

_HOME = "SELECT post_id FROM home_timeline WHERE user_id = ? ORDER BY post_id DESC LIMIT ? OFFSET ?"
_USER = "SELECT post_id FROM posts WHERE user_id = ? ORDER BY post_id DESC LIMIT ? OFFSET ?"
_CHECKPOINT_PAGES = 512
"""1 MB: about one commit in twenty copies the log into the database, which takes 1.5 ms."""
_BODIES_KEPT = 8192
"""Posts kept in memory, about 1.4 kB each. Another server's commit empties SQLite's own cache; posts never change."""


class SocialStore:
    """Reading and writing connections to a database that `create_database` made.

    synchronous = OFF: a commit survives the death of any process, but not a power cut.

    Args:
        server: 0…1023, unique among the servers of the database; a part of each post's id.

    Raises:
        ServiceError: there is no such database.
    """

    def __init__(self, path: Path, server: int) -> None:
        self._server, self._last_us = server, 0
        try:
            # Readers wait for a recovering neighbour only; writers do not wait at all.
            self._reader = _connect(path, timeout_s=1.0)
            self._writer = _connect(path, timeout_s=0.0)
            self.users: dict[int, str] = dict(self._reader.execute("SELECT user_id, username FROM users"))
        except sqlite3.Error as error:
            raise ServiceError(f"cannot open the database: {error}", where=str(path), remedy="create it") from error
        self._body = lru_cache(_BODIES_KEPT)(self._read_body)
        self.ids = {name: number for number, name in self.users.items()}

    def home_timeline(self, user_id: int, start: int, stop: int) -> bytes:
        """JSON list of posts `start`…`stop` - 1, newest first."""
        return self._posts(_HOME, (user_id, stop - start, start))

    def user_timeline(self, user_id: int, start: int, stop: int) -> bytes:
        """JSON list of the user's own posts `start`…`stop` - 1, newest first."""
        return self._posts(_USER, (user_id, stop - start, start))

    def write(self, posts: Sequence[Draft]) -> list[int] | None:
        """Stores all posts in one transaction; their ids. None, with nothing stored, while another server writes."""
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
    """Ids ascend with time; servers 0…1023 never make the same one."""
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
