"""Files that are whole or absent, locked while one process changes them, and private where they must be.

A file is written under a temporary name in the same folder, then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import select
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actuators.errors import ConfigError, ConflictError

SOCKET_PATH_BYTES = 107
LEAST_TOKEN_CHARACTERS = 16
_MOST_TOKEN_BYTES = 2**12
_FOR_OTHERS = stat.S_IWGRP | stat.S_IRWXO
REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room in your quota",
    errno.EROFS: "mount that file system for writing, or choose another folder",
}
"""What helps against an OSError that has nothing to do with rights, by its number."""


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replaces `path` by `data` in one step: a reader sees the old file or the new one, also after a crash.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; `path` is untouched.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_private(path: Path, text: str) -> None:
    """`write_atomic` of a secret: from its first byte only this user can read it, regardless of what `path` was before.

    A symbolic link at `path` is replaced, not followed. Raises OSError.
    """
    with replacing(path, private=True) as temporary:
        temporary.write_bytes(text.encode())


def open_private(path: str, flags: int) -> int:
    """An `opener` of `open`: a file that is made now can be read by this user only."""
    return os.open(path, flags, 0o600)


def write_json(path: Path, value: Any) -> None:
    """Atomically writes indented JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A temporary path in the same folder that becomes `path` when the block succeeds and is removed when it fails.

    For writers that need a file name (parquet, npz). The name keeps the suffix of `path`.

    Args:
        private: only this user may read the file; otherwise it has the user's usual permissions.
    """
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.tmp{path.suffix}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666))
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file; a FIFO, on which a reader would wait for ever, a device or a folder is refused.

    Raises OSError, also for a file that is larger than `max_bytes`.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", str(path))
        return file.read(max_bytes)


def read_token(path: Path | None) -> str:
    """The token in a file; empty without a file.

    Raises ConfigError when it cannot be read, is too short or no token, or when others may read or change it.
    """
    if path is None:
        return ""
    try:
        status = path.stat()
        token = read_regular(path, _MOST_TOKEN_BYTES).decode("ascii").strip()
    except OSError as error:
        remedy = f"make it: (umask 077; openssl rand -base64 24 > {path})" if error.errno == errno.ENOENT else ""
        raise ConfigError(f"cannot read the token: {error.strerror}", where=str(path), remedy=remedy) from error
    except UnicodeDecodeError as error:
        raise ConfigError("the token has characters beyond ASCII", where=str(path), remedy="use another") from error
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            "the token's file belongs to another user", where=str(path), remedy=f"sudo chown $USER {path}"
        )
    if status.st_mode & _FOR_OTHERS:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(
            f"others may read or change the token (mode {mode:04o})", where=str(path), remedy=f"chmod 600 {path}"
        )
    if len(token) < LEAST_TOKEN_CHARACTERS or not token.isprintable() or " " in token:
        raise ConfigError(
            f"the token is not one word of {LEAST_TOKEN_CHARACTERS} characters or more", where=str(path),
            remedy="use a longer one",
        )  # fmt: skip
    return token


@contextlib.contextmanager
def exclusive(path: Path, timeout_s: float) -> Iterator[None]:
    """Holds the lock file for the block; no other process or thread holds it meanwhile. It ends with its process.

    Raises:
        ConflictError: another one holds it for longer than `timeout_s`.
        OSError: the file cannot be made.
    """
    deadline_s = time.monotonic() + timeout_s
    lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        give_to_owner(lock, path.parent)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise ConflictError(
                        "another process is changing this", where=str(path), remedy="wait for it, or end it"
                    ) from None
                select.select([], [], [], 0.01)
        yield
    finally:
        os.close(lock)


def give_to_owner(descriptor: int, folder: Path) -> None:
    """Root's new file in a folder of a user becomes the user's, who could not use it otherwise. Raises OSError."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def is_own_folder(path: Path) -> bool:
    """Whether it is a folder, no link to one, that this user owns and no other user may write in."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def private_folder(path: Path) -> Path:
    """Makes the folder, and those above it that are missing, open to this user only; one that is there keeps its mode.

    Raises OSError.
    """
    if not path.parent.is_dir():
        private_folder(path.parent)
    path.mkdir(0o700, exist_ok=True)
    return path


def socket_place(below: int) -> Path:
    """The folder for temporary folders with Unix sockets, whose paths have at most 107 bytes.

    It is /tmp where the user's own (TMPDIR) is too long.

    Args:
        below: bytes that the path of a socket has below that folder.
    """
    own = Path(tempfile.gettempdir())
    return own if len(os.fsencode(own)) + 1 + below <= SOCKET_PATH_BYTES else Path("/tmp")


def writable_folder(path: Path, *, private: bool = False, option: str = "--out") -> Path:
    """Makes the folder and its parents, checks that files can be written in it, and returns the absolute path.

    Args:
        private: a folder that is made now is open to this user only; one that is there keeps its mode.
        option: that names the folder, for the message.

    Raises:
        ConfigError: it is a file, or cannot be made or written.
    """
    folder = path.expanduser().absolute()
    try:
        if private:
            private_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write in this folder: {error.strerror}", where=str(folder), remedy=f"choose another with {option}"
        ) from error
    return folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
