"""`deepsched serve BUNDLE`: weights over HTTP and the live page, on Ray Serve or uvicorn."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from actuators.errors import CapacityError, ConfigError, ConflictError
from actuators.files import exclusive
from actuators.processes.system import free_port
from rayjobs.cli.console import console_err
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.progress import Progress, Stage
from rayjobs.serve.options import ServeOptions, deployment, make_settings, token_file, token_files

if TYPE_CHECKING:
    from rayjobs.serve.app import ServeSettings

_START_S = {"ray": 25.0, "uvicorn": 3.0}
"""Of a start, about, by front."""
_BELOW_BYTES = 40
"""Of the path of a socket of HAProxy, below its folder."""


def run(options: ServeOptions) -> int:
    """Serves until it is interrupted."""
    settings = make_settings(options)
    with contextlib.ExitStack() as stack:
        stages = [Stage("start", _START_S[options.front])]
        with Progress(stages) as progress, progress.stage("start"):
            address = stack.enter_context(serving(options, settings))
        console_err().print(
            f"deepsched serve: http://{address}/ on {options.front}; the admin token is in {token_file(options)}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        threading.Event().wait()
    return 0


@contextlib.contextmanager
def serving(options: ServeOptions, settings: ServeSettings) -> Iterator[str]:
    """Serves the bundle of the settings while the context is open, not what an earlier start left; its HOST:PORT.

    Raises ProcessError or ConfigError.
    """
    from rayjobs.serve.bundles import serve_anew

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(settings.state / ".serve.lock", 0.0))
        except ConflictError:
            remedy = "end it, or give another --folder"
            raise ConfigError("another `deepsched serve` runs here", where=str(options.folder), remedy=remedy) from None
        serve_anew(settings.state)
        port = options.port or free_port(options.host)
        address = f"[{options.host}]:{port}" if ":" in options.host else f"{options.host}:{port}"
        front = _on_uvicorn if options.front == "uvicorn" else _on_ray
        stack.enter_context(front(options, settings, port))
        yield address


@contextlib.contextmanager
def _on_uvicorn(options: ServeOptions, settings: ServeSettings, port: int) -> Iterator[None]:
    import uvicorn

    from rayjobs.serve.app import create_app
    from rayjobs.serve.connections import HEADERS_S, BoundedConnection
    from rayjobs.serve.telemetry import log_to_stderr

    log_to_stderr()
    config = uvicorn.Config(
        create_app(settings), host=options.host, port=port, log_level="warning", access_log=False,
        server_header=False, lifespan="off", http=BoundedConnection, timeout_keep_alive=round(HEADERS_S),
    )  # fmt: skip
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
        # It would wait for open event streams.
        server.force_exit = True
        thread.join(5.0)


@contextlib.contextmanager
def _on_ray(options: ServeOptions, settings: ServeSettings, port: int) -> Iterator[None]:
    from rayjobs.runs.joining import named_ray
    from rayjobs.runs.local_ray import ray_session, socket_folder

    before, joins = dict(os.environ), named_ray(options.address) is not None
    with socket_folder(_BELOW_BYTES) as folder:
        if options.haproxy and not joins:
            os.environ.update(haproxy_environment(folder))
        try:
            with ray_session(address=options.address):
                import ray
                from ray import serve

                from rayjobs.serve.ray_app import NAME, deploy, deployed, runs, settings_args, start

                needed, cpus = options.replicas * options.cpus, ray.cluster_resources().get("CPU", 0.0)
                # Serve would wait for ever, also on a cluster that was joined, but that one may grow.
                if not joins and needed > cpus:
                    what, remedy = f"{options.replicas} replicas need {needed:g} CPUs", "lower --replicas or --cpus"
                    raise CapacityError(f"{what}, there are {cpus:g}", where="--replicas", remedy=remedy)
                found = joins and runs()
                start(options.host, port)
                # Serve would replace it, and our end delete it. Before the `try`: a refusal deletes nothing.
                if found and NAME in serve.status().applications:
                    remedy = "end that `deepsched serve`; of a killed one: `serve shutdown`, which ends all of Serve"
                    raise ConfigError(f"this Ray serves '{NAME}' already", where="serve", remedy=remedy)
                app = deployed(settings_args(settings), deployment(options))
                try:
                    deploy(app)
                    yield
                finally:
                    # A Ray that was joined goes on, with what else it serves.
                    if joins:
                        serve.delete(NAME)
                        if not (found or serve.status().applications):
                            serve.shutdown()
        finally:
            os.environ.clear()
            os.environ.update(before)


def haproxy_environment(folder: Path) -> dict[str, str]:
    """Settings of Ray's HAProxy: files in `folder`, where statistics and metrics have sockets with these numbers."""
    from rayjobs.serve.haproxy_sockets import REAL, launcher, real_binary

    prefix = "RAY_SERVE_HAPROXY_"
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        REAL: real_binary(),
        f"{prefix}BINARY_PATH": str(launcher(folder)),
        f"{prefix}CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        f"{prefix}SOCKET_PATH": str(folder / "admin.sock"),
        f"{prefix}SERVER_STATE_BASE": str(folder),
        f"{prefix}SERVER_STATE_FILE": str(folder / "server-state"),
        f"{prefix}METRICS_PORT": "1",
        f"{prefix}STATS_PORT": "2",
        f"{prefix}NBTHREAD": "1",
        f"{prefix}MAXCONN": "512",
        # Of a client that neither sends nor reads; Ray waits for an hour.
        f"{prefix}TIMEOUT_CLIENT_S": "30",
    }


def serve_yaml(options: ServeOptions) -> str:
    """A config file for `serve deploy` and `serve run`; it names the files of the tokens, not the tokens."""
    from rayjobs.serve.ray_app import NAME, TOKEN_FILES, settings_args

    args = settings_args(make_settings(options))
    del args["rules"]["tokens"]
    args["rules"] |= {TOKEN_FILES[role]: str(path) for role, path in token_files(options).items()}
    document = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": options.host, "port": options.port or 8000},
        "logging_config": {"encoding": "JSON", "log_level": "INFO"},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": "rayjobs.serve.ray_app:build",
                "args": args,
                "deployments": [{"name": "Policy", **deployment(options)}],
            }
        ],
    }
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text


VERB = Verb(
    name="serve",
    example="deepsched serve runs/demo/bundle --port 8000",
    options=ServeOptions,
    run=run,
    positional=("bundle",),
    render=serve_yaml,
    common=(
        "host", "port", "front", "replicas", "max_replicas", "batch_size", "bundles", "folder", "steer_folder",
        "token_file", "order_token_file", "read_token_file",
    ),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_verb(VERB))
