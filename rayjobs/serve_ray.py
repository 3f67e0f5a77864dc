"""The served policy as a Ray Serve application; `rayjobs.serve_ray:build` is the import path of its YAML."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic_core import to_json
from ray import serve

from rayjobs.serve_app import ServeSettings, create_app, open_store
from rayjobs.serve_body import read_body
from rayjobs.serve_gate import GateRules
from rayjobs.serve_service import advise
from tuning.guards import GuardOptions

NAME = "deepsched"


class Policy:
    """One replica. It holds nothing that matters: which bundle is served stands in a file."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings_of(settings)
        self._store = open_store(self._settings)

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self._settings, self._store)

    def answer(self, body: bytes) -> bytes:
        """`POST /v1/weights` for a deployment handle: no HTTP and no proxy on the way."""
        return to_json(advise(self._store.current(), read_body(body), self._settings.guards), inf_nan_mode="null")


def build(args: dict[str, Any]) -> Any:
    """The application, from the `args` of `deepsched serve --print-config`."""
    return deployed(args, {})


def deployed(args: dict[str, Any], options: dict[str, Any]) -> Any:
    """The same with options of its one deployment: replicas and so on."""
    return serve.deployment(serve.ingress()(Policy), name="Policy").options(**options).bind(args)


def settings_args(settings: ServeSettings) -> dict[str, Any]:
    """Settings as plain YAML values."""
    paths = {name: str(getattr(settings, name).absolute()) for name in ("bundle", "root", "state", "steer")}
    return {**paths, "rules": asdict(settings.rules), "guards": settings.guards.model_dump()}


def settings_of(args: dict[str, Any]) -> ServeSettings:
    """The inverse of `settings_args`; a `token_file` among the rules stands for the token in it."""
    rules = dict(args["rules"])
    if "token_file" in rules:
        rules["token"] = Path(rules.pop("token_file")).read_text().strip()
    paths = {name: Path(args[name]) for name in ("bundle", "root", "state", "steer")}
    return ServeSettings(**paths, rules=GateRules(**rules), guards=GuardOptions.model_validate(args["guards"]))
