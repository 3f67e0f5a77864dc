"""Options of `deepsched onboard`. Import nothing heavy here: `--help` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from actuators.contract.control import DirectMethod
from actuators.external.nginx import ExternalNginxOptions
from actuators.options import GIVEN, NOT_GIVEN, Never, Only
from actuators.statistics.reader import CollectOptions
from envs.calibration.options import CalibrateOptions
from envs.observation.precision import WatchOptions
from envs.study.promise_options import PromiseOptions
from rayjobs.runs.joining import RayOptions

IDENTITY = ("status_url", "nginx_conf", "control_url", "groups")
"""Options that tell which system it is."""


class OnboardOptions(RayOptions):
    """Which system, how long it is watched, and what is predicted."""

    only: ClassVar = {
        "address": Only(train_steps=GIVEN),
        "calibrate.method": Never("set --method"),
        "watch.least_s": Only(watch_s=NOT_GIVEN),
        "watch.most_s": Only(watch_s=NOT_GIVEN),
        "reload.config": Never("give --nginx-conf"),
        "reload.status_url": Never("give --status-url"),
        "reload.groups": Never("give --groups"),
    }

    status_url: str
    """vts JSON of your NGINX, with a histogram of every server, as http://HOST:PORT/status/format/json."""
    nginx_conf: Annotated[Path | None, Only(control_url=NOT_GIVEN)] = None
    """Main configuration of that NGINX, if its weights may be changed by reload."""
    control_url: Annotated[str, Only(nginx_conf=NOT_GIVEN)] = ""
    """Control endpoint of that NGINX, as http://HOST:PORT/control, if it balances in memory (`deepsched weights
    snippet`)."""
    token_file: Annotated[Path | None, Only(control_url=GIVEN)] = None
    """File with the token that a change through the control endpoint needs; its path is kept for steering. When not
    given, nothing can be changed that way."""
    folder: Path = Path("runs/onboard")
    """Receives all results, for its owner only; a second call continues where the first one ended. `deepsched steer
    run` takes the same folder."""
    groups: tuple[str, ...] = ()
    """Upstreams to watch; all that have requests when empty."""
    method: Annotated[DirectMethod | None, Only(nginx_conf=NOT_GIVEN, control_url=NOT_GIVEN)] = None
    """NGINX's present balancing method; when not given, it is read from --nginx-conf or --control-url, and without
    these it is round_robin, NGINX's default."""
    load_balancers: int = Field(default=0, ge=0)
    """Number of NGINX machines that send requests to these servers, which statistics do not show; 0 when unknown."""
    watch_s: float | None = Field(default=None, gt=0)
    """Exact length of the watch in seconds; when not given, the rules of `watch` end it."""
    interval_s: float = Field(default=1.0, gt=0)
    """Seconds between two readings, and between two decisions later."""
    seed: int = Field(default=1, ge=0)
    """Fixes everything random."""
    train_steps: int = Field(default=20_000, ge=0)
    """Steps of the reinforcement learning; with 0 the heuristic is evaluated and exported."""
    reading: CollectOptions = CollectOptions()
    """How the statistics are read."""
    watch: WatchOptions = WatchOptions()
    """When the watch ends."""
    calibrate: CalibrateOptions = CalibrateOptions()
    """How the simulator is fitted."""
    promise: PromiseOptions = PromiseOptions()
    """What is predicted."""
    reload: Annotated[ExternalNginxOptions, Only(nginx_conf=GIVEN)] = Field(default_factory=ExternalNginxOptions)
    """How that NGINX is tested and reloaded; kept for steering."""
