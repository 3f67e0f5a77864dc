"""`--keep` of the verbs that change an NGINX in memory: what it begins with after a restart, and the line about it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from actuators.external.kept import keeping


@contextlib.contextmanager
def kept_for_restarts(
    keep: Path | None, read: str, text: str | None, begins: str, log: Callable[[str], None]
) -> Iterator[None]:
    """When the block succeeds, a restarted NGINX begins with the text, and a line says so; without `keep` the line says
    how it would.

    Args:
        keep, read, text: as of `actuators.external.kept.keeping`; `read` is what this NGINX says before the block.
        begins: how a restarted NGINX begins by `keep`, in words.

    Raises ConfigError for a file that this NGINX does not read, before the block.
    """
    with keeping(keep, read, text):
        yield
    if keep is not None:
        log(f"a restarted NGINX begins {begins}")
    elif read:
        log(f"a restarted NGINX loads {read} if it exists; --keep {read} writes the present state there")
