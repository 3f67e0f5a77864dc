"""`deepsched serve BUNDLE`: answers with weights over HTTP, shows the live page; on Ray Serve or plain uvicorn."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import Field

from actuators.errors import ConfigError
from actuators.files import writable_folder
from actuators.options import Options
from actuators.ports import free_port
from rayjobs.cli import Verb, run_verb
from rayjobs.console import remarks
from rayjobs.serve_deployment import check_scale, deployment
from tuning.guards import GuardOptions

if TYPE_CHECKING:
    from rayjobs.serve_app import ServeSettings


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


def run(options: ServeOptions) -> int:
    """Serves until it is ended."""
    settings = make_settings(options)
    with serving(options, settings) as address:
        remarks().print(
            f"deepsched serve: http://{address}/ on {options.front}; the token of changes is in {_token_file(options)}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        threading.Event().wait()
    return 0


def make_settings(options: ServeOptions) -> ServeSettings:
    """Raises ConfigError or BundleError for options that cannot be served."""
    from rayjobs.serve_app import Batching, ServeSettings
    from rayjobs.serve_gate import GateRules
    from tuning.trust import check_bundle

    if options.bundle is None:
        raise ConfigError("give a bundle", where="serve", remedy="deepsched serve runs/…/bundle")
    check_scale(options)
    bundle = check_bundle(options.bundle)
    state = writable_folder(options.folder)
    rules = GateRules(_token(options), not _is_loopback(options.host), options.max_body_bytes)
    root = (options.bundles or bundle.parent).absolute()
    batching = Batching(options.batch_size, options.batch_wait_ms / 1e3)
    return ServeSettings(bundle, root, state, options.steer_folder.absolute(), rules, options.guards, batching)


@contextlib.contextmanager
def serving(options: ServeOptions, settings: ServeSettings) -> Iterator[str]:
    """HOST:PORT while the policy is served there. Raises ProcessError."""
    port = options.port or free_port(options.host)
    address = f"[{options.host}]:{port}" if ":" in options.host else f"{options.host}:{port}"
    with _on_uvicorn(options, settings, port) if options.front == "uvicorn" else _on_ray(options, settings, port):
        yield address


@contextlib.contextmanager
def _on_uvicorn(options: ServeOptions, settings: ServeSettings, port: int) -> Iterator[None]:
    import uvicorn

    from rayjobs.serve_app import create_app
    from rayjobs.serve_log import log_to_stderr

    log_to_stderr()
    config = uvicorn.Config(
        create_app(settings),
        host=options.host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="uvicorn", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise ConfigError(f"cannot listen on port {port}", where="serve", remedy="choose another --port")
        thread.join(0.02)
    try:
        yield
    finally:
        server.should_exit = True
        # An open stream of events would keep it waiting.
        server.force_exit = True
        thread.join(5.0)


@contextlib.contextmanager
def _on_ray(options: ServeOptions, settings: ServeSettings, port: int) -> Iterator[None]:
    from rayjobs.local_ray import ray_session

    before = dict(os.environ)
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="ds-ha-") as folder:
        if options.haproxy:
            os.environ.update(haproxy_environment(Path(folder)))
        try:
            with ray_session():
                from ray import serve

                from rayjobs.serve_ray import NAME, deployed, settings_args, start

                start(options.host, port)
                app = deployed(settings_args(settings), deployment(options))
                serve.run(app, name=NAME, route_prefix="/")
                yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def haproxy_environment(folder: Path) -> dict[str, str]:
    """Settings of Ray's HAProxy: files in `folder`, statistics and metrics on free loopback ports."""
    from rayjobs.haproxy_loopback import REAL, launcher, real_binary

    prefix = "RAY_SERVE_HAPROXY_"
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        REAL: real_binary(),
        f"{prefix}BINARY_PATH": str(launcher(folder)),
        f"{prefix}CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        f"{prefix}SOCKET_PATH": str(folder / "admin.sock"),
        f"{prefix}SERVER_STATE_BASE": str(folder),
        f"{prefix}SERVER_STATE_FILE": str(folder / "server-state"),
        f"{prefix}METRICS_PORT": str(free_port("127.0.0.1")),
        f"{prefix}STATS_PORT": str(free_port("127.0.0.1")),
        f"{prefix}NBTHREAD": "1",
    }


def serve_yaml(options: ServeOptions) -> str:
    """What `serve deploy` and `serve run` take; the token stays in its file."""
    from rayjobs.serve_ray import NAME, settings_args

    args = settings_args(make_settings(options))
    del args["rules"]["token"]
    args["rules"]["token_file"] = str(_token_file(options))
    document = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": options.host, "port": options.port or 8000},
        "logging_config": {"encoding": "JSON", "log_level": "INFO"},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": "rayjobs.serve_ray:build",
                "args": args,
                "deployments": [{"name": "Policy", **deployment(options)}],
            }
        ],
    }
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text


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


VERB = Verb(
    name="serve",
    summary="serve a bundle over HTTP: weights, live page, metrics; on Ray Serve or plain uvicorn",
    example="deepsched serve runs/demo/bundle --port 8000",
    options=ServeOptions,
    run=run,
    positional=("bundle",),
    render=serve_yaml,
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
