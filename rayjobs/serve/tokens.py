"""Bearer tokens of the served policy: one per role, each in a file that its owner and at most a group may read."""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actuators.errors import ConfigError
from actuators.files import read_regular

Role = Literal["read", "order", "admin"]
ROLES: tuple[Role, ...] = ("read", "order", "admin")
"""Each may do what those before it may."""
OPTIONS: dict[Role, str] = {"read": "--read-token-file", "order": "--order-token-file", "admin": "--token-file"}
LEAST_CHARACTERS = 16
_MOST_BYTES = 2**12
_FOR_OTHERS = stat.S_IWGRP | stat.S_IRWXO


@dataclass(frozen=True)
class Tokens:
    """The token of each role; empty where a role has none.

    Raises ConfigError when two roles have the same token.
    """

    admin: str
    order: str = ""
    read: str = ""

    def __post_init__(self) -> None:
        given = {role: token for role in ROLES if (token := getattr(self, role))}
        for role, token in given.items():
            if (other := next(name for name, same in given.items() if same == token)) != role:
                raise ConfigError(
                    f"the same token as that of {OPTIONS[other]}", where=OPTIONS[role], remedy="give each its own"
                )

    @classmethod
    def read_from(cls, files: Mapping[Role, Path]) -> Tokens:
        """The tokens in these files. Raises ConfigError, also as `read_token`."""
        return cls(**{role: read_token(path) for role, path in files.items()})

    def role_of(self, given: bytes) -> Role | None:
        """Whose token this is, None for nobody's; the time that it takes does not depend on how much of it is right."""
        found: Role | None = None
        for role in ROLES:
            token: str = getattr(self, role)
            if hmac.compare_digest(given, token.encode()) and token:
                found = role
        return found

    def roles_for(self, needed: Role) -> list[Role]:
        """The roles with a token that may do what `needed` may."""
        return [role for role in ROLES[ROLES.index(needed) :] if getattr(self, role)]


def read_token(path: Path) -> str:
    """The token in a file.

    Raises ConfigError when it cannot be read, is too short or no token, or when others may read or change it.
    """
    try:
        status = path.stat()
        token = read_regular(path, _MOST_BYTES).decode("ascii").strip()
    except OSError as error:
        remedy = (
            f"make it: (umask 077; openssl rand -base64 24 > {path})" if isinstance(error, FileNotFoundError) else ""
        )
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
    if len(token) < LEAST_CHARACTERS or not token.isprintable() or " " in token:
        raise ConfigError(
            f"the token is not one word of {LEAST_CHARACTERS} characters or more", where=str(path),
            remedy="use a longer one",
        )  # fmt: skip
    return token
