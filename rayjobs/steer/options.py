"""Options of `deepsched steer` and its subcommands. Import nothing heavy here: `--help` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from actuators.contract.late_binding import LateBindingPlan
from actuators.external.actuator import ActuatorOptions
from actuators.external.nginx import ExternalNginxOptions
from actuators.options import GIVEN, NOT_GIVEN, Moved, Never, Only, Options
from actuators.statistics.reader import CollectOptions
from actuators.testbed.options import LiveOptions
from envs.calibration.options import AdmissionPlan
from rayjobs.steer.handover import Handover
from tuning.steering.admission import AdmissionGuards
from tuning.steering.holding import HoldGuards
from tuning.steering.options import AuditOptions, Mode, SteeringOptions

_EMBEDDED = Only(nginx_conf=NOT_GIVEN, control_url=NOT_GIVEN)


class FolderOptions(Options):
    """Which controller."""

    folder: Path = Path("runs/steer")
    """Audit log, orders and state of the controller; one folder per NGINX."""


class OrderOptions(FolderOptions):
    """Which controller, and how long its answer is waited for."""

    wait_s: float | None = Field(None, gt=0)
    """Longest wait for the controller to obey, in seconds; three of its intervals and at least 5 s when not given."""


class SiteOptions(FolderOptions, ActuatorOptions):
    """Which bundle acts on which NGINX."""

    only: ClassVar = {
        "control_url": Only(nginx_conf=NOT_GIVEN),
        "token_file": Only(control_url=GIVEN),
        "reload": Only(nginx_conf=GIVEN),
        "reload.config": Never("give --nginx-conf"),
        "reload.status_url": Never("give --status-url"),
        "reload.groups": Never("the groups are those of the bundle"),
    }
    moved: ClassVar = {
        "reload.control_url": Moved("control_url", obeyed=False),
        "reload.token_file": Moved("token_file", obeyed=False),
        **{f"reload.reload.{name}": Moved(f"reload.{name}") for name in ExternalNginxOptions.model_fields},
    }

    bundle: Path
    """Folder of the trained policy; in the folder of an onboarding it is known, as is all that follows here."""
    nginx_conf: Path | None = None
    """Main configuration of an NGINX whose weights are changed by reload; without it, weights change in memory
    through `control_url`."""
    status_url: str = ""
    """vts JSON of that NGINX, as http://HOST:PORT/status/format/json; with `control_url`, /status beside /control when
    not given, or the same HAProxy or Envoy."""
    reading: Annotated[CollectOptions, (Only(nginx_conf=GIVEN), Only(control_url=GIVEN))] = CollectOptions()
    """How the statistics are read."""

    @model_validator(mode="before")
    @classmethod
    def _goes_on(cls, given: Any) -> Any:
        """What `deepsched onboard` left in the folder stands in for what is not given."""
        if not isinstance(given, dict):
            return given
        found = Handover.read(Path(given.get("folder", cls.model_fields["folder"].default)))
        return given if found is None else found.completed(given, cls.model_fields)


class SteeredAdmission(AdmissionPlan):
    """Which rule of admission is steered together with the weights."""

    guards: AdmissionGuards = AdmissionGuards()
    """When it may refuse."""
    numbers_file: Path | None = None
    """What `deepsched admission tune` has found: `admission.json`, or the folder of a search or of a bundle with it.
    When not given, what the steered bundle has for the rule, unless `numbers` are given."""


class SteeredHolding(LateBindingPlan):
    """How requests are held together with the service times that are steered."""

    guards: HoldGuards = HoldGuards()
    """When they may be."""


class SteerOptions(SteeringOptions, SiteOptions):
    """Which bundle acts on which NGINX, and how far it may go."""

    admission_calibration: Annotated[Path | None, Only(control_url=GIVEN)] = None
    """`calibration.json` of `onboard` or `calibrate`, for an NGINX whose snippet has admission control: in shadow it
    counts what its rule would refuse, in canary a part is refused, in active all. Admission is left alone when not
    given."""
    admission: Annotated[SteeredAdmission, Only(admission_calibration=GIVEN)] = SteeredAdmission()
    """The rule."""
    late_binding: Annotated[bool, Only(control_url=GIVEN)] = False
    """Requests wait in NGINX until a server has room for them (docs/late-binding.md#under-a-controller); for a bundle
    that sets service times, and an NGINX whose snippet has late binding. In shadow and canary it is counted what would
    wait."""
    holding: Annotated[SteeredHolding, Only(late_binding=True)] = SteeredHolding()
    """Slots, order and numbers of late binding."""
    serve_url: Annotated[str, Only(serve_app=NOT_GIVEN)] = ""
    """A `deepsched serve` that is asked first; falls back to the local bundle. Only the local bundle is asked when not
    given."""
    serve_token_file: Annotated[Path | None, Only(serve_url=GIVEN)] = None
    """File with a bearer token of that server that allows decisions (of `serve --order-token-file` or `--token-file`);
    needed when it listens beyond loopback or has a `--read-token-file`, else not given."""
    serve_app: str = ""
    """Name of a Serve application on this Ray cluster that is asked by its deployment handle instead of HTTP
    (`deepsched serve` is named deepsched); needs --actor or a job on that cluster. None is asked when not given."""
    actor: bool = False
    """Run as a Ray actor on a node that offers `proxy`; Ray restarts it when it dies."""
    address: Annotated[str | None, Only(actor=True)] = None
    """Ray whose node runs the actor: HOST:PORT of its head, or `auto`. When not given, RAY_ADDRESS says it."""
    interval_s: float = Field(1.0, gt=0.02)
    """Time between two decisions."""
    duration_s: float | None = Field(None, gt=0)
    """Time after which the controller ends; it runs until it is stopped when not given."""
    workers: float = Field(1.0, ge=0.25, le=1e4)
    """Requests that a server serves at once, for a bundle that sets service times; when in doubt, too few."""
    scenario: Annotated[str, _EMBEDDED] = "demo"
    """Scenario of the embedded testbed, which is started when no NGINX is given."""
    seed: Annotated[int, Field(ge=0), _EMBEDDED] = 1
    """Seed of the embedded testbed."""
    live: Annotated[LiveOptions, _EMBEDDED] = LiveOptions()
    """Parts of the embedded testbed."""
    audit: AuditOptions = AuditOptions()
    """Size of the audit log."""
    metrics_port: int | None = Field(None, ge=1, le=65535)
    """Port on which Prometheus reads the controller's metrics, at /metrics; none when not given."""
    metrics_host: Annotated[str, Only(metrics_port=GIVEN)] = "127.0.0.1"
    """Address of that port. The metrics need no token: beyond loopback let a firewall decide who reads them."""

    def resolved(self) -> Self:
        if self.admission_calibration is None or self.given("admission.numbers") or self.admission.numbers_file:
            return self
        from envs.admission.tuned import TunedNumbers

        tuned = TunedNumbers.of_bundle(self.bundle)
        own = tuned is not None and tuned.rule == self.admission.rule
        return self.changed({"admission.numbers_file": self.bundle}) if own else self


class WatchdogOptions(SiteOptions):
    """Which NGINX is watched, and for how long its controller may be silent."""

    watchdog_after_s: float = Field(30.0, gt=0)
    """Silence of the controller after which the weights from before it are restored."""
    duration_s: float | None = Field(None, gt=0)
    """Time after which the watchdog ends; it runs until it is stopped when not given."""


class ModeOptions(OrderOptions):
    """Which mode."""

    mode: Mode
    """`shadow` decides and records only; `canary` goes part of the way to the policy's weights, `active` all of it."""
    percent: Annotated[float | None, Only(mode="canary")] = Field(None, ge=0, le=100)
    """How far: in memory, so many of 100 requests go by the new control; by reload, every weight's share goes so far
    of its way. As before when not given, and 10 at first."""


class SwapOptions(OrderOptions):
    """Which bundle."""

    bundle: Path
    """Folder of the bundle that acts from now on."""


class ReplayOptions(Options):
    """Which decisions are made again."""

    log: Path
    """An `audit.jsonl`; its rotated files are read first."""
    bundle: Path | None = None
    """Folder of a bundle to decide with; the recorded advice is used when not given, so that only the guards can
    differ."""


class RefitOptions(FolderOptions):
    """Which bundle is refitted to the audit log of which controller."""

    out: Path
    """Folder for the new bundle."""
    bundle: Path
    """Folder of the bundle whose encoder is refitted."""
    seed: int = Field(1, ge=0)
    """Fixes the mixture's start."""
