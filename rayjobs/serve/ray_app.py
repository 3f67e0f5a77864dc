"""The served policy as a Ray Serve application.

`rayjobs.serve.ray_app:build` is the import path of the YAML that `deepsched serve --print-config` prints;
`rayjobs.serve.ray_app:app` is the application itself, for `serve build` and `serve run`.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.context import _get_global_client  # nothing public tells what Serve listens on
from ray.serve.exceptions import RayServeException

from actuators.errors import ConfigError, ProcessError
from rayjobs.cli.config import load_options
from rayjobs.serve.answers import Refusal
from rayjobs.serve.app import Batching, ServeSettings, create_app, open_answers
from rayjobs.serve.gate import GateRules
from rayjobs.serve.options import ServeOptions, deployment, make_settings
from rayjobs.serve.ray_metrics import RayCounts
from rayjobs.serve.telemetry import Metrics, log_with_serve
from rayjobs.serve.tokens import Role, Tokens
from tuning.steering.options import GuardOptions

NAME = "deepsched"
TOKEN_FILES: dict[Role, str] = {"admin": "token_file", "order": "order_token_file", "read": "read_token_file"}
"""Names in the rules of a config file."""
VARIABLE = "DEEPSCHED_SERVE"
"""Environment variable with the file of options of `app`."""
START_TRIES = 3
"""Ray Serve waits 60 s for its proxy to start, which a busy machine can exceed."""


class PolicyReplica:
    """One replica. Its state is a file (`BundleStore`), so replicas can be replaced at any time."""

    def __init__(self, settings: dict[str, Any]) -> None:
        log_with_serve()
        self._settings = settings_of(settings)
        self._answers = open_answers(self._settings, Metrics(RayCounts()))
        batching = self._settings.batching
        if batching.size > 1:
            self._together.set_max_batch_size(batching.size)
            self._together.set_batch_wait_timeout_s(batching.wait_s)
            self._answers.together = self._together

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self._settings, self._answers)

    async def answer(self, body: bytes) -> bytes:
        """`POST /v1/weights` for a deployment handle, without HTTP or a proxy."""
        return await self._answers.answer(body)

    @serve.batch
    async def _together(self, bodies: list[bytes]) -> list[bytes | Refusal]:
        return await self._answers.answer_each(bodies)


def runs() -> bool:
    """Whether this cluster has a Ray Serve."""
    try:
        _get_global_client()
    except RayServeException:
        return False
    return True


def start(host: str, port: int) -> None:
    """Starts Ray Serve on this cluster.

    Raises:
        ProcessError: its proxy does not listen in time.
        ConfigError: it runs already with another host or port, which it keeps.
    """
    http = {"host": host, "port": port}
    last: Exception | None = None
    for _ in range(START_TRIES):
        try:
            # A second call finds the first one's controller and does not wait for its proxy.
            serve.start(http_options=http, proxy_location="HeadOnly", logging_config={"encoding": "JSON"})
        except (TimeoutError, RayActorError) as error:
            last = error
        else:
            kept = _get_global_client().http_config
            if (kept.host, kept.port) != (host, port):
                remedy = f"give --host {kept.host} --port {kept.port}, or end it first: serve shutdown"
                raise ConfigError(f"Serve runs there on {kept.host}:{kept.port}", where="serve", remedy=remedy)
            return
    raise ProcessError("Ray Serve's proxy did not start", where="serve", remedy="see Ray's logs/serve") from last


def deploy(app: Any) -> None:
    """Runs the application on this cluster; returns when all replicas answer.

    Raises:
        ConfigError: another application has its route.
        ProcessError: a replica does not start.
    """
    try:
        serve.run(app, name=NAME, route_prefix="/")
    except RayServeException as error:
        # What the controller raised has its traceback in the text; the cause has its own words only.
        what, remedy = str(getattr(error, "cause", error)).rstrip("."), "end that application, or serve on another Ray"
        raise ConfigError(what, where="serve", remedy=remedy) from error
    except RuntimeError as error:
        # Of the application Ray tells which deployment failed, and of the deployment why.
        found = serve.status().applications.get(NAME)
        parts = [] if found is None else list(found.deployments.values())
        texts = [str(error), *(part.message for part in parts)]
        last = next((line.strip() for line in reversed("\n".join(texts).splitlines()) if line.strip()), "")
        remedy = "see Ray's logs/serve; every node needs the bundle in the same folder"
        raise ProcessError("the policy could not be served", where="serve", remedy=remedy, evidence=last) from error


def build(args: dict[str, Any]) -> Any:
    """The application of the config file that `deepsched serve --print-config` prints."""
    return deployed(args, {})


def __getattr__(name: str) -> Any:
    """`app`: the application with the options in the file that DEEPSCHED_SERVE names; made when it is asked for.

    The file is one for `deepsched serve --config`. Raises ConfigError when there is none, or it is wrong, and
    AttributeError for every other name.
    """
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not os.environ.get(VARIABLE):
        remedy = f"export {VARIABLE}=FILE, with the options of `deepsched serve` as YAML: `bundle: FOLDER`"
        raise ConfigError("the application needs its options", where=VARIABLE, remedy=remedy)
    options = load_options(ServeOptions, file=Path(os.environ[VARIABLE]))
    return deployed(settings_args(make_settings(options)), deployment(options))


def deployed(args: dict[str, Any], options: dict[str, Any]) -> Any:
    """The application with options of its deployment, such as the number of replicas."""
    return serve.deployment(serve.ingress()(PolicyReplica), name="Policy").options(**options).bind(args)


def settings_args(settings: ServeSettings) -> dict[str, Any]:
    """Settings as values that YAML can hold."""
    paths = {name: str(getattr(settings, name).absolute()) for name in ("bundle", "root", "state", "steer")}
    parts = {"rules": asdict(settings.rules), "batching": asdict(settings.batching)}
    return {**paths, **parts, "guards": settings.guards.model_dump()}


def settings_of(args: dict[str, Any]) -> ServeSettings:
    """The inverse of `settings_args`; where the rules have files of tokens, these are read.

    Raises ConfigError as `Tokens.read_from`.
    """
    rules = dict(args["rules"])
    files = {role: Path(rules.pop(name)) for role, name in TOKEN_FILES.items() if name in rules}
    rules["tokens"] = Tokens.read_from(files) if files else Tokens(**rules["tokens"])
    paths = {name: Path(args[name]) for name in ("bundle", "root", "state", "steer")}
    guards, batching = GuardOptions.model_validate(args["guards"]), Batching(**args.get("batching", {}))
    return ServeSettings(**paths, rules=GateRules(**rules), guards=guards, batching=batching)
