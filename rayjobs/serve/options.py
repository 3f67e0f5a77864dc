"""Options of `deepsched serve`, and what follows from them: settings, token, Ray Serve's deployment."""

from __future__ import annotations

import ipaddress
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from actuators.errors import ConfigError
from actuators.files import exclusive, writable_folder, write_private
from actuators.options import GIVEN, NOT_GIVEN, Never, Only, OnlyIf
from actuators.store import LOCK_TIMEOUT_S
from rayjobs.runs.joining import RayOptions
from rayjobs.serve.tokens import Role, Tokens
from tuning.steering.options import GuardOptions

if TYPE_CHECKING:
    from rayjobs.serve.app import ServeSettings


SERVES_TARGET = 2.0
"""Concurrent requests per replica that Ray Serve aims at by default."""


_DELAYS = ("upscale_delay_s", "downscale_delay_s")
_GUARDS_OF_ONE_ANSWER = {
    "floor", "cap_share", "min_requests", "novel_above", "novel_share", "overload_ratio", "overload_pull",
}  # fmt: skip
"""The guards of `tuning.steering.decide.decide_alone`."""


class ServeOptions(RayOptions):
    """Options of `deepsched serve`."""

    only: ClassVar = {
        "address": Only(front="ray"),
        "batch_wait_ms": OnlyIf(
            lambda options: options.batch_size > 1, "with batch_size=1", "set batch_size=2 or more"
        ),
        **{
            f"guards.{name}": Never("an answer knows no earlier windows: set it for `deepsched steer run`")
            for name in GuardOptions.model_fields.keys() - _GUARDS_OF_ONE_ANSWER
        },
    }

    bundle: Path
    """Folder of the trained policy."""
    host: str = "127.0.0.1"
    """Address to listen on; beyond loopback every request for data needs a token."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    front: Literal["ray", "uvicorn"] = "ray"
    """ray: Ray Serve with replicas; uvicorn: one process without Ray, several times faster per request."""
    haproxy: Annotated[bool, Only(front="ray", address=NOT_GIVEN)] = True
    """ray: HAProxy instead of Ray's own proxy, four times faster; its statistics stay on loopback. A joined Ray keeps
    the proxy that it was started with."""
    replicas: Annotated[int, Only(front="ray")] = Field(1, ge=1, le=64)
    """ray: number of replicas; the minimum when `max_replicas` is given."""
    max_replicas: Annotated[int | None, Only(front="ray")] = Field(None, ge=1, le=64)
    """ray: maximum number of replicas; Serve adds replicas while requests wait. Fixed number when not given."""
    target_ongoing_requests: Annotated[float | None, Only(front="ray", max_replicas=GIVEN)] = Field(None, gt=0)
    """ray, with `max_replicas`: concurrent requests per replica above which a replica is added; 2 or the batch size,
    the larger, when not given."""
    upscale_delay_s: Annotated[float | None, Only(front="ray", max_replicas=GIVEN)] = Field(None, ge=0)
    """ray, with `max_replicas`: how long requests wait before a replica is added; Ray's 30 s when not given."""
    downscale_delay_s: Annotated[float | None, Only(front="ray", max_replicas=GIVEN)] = Field(None, ge=0)
    """ray, with `max_replicas`: how long a replica is not needed before it is removed; Ray's 600 s when not given."""
    batch_size: Annotated[int, Only(front="ray")] = Field(1, ge=1, le=256)
    """ray: maximum number of requests that one call of the network decides; 1 is fastest for a single client."""
    batch_wait_ms: Annotated[float, Only(front="ray")] = Field(0.0, ge=0, le=1000)
    """ray: how long the first request of a batch waits for others; 0 takes only those that are already waiting."""
    max_ongoing_requests: Annotated[int, Only(front="ray")] = Field(64, ge=1)
    """ray: maximum number of concurrent requests per replica."""
    cpus: Annotated[float, Only(front="ray")] = Field(0.5, ge=0)
    """ray: CPUs that a replica claims."""
    bundles: Path | None = None
    """Folder of bundles that may be served instead; the parent folder of `bundle` when not given."""
    folder: Path = Path("runs/serve")
    """Folder of the state: the bundle in use, and the token when `token_file` is not given."""
    steer_folder: Path = Path("runs/steer")
    """Folder of the controller (`deepsched steer`) that the live page shows and controls."""
    token_file: Path | None = None
    """File with the bearer token that allows everything, including bundle swaps; when not given, `FOLDER/token`, which
    is created."""
    order_token_file: Path | None = None
    """File with a token that allows reading, decisions and orders, but no bundle swaps; when not given, only the first
    token allows orders."""
    read_token_file: Path | None = None
    """File with a token that allows only reading: live page, metrics, the served policy. When given, data and decisions
    need a token on loopback, too; beyond loopback they always do."""
    max_body_bytes: int = Field(16 * 2**20, ge=1024)
    """Largest request body that is accepted."""
    guards: GuardOptions = GuardOptions()
    """Limits on every answer."""


