"""Bearer tokens of the served policy: one per role."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actuators.errors import ConfigError
from actuators.files import read_token

Role = Literal["read", "order", "admin"]
ROLES: tuple[Role, ...] = ("read", "order", "admin")
"""Each may do what those before it may."""
OPTIONS: dict[Role, str] = {"read": "--read-token-file", "order": "--order-token-file", "admin": "--token-file"}


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
        """The role of this token, None for an unknown one; compared in constant time."""
        found: Role | None = None
        for role in ROLES:
            token: str = getattr(self, role)
            if hmac.compare_digest(given, token.encode()) and token:
                found = role
        return found

    def roles_for(self, needed: Role) -> list[Role]:
        """The roles with a token that may do what `needed` may."""
        return [role for role in ROLES[ROLES.index(needed) :] if getattr(self, role)]
