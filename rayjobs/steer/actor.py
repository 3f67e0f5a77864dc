"""The controller as a Ray actor on the proxy node, which also runs the NGINX that it steers; imports Ray."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorAlreadyExistsError, RayError, RayTaskError

from actuators.errors import CapacityError, ConfigError
from actuators.testbed.placement import NAMESPACE
from rayjobs.cli.console import log_line
from rayjobs.runs.local_ray import ray_session
from rayjobs.steer.status import described

if TYPE_CHECKING:
    from rayjobs.steer.options import SteerOptions

END_TIMEOUT_S = 20.0


class SteerActor:
    """One controller. Its state is in its folder on that node, so that a restarted actor continues."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._stopped = threading.Event()

    def run(self) -> None:
        """Steers until `stop`; raises the errors that `deepsched steer run` prints."""
        from rayjobs.steer.controller import steer
        from rayjobs.steer.options import SteerOptions

        options = SteerOptions.model_validate(self._options)
        steer(options, self._stopped)

    def stop(self) -> None:
        """Ends `run` within one interval; the weights in force stay."""
        self._stopped.set()

    def describe(self) -> dict[str, Any]:
        """State for `deepsched testbeds`."""
        from rayjobs.steer.folder import SteerFolder

        folder = Path(self._options["folder"])
        return described(folder, SteerFolder(folder).status(), {"controller": str(ray.util.get_node_ip_address())})

    def ping(self) -> int:
        """Process id."""
        return os.getpid()


def start_actor(options: SteerOptions) -> Any:
    """The handle of a new actor, which claims `proxy` and is restarted when it dies; it ends with this process.

    Raises ConfigError when there is one for this folder.
    """
    given = options.model_dump(mode="json") | {
        "actor": False,
        "address": None,
        "folder": str(options.folder.absolute()),
    }
    paths = ("bundle", "nginx_conf", "token_file", "admission_calibration")
    given |= {name: str(Path(given[name]).absolute()) for name in paths if given[name]}
    made = ray.remote(SteerActor).options(
        num_cpus=0, resources={"proxy": 1}, max_restarts=-1, max_task_retries=-1, max_concurrency=4,
        name=f"steer {given['folder']}", namespace=NAMESPACE,
    )  # fmt: skip
    try:
        return made.remote(given)
    except ActorAlreadyExistsError as error:
        remedy = "end it, or give another --folder"
        raise ConfigError("another controller is running", where=given["folder"], remedy=remedy) from error


def steer_on_proxy(options: SteerOptions) -> None:
    """Runs a new actor until it ends or this process is interrupted.

    Raises CapacityError, ConfigError when another actor steers with this folder, and what the controller raises.
    """
    with ray_session(address=options.address):
        if ray.cluster_resources().get("proxy", 0) < 1:
            remedy = "start that node with --resources='{\"proxy\": 1}'"
            raise CapacityError("no node offers 'proxy'", where="steer --actor", remedy=remedy)
        actor = start_actor(options)
        running = actor.run.remote()
        log_line("steer", "the controller runs as an actor on the proxy node")
        try:
            ray.get(running)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except KeyboardInterrupt:
            with contextlib.suppress(RayError):
                ray.get([actor.stop.remote(), running], timeout=END_TIMEOUT_S)
        finally:
            ray.kill(actor)
