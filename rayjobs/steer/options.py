"""`deepsched steer`: puts a bundle in front of an NGINX, safely; also its operator's orders, replay and watchdog."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from actuators.external.actuator import ActuatorOptions
from actuators.statistics.reader import CollectOptions
from actuators.testbed.parts import LiveOptions
from tuning.steering.options import AuditOptions, SteeringOptions

if TYPE_CHECKING:
    pass


MODES = ("shadow", "blend", "active")

Action = Literal["run", "pause", "resume", "revert", "mode", "swap", "status", "replay", "recalibrate", "watchdog"]


class SteerOptions(SteeringOptions):
    """Which bundle acts on which NGINX, and how far it may go."""

    action: Action = "run"
    """run; pause, resume, revert, mode MODE, swap BUNDLE: orders to a running controller; status; replay LOG;
    recalibrate NEW-BUNDLE; watchdog: revert when the controller has gone."""
    target: str = ""
    """What the action needs: a mode, a bundle folder or a log."""
    bundle: Path | None = None
    """Folder of the trained policy."""
    nginx_conf: Path | None = None
    """Main configuration of an NGINX whose weights are changed by reload."""
    control_url: str = ""
    """Control endpoint of an NGINX that has our snippet, as http://127.0.0.1:8090/control: weights change in memory."""
    token_file: Path | None = None
    """Holds the token that the control endpoint asks for."""
    status_url: str = ""
    """vts JSON of that NGINX, as http://HOST:PORT/status/format/json."""
    serve_url: str = ""
    """A `deepsched serve` to ask first; the own copy of the bundle answers when it does not."""
    serve_app: str = ""
    """Name of a Serve application on this cluster (that of `deepsched serve` is deepsched), asked by its deployment
    handle instead of HTTP; needs --actor or a job on that cluster."""
    actor: bool = False
    """Run as a Ray actor on a node that offers `proxy`, which the actor claims; started again when it dies."""
    serve_token_file: Path | None = None
    """Holds the bearer token of that server, when it listens beyond loopback."""
    interval_s: float = Field(1.0, gt=0.02)
    """Time between two decisions."""
    duration_s: float | None = Field(None, gt=0)
    """End after this time; never when not given."""
    folder: Path = Path("runs/steer")
    """Audit, orders and state of the controller; one folder for one NGINX."""
    workers: float = Field(1.0, ge=0.25, le=1e4)
    """Requests that a server serves at once, for a bundle that sets service times; when in doubt too few."""
    watchdog_after_s: float = Field(30.0, gt=0)
    """watchdog: silence of the controller after which the weights found at the start are put back."""
    scenario: str = "demo"
    """Scenario of the embedded testbed, when no NGINX is given."""
    seed: int = Field(1, ge=0)
    """Seed of the embedded testbed."""
    audit: AuditOptions = AuditOptions()
    """The record of decisions."""
    reading: CollectOptions = CollectOptions()
    """How the statistics are read."""
    reload: ActuatorOptions = Field(default_factory=ActuatorOptions)
    """More about how weights are changed; the flags above win."""
    live: LiveOptions = LiveOptions()
    """Parts of the embedded testbed."""
