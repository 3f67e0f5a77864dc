"""What a restarted NGINX begins with: a file beside its snippet, of `set --keep`, that lua/kept_rule.lua reads.

The file belongs to the snippet: a folder in a container has another name here, so only the last part of the name is
compared with what NGINX says.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from actuators.errors import ConfigError
from actuators.files import replacing

LAST_LINE = "end\n"
"""Of a kept text: it shows that nothing is missing."""


@contextlib.contextmanager
def keeping(keep: Path | None, read: str, text: str | None) -> Iterator[None]:
    """When the block succeeds, `keep` holds the text and a last line, or is removed for None.

    Args:
        keep: nothing is written when None.
        read: file that this NGINX begins with, as it says; empty for none.

    Raises ConfigError for a file that this NGINX does not read, and for a folder that this user cannot write, before
    the block: nothing may be in force that a restart would undo.
    """
    if keep is None:
        yield
        return
    if keep.name != Path(read).name:
        remedy = f"give {read}" if read else "write its snippet again"
        raise ConfigError("this NGINX does not begin with what is there", where="keep", remedy=remedy)
    if not keep.absolute().parent.is_dir():
        raise ConfigError(f"no folder {keep.parent}", where="keep", remedy="run this where NGINX's files are")
    if not os.access(keep.absolute().parent, os.W_OK | os.X_OK):
        remedy = "run this as root, or as the owner of the snippet"
        raise ConfigError(f"this user cannot write in {keep.parent}", where="keep", remedy=remedy)
    if text is None:
        yield
        keep.unlink(missing_ok=True)
    else:
        with replacing(keep, private=True) as temporary:
            temporary.write_text(text + LAST_LINE, encoding="utf-8")
            yield
