"""The controller as a Ray actor on the proxy node, beside the NGINX that it steers; imports Ray."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from actuators.errors import CapacityError
from rayjobs.runs.local_ray import ray_session
from rayjobs.steer.folder import SteerFolder

if TYPE_CHECKING:
    from rayjobs.steer.options import SteerOptions

NAMESPACE = "deepsched"
END_TIMEOUT_S = 20.0


class SteerActor:
    """One controller. What it must remember stands in its folder on that node, so that a restart goes on."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._stopped = threading.Event()

    def run(self) -> None:
        """Steers until `stop`; raises what `deepsched steer` would say."""
        from rayjobs.steer.options import SteerOptions
        from rayjobs.steer.run import steer

        options = SteerOptions.model_validate(self._options)
        steer(options, SteerFolder(options.folder), self._stopped)

    def stop(self) -> None:
        """Ends `run` within one interval; what is in force stays."""
        self._stopped.set()

    def ping(self) -> int:
        """Process id."""
        return os.getpid()


def start_actor(options: SteerOptions) -> Any:
    """The actor's handle; it claims `proxy` and is started again for ever when it dies."""
    given = options.model_dump(mode="json") | {"actor": False, "folder": str(options.folder.absolute())}
    given |= {name: str(Path(given[name]).absolute()) for name in ("bundle", "nginx_conf", "token_file") if given[name]}
    made = ray.remote(SteerActor).options(
        num_cpus=0, resources={"proxy": 1}, max_restarts=-1, max_task_retries=-1, max_concurrency=4,
        name=f"steer {given['folder']}", namespace=NAMESPACE, get_if_exists=True,
    )  # fmt: skip
    return made.remote(given)


def steer_on_proxy(options: SteerOptions, say: Callable[[str], None]) -> None:
    """Runs the actor until it ends or this process is told to. Raises CapacityError, and what the controller raises."""
    with ray_session():
        if ray.cluster_resources().get("proxy", 0) < 1:
            remedy = "start that node with --resources='{\"proxy\": 1}'"
            raise CapacityError("no node offers 'proxy'", where="steer --actor", remedy=remedy)
        actor = start_actor(options)
        running = actor.run.remote()
        say("the controller is an actor on the proxy node")
        try:
            ray.get(running)
        except KeyboardInterrupt:
            with contextlib.suppress(RayError):
                ray.get([actor.stop.remote(), running], timeout=END_TIMEOUT_S)
        finally:
            ray.kill(actor)
