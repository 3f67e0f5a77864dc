"""How Ray Serve runs the served policy: replicas, autoscaling, health; from the options of `deepsched serve`."""

from __future__ import annotations

import ipaddress
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from actuators.errors import ConfigError
from actuators.files import writable_folder
from actuators.options import Options
from tuning.steering.guards import GuardOptions

if TYPE_CHECKING:
    from rayjobs.serve.app import ServeSettings


SERVES_TARGET = 2.0
"""Requests at once per replica that Serve itself aims at."""


def check_scale(options: ServeOptions) -> None:
    """Raises ConfigError for numbers that contradict each other."""
    if options.max_replicas is not None and options.max_replicas < options.replicas:
        raise ConfigError(
            f"at most {options.max_replicas} replicas, but at least {options.replicas}", where="--max-replicas",
            remedy=f"give {options.replicas} or more",
        )  # fmt: skip
    if options.batch_size > options.max_ongoing_requests:
        raise ConfigError(
            f"a batch of {options.batch_size}, but a replica takes {options.max_ongoing_requests} requests at once",
            where="--batch-size", remedy="raise --max-ongoing-requests",
        )  # fmt: skip


def deployment(options: ServeOptions) -> dict[str, Any]:
    """Options of the one deployment, as Serve's YAML and `@serve.deployment` take them."""
    scale: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas is not None:
        target = options.target_ongoing_requests or max(float(options.batch_size), SERVES_TARGET)
        scale = {
            "autoscaling_config": {
                "min_replicas": options.replicas,
                "max_replicas": options.max_replicas,
                "target_ongoing_requests": target,
            }
        }
    return {
        **scale,
        "max_ongoing_requests": options.max_ongoing_requests,
        "health_check_period_s": 2,
        "health_check_timeout_s": 5,
        "graceful_shutdown_timeout_s": 5,
        "ray_actor_options": {"num_cpus": options.cpus},
    }


class ServeOptions(Options):
    """What is served, to whom, and on what."""

    bundle: Path | None = None
    """Folder of the trained policy."""
    host: str = "127.0.0.1"
    """Address to listen on; beyond loopback every request for data needs the token."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    front: Literal["ray", "uvicorn"] = "ray"
    """ray: Ray Serve, with replicas; uvicorn: one process and no Ray, several times quicker per request."""
    haproxy: bool = True
    """ray: HAProxy in front instead of Ray's own proxy, four times quicker; its statistics stay on loopback."""
    replicas: int = Field(1, ge=1, le=64)
    """ray: replicas, or the fewest when `max_replicas` is given."""
    max_replicas: int | None = Field(None, ge=1, le=64)
    """ray: most replicas; Serve adds some while requests wait."""
    target_ongoing_requests: float | None = Field(None, gt=0)
    """ray, with `max_replicas`: requests at once per replica above which one is added; 2, or a whole batch, when not
    given."""
    batch_size: int = Field(1, ge=1, le=256)
    """ray: most requests that one call of the network decides; 1 decides each by itself, quickest for one client."""
    batch_wait_ms: float = Field(0.0, ge=0, le=1000)
    """ray: how long the first request of a batch waits for others; 0 takes those that wait already."""
    max_ongoing_requests: int = Field(64, ge=1)
    """ray: requests that one replica takes at once."""
    cpus: float = Field(0.5, ge=0)
    """ray: CPUs that a replica claims."""
    bundles: Path | None = None
    """Folder below which other bundles may lie; that of the first one when not given."""
    folder: Path = Path("runs/serve")
    """Which bundle is in use, and the token when no file is given."""
    steer_folder: Path = Path("runs/steer")
    """Folder of the controller that the page shows and commands."""
    token_file: Path | None = None
    """Holds the bearer token of changes, and of everything beyond loopback."""
    max_body_bytes: int = Field(16 * 2**20, ge=1024)
    """Longest request body."""
    guards: GuardOptions = GuardOptions()
    """Limits that a single answer obeys."""


def make_settings(options: ServeOptions) -> ServeSettings:
    """Raises ConfigError or BundleError for options that cannot be served."""
    from rayjobs.serve.app import Batching, ServeSettings
    from rayjobs.serve.gate import GateRules
    from tuning.policy.bundle import check_bundle

    if options.bundle is None:
        raise ConfigError("give a bundle", where="serve", remedy="deepsched serve runs/…/bundle")
    check_scale(options)
    bundle = check_bundle(options.bundle)
    state = writable_folder(options.folder)
    rules = GateRules(_token(options), not _is_loopback(options.host), options.max_body_bytes)
    root = (options.bundles or bundle.parent).absolute()
    batching = Batching(options.batch_size, options.batch_wait_ms / 1e3)
    return ServeSettings(bundle, root, state, options.steer_folder.absolute(), rules, options.guards, batching)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token_file(options: ServeOptions) -> Path:
    return (options.token_file or options.folder / "token").absolute()


def _token(options: ServeOptions) -> str:
    path = _token_file(options)
    if options.token_file is None and not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"cannot read the token: {error.strerror}", where=str(path)) from error
    if len(token) < 16:
        raise ConfigError("the token is shorter than 16 characters", where=str(path), remedy="make a longer one")
    return token
