"""Which Ray a verb works on: one that the user names, that of its submitted job, or a private one of its own."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass

from actuators.errors import ConfigError
from actuators.options import Options

LOCAL, AUTO = "local", "auto"
VARIABLE = "RAY_ADDRESS"
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it in the environment of the entrypoint of a submitted job."""
_REACH_S = 5.0


class RayOptions(Options):
    """Options of a verb that works on Ray."""

    address: str | None = None
    """Ray to work on: HOST:PORT of its head, `auto` for the one of this machine, `local` for a private one. When not
    given, RAY_ADDRESS names it; without RAY_ADDRESS it is the cluster of a submitted job or else a private one."""


@dataclass(frozen=True)
class Named:
    """A Ray that somebody named, and how."""

    address: str
    source: str


def in_job() -> bool:
    """Whether `ray job submit` started this process."""
    return JOB_CONFIG in os.environ


def submitted_job() -> str:
    """The submission id of the job that this process belongs to; JOB when Ray does not tell."""
    try:
        return str(json.loads(os.environ[JOB_CONFIG])["metadata"]["job_submission_id"])
    except (KeyError, ValueError, TypeError):
        return "JOB"


def named_ray(address: str | None) -> Named | None:
    """The Ray to join; None for a private one.

    Args:
        address: the verb's option.

    Raises:
        ConfigError: the address is not one of a head.
    """
    if address is not None:
        named = Named(address, "--address")
    elif in_job():
        named = Named(AUTO, "that of this job")
    else:
        named = Named(os.environ.get(VARIABLE, ""), VARIABLE)
    if named.address in ("", LOCAL):
        return None
    if named.address != AUTO:
        _check(named)
    return named


def _check(named: Named) -> None:
    """Ray itself would wait for minutes, and then end the process."""
    if named.address.startswith(("http://", "https://")):
        remedy = (
            "give HOST:PORT of the head, or `ray job submit` the command to it; RAY_ADDRESS=local for a private Ray"
        )
        raise ConfigError(f"{named.address} takes submitted jobs only", where=named.source, remedy=remedy)
    host, colon, port = named.address.rpartition(":")
    if "://" in named.address or not colon or not port.isdecimal():
        remedy = "give HOST:PORT of the head, auto or local"
        raise ConfigError(f"invalid Ray address '{named.address}'", where=named.source, remedy=remedy)
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    except (OSError, OverflowError) as error:
        remedy = "start it, or leave the address out for a private Ray"
        raise ConfigError(f"no Ray at {named.address}: {error}", where=named.source, remedy=remedy) from error
