"""The running NGINX that a pid file names."""

from __future__ import annotations

from pathlib import Path

import psutil

from actuators.errors import ActuationError
from actuators.files import read_regular

_TITLE = ["nginx:", "master", "process"]


def master_process(pid_file: Path, config: Path) -> psutil.Process:
    """The NGINX master of this configuration; another process that has its number by now is none.

    Its time of start tells nothing more: where the clock was set since, it is not comparable with that of the file.
    Raises ActuationError.
    """
    where, remedy = str(pid_file), "set reload.pid_file"
    try:
        process = psutil.Process(int(read_regular(pid_file, 64)))
        title = " ".join(process.cmdline()).split()
    except (OSError, ValueError, psutil.Error) as error:
        raise ActuationError("NGINX is not running", where=where, remedy="start it, or set reload.pid_file") from error
    # Soon after its start NGINX writes its title, with the arguments it was started with, over its command line.
    if title[:3] != _TITLE and Path(*title[:1]).name != "nginx":
        raise ActuationError(f"process {process.pid} is not an NGINX master", where=where, remedy=remedy)
    given = Path(title[title.index("-c") + 1]) if "-c" in title[:-1] else None
    if given is not None and given.is_absolute() and given.resolve() != config.resolve():
        raise ActuationError(f"process {process.pid} runs {given}", where=where, remedy=remedy)
    return process
