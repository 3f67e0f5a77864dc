"""Folders of a submitted job through the interface that took the job: a second job packs them into its log.

The interface is often all of a cluster that a user reaches, through SSH or a port-forward; files have no way of their
own there (ray 2.60).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import gzip
import io
import os
import re
import shlex
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from requests import RequestException

from actuators.errors import ConfigError, DataError, ProcessError
from rayjobs.runs.folder import STAYS

_BEGIN, _END = "deepsched-fetch-begin", "deepsched-fetch-end"
_PAUSE_S, PACK_TIMEOUT_S = 0.5, 300.0
_LEFT_OUT = "social_network*.sqlite*"
"""Databases of servers that were killed (`actuators.testbed.parts`)."""
_ON_CLUSTER = re.compile(STAYS.replace("PATH", r"(?P<path>/.*)").replace("HOST", r"\S+"))


def job_client(address: str | None) -> Any:
    """A client of the jobs at that address, or of those that the environment names when it is None.

    Raises ConfigError when no job server answers there, or when it rejects the token.
    """
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    # Ray would prefer its environment to the address that was given (ray 2.60).
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if address is not None else ()
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "give http://HOST:8265 of the head; for a token: export RAY_AUTH_MODE=token"
        raise ConfigError(f"cannot reach Ray's jobs: {what}", where="--address", remedy=remedy) from error
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Raises ProcessError when Ray's jobs, which have answered once, do not any more."""
    try:
        yield
    except (RuntimeError, RequestException) as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "see whether it can still be reached, and fetch again"
        raise ProcessError(f"Ray's jobs do not answer any more: {what}", where="--address", remedy=remedy) from error


@answering()
def folders_of(client: Any, job: str) -> list[str]:
    """Paths on the cluster of the folders that the job said would stay there.

    Raises ConfigError for an unknown job, or when it has said none, and as `answering`.
    """
    known = [each.submission_id for each in client.list_jobs() if each.submission_id]
    if job not in known:
        latest = ", ".join(known[-3:]) or "none"
        raise ConfigError(f"no job '{job}'", where="job", remedy=f"one of `ray job list`; the last ones: {latest}")
    found = list(dict.fromkeys(match["path"] for match in _ON_CLUSTER.finditer(client.get_job_logs(job))))
    if not found:
        remedy = "see `ray job logs`; with --storage the results are there, with --out in that folder"
        raise ConfigError(f"{job} has no results that stayed on the cluster", where="job", remedy=remedy)
    return found


@answering()
def packed(client: Any, job: str, folder: str, report: Callable[[str], None]) -> bytes:
    """The folder as a compressed archive, without databases of stand-in servers.

    Raises:
        DataError: the cluster does not have the folder any more, or the log is not whole.
        ProcessError: the job that packs did not end in time, or Ray's jobs do not answer any more.
    """
    parent, _, name = folder.rpartition("/")
    # The log of a job contains its stderr: without this, tar's warnings about a running job would be in the archive.
    tar = f"tar -C {shlex.quote(parent)} --exclude={shlex.quote(_LEFT_OUT)} -cz {shlex.quote(name)} 2>/dev/null"
    pack = f"echo {_BEGIN}; {tar} | base64; echo {_END}"
    command = f"sh -c {shlex.quote(f'test -d {shlex.quote(folder)} || exit 3; {pack}')}"
    packing = client.submit_job(entrypoint=command, entrypoint_resources=_same_node(client, job))
    deadline_s = time.monotonic() + PACK_TIMEOUT_S
    try:
        while not (status := client.get_job_status(packing)).is_terminal():
            report(f"packing {folder}")
            if time.monotonic() > deadline_s:
                raise ProcessError(f"packing took more than {PACK_TIMEOUT_S:g} s", where=folder, remedy="try again")
            time.sleep(_PAUSE_S)
        log = client.get_job_logs(packing)
    finally:
        # After an interrupt as well as after the time limit it would go on.
        if client.get_job_status(packing).is_terminal():
            client.delete_job(packing)
        else:
            client.stop_job(packing)
    if str(status.value) != "SUCCEEDED":
        raise DataError("the cluster does not have this folder any more", where=folder, remedy="run the job again")
    # Ray writes this line whole, but anywhere: it flushes it after the command has begun (ray 2.60).
    return _unwrapped(log.replace(f"Running entrypoint for job {packing}: {command}\n", ""), folder)


def unpack(archive: bytes, into: Path) -> Path:
    """Writes the one folder of the archive below `into`, as a whole or not at all; where it is.

    Raises ConfigError when it is there already, DataError for anything but ordinary files below one folder, and OSError
    when it cannot be written.
    """
    try:
        with contextlib.ExitStack() as stack:
            tar = stack.enter_context(tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz"))
            names = {member.name.split("/")[0] for member in tar.getmembers()}
            if len(names) != 1 or names & {"", ".", ".."}:
                raise DataError("not one folder", where="archive", remedy="fetch again")
            target = into / names.pop()
            if target.exists():
                raise ConfigError("it is there already", where=str(target), remedy="remove it, or give another --out")
            partial = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".fetch-", dir=into)))
            tar.extractall(partial, filter="data")
            (partial / target.name).rename(target)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"the archive is not whole: {error}", where="archive", remedy="fetch again") from error
    return target


def _same_node(client: Any, job: str) -> dict[str, float] | None:
    """A trace of the resource that only the job's own node has: its folder is there."""
    host = urlparse(client.get_job_info(job).driver_agent_http_address or "").hostname
    return None if host is None else {f"node:{host}": 0.001}


def _unwrapped(log: str, folder: str) -> bytes:
    _, begun, rest = log.partition(f"{_BEGIN}\n")
    text, ended, _ = rest.partition(_END)
    try:
        if not (begun and ended):
            raise ValueError("the log has no archive")
        return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise DataError(f"the log of the packing is not whole: {error}", where=folder, remedy="fetch again") from error