def make_settings(options: ServeOptions) -> ServeSettings:
    """Settings of the server; creates the token file. Raises ConfigError or BundleError."""
    from rayjobs.serve.app import Batching, ServeSettings
    from rayjobs.serve.gate import GateRules
    from tuning.policy.bundle import check_bundle

    _check_scale(options)
    bundle = check_bundle(options.bundle)
    state = writable_folder(options.folder, private=True, option="--folder")
    rules = GateRules(_tokens(options), not _is_loopback(options.host), options.max_body_bytes)
    root = (options.bundles or bundle.parent).absolute()
    batching = Batching(options.batch_size, options.batch_wait_ms / 1e3)
    return ServeSettings(bundle, root, state, options.steer_folder.absolute(), rules, options.guards, batching)


def deployment(options: ServeOptions) -> dict[str, Any]:
    """Options of the deployment, in the form of Serve's YAML and of `@serve.deployment`."""
    scale: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas is not None:
        target = options.target_ongoing_requests or max(float(options.batch_size), SERVES_TARGET)
        scale = {
            "autoscaling_config": {
                "min_replicas": options.replicas,
                "max_replicas": options.max_replicas,
                "target_ongoing_requests": target,
                **{name: delay_s for name in _DELAYS if (delay_s := getattr(options, name)) is not None},
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


def token_file(options: ServeOptions) -> Path:
    """Where the token that allows everything is."""
    return (options.token_file or options.folder / "token").absolute()


def token_files(options: ServeOptions) -> dict[Role, Path]:
    """Where the tokens are, by role."""
    files: dict[Role, Path] = {"admin": token_file(options)}
    if options.order_token_file is not None:
        files["order"] = options.order_token_file.absolute()
    if options.read_token_file is not None:
        files["read"] = options.read_token_file.absolute()
    return files


def _check_scale(options: ServeOptions) -> None:
    """Raises ConfigError for numbers that contradict each other."""
    if options.max_replicas is not None and options.max_replicas < options.replicas:
        raise ConfigError(
            f"a maximum of {options.max_replicas} replicas is below the minimum of {options.replicas}",
            where="--max-replicas",
            remedy=f"give {options.replicas} or more",
        )  # fmt: skip
    if options.batch_size > options.max_ongoing_requests:
        raise ConfigError(
            f"a batch of {options.batch_size} exceeds the {options.max_ongoing_requests} requests of a replica",
            where="--batch-size", remedy="raise --max-ongoing-requests",
        )  # fmt: skip


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tokens(options: ServeOptions) -> Tokens:
    path = token_file(options)
    if options.token_file is None:
        with exclusive(path.with_name(".token.lock"), LOCK_TIMEOUT_S):
            if not path.exists():
                write_private(path, secrets.token_urlsafe(24))
    return Tokens.read_from(token_files(options))
