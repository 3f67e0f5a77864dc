"""Options of `deepsched steer` and its subcommands. Import nothing heavy here: `--help` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from actuators.contract.late_binding import LateBindingPlan
from actuators.errors import ConfigError
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
    """Longest wait until the controller obeys, in seconds; three of its intervals and at least 5 s when not given."""


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
    """Folder of the trained policy; the folder of an onboarding supplies it, as well as the options that follow."""
    nginx_conf: Path | None = None
    """Main configuration of an NGINX whose weights are changed by reload; without it, weights change in memory
    through `control_url`."""
    status_url: str = ""
    """vts JSON of that NGINX, as http://HOST:PORT/status/format/json; when not given with `control_url`, /status beside
    /control, or the same HAProxy or Envoy."""
    reading: Annotated[CollectOptions, (Only(nginx_conf=GIVEN), Only(control_url=GIVEN))] = CollectOptions()
    """How the statistics are read."""

    @model_validator(mode="before")
    @classmethod
    def _goes_on(cls, given: Any) -> Any:
        """What `deepsched onboard` left in the folder stands in for what is not given."""
        if not isinstance(given, dict):
            return given
        folder = Path(given.get("folder", cls.model_fields["folder"].default))
        found = Handover.read(folder)
        if found is None:
            return given
        values = found.completed(given, cls.model_fields)
        if not (values.get("nginx_conf") or values.get("control_url")):
            what, remedy = "URLs with a password are not stored", "give --control-url with user and password"
            raise ConfigError(what, where=str(folder), remedy=remedy)
        return values


class SteeredAdmission(AdmissionPlan):
    """Which rule of admission is steered together with the weights."""

    guards: AdmissionGuards = AdmissionGuards()
    """When it may refuse."""
    numbers_file: Path | None = None
    """Result of `deepsched admission tune`: `admission.json`, or the folder of a search or of a bundle with it.
    When not given, the steered bundle's numbers for the rule, unless `numbers` are given."""


class SteeredHolding(LateBindingPlan):
    """How requests are held together with the service times that are steered."""

    guards: HoldGuards = HoldGuards()
    """When requests may be held."""


class SteerOptions(SteeringOptions, SiteOptions):
    """Which bundle acts on which NGINX, and how far it may go."""

    admission_calibration: Annotated[Path | None, Only(control_url=GIVEN)] = None
    """`calibration.json` of `onboard` or `calibrate`, for an NGINX whose snippet has admission control: shadow counts
    the requests that its rule would refuse, canary refuses a part of them, active all. Admission is unchanged when not
    given."""
    admission: Annotated[SteeredAdmission, Only(admission_calibration=GIVEN)] = SteeredAdmission()
    """The admission rule."""
    late_binding: Annotated[bool, Only(control_url=GIVEN)] = False
    """Requests wait in NGINX until a server has room for them (docs/late-binding.md#under-a-controller); for a bundle
    that sets service times, and an NGINX whose snippet has late binding. Shadow and canary only count the requests that
    would wait."""
    holding: Annotated[SteeredHolding, Only(late_binding=True)] = SteeredHolding()
    """Slots, order and numbers of late binding."""
    serve_url: Annotated[str, Only(serve_app=NOT_GIVEN)] = ""
    """URL of a `deepsched serve` to ask first; falls back to the local bundle. When not given, only the local bundle
    decides."""
    serve_token_file: Annotated[Path | None, Only(serve_url=GIVEN)] = None
    """File with a bearer token of that server that allows decisions (of `serve --order-token-file` or `--token-file`);
    needed when it listens beyond loopback or has a `--read-token-file`, else not given."""
    serve_app: str = ""
    """Name of a Serve application on this Ray cluster to ask by its deployment handle instead of HTTP
    (`deepsched serve` is named deepsched); needs --actor or a job on that cluster. None is asked when not given."""
    actor: bool = False
    """Run as a Ray actor on a node that offers `proxy`; Ray restarts it when it dies."""
    address: Annotated[str | None, Only(actor=True)] = None
    """Ray whose node runs the actor: HOST:PORT of its head, or `auto`. When not given, RAY_ADDRESS names it."""
    interval_s: float = Field(1.0, gt=0.02)
    """Time between two decisions."""
    duration_s: float | None = Field(None, gt=0)
    """Time after which the controller ends; when not given, it runs until it is stopped."""
    workers: float = Field(1.0, ge=0.25, le=1e4)
    """Requests that a server serves at once, for a bundle that sets service times; if in doubt, give too few."""
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
    """Address of that port. The metrics need no token: beyond loopback, restrict access with a firewall."""

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
    """Silence of the controller after which the weights from before the controller are restored."""
    duration_s: float | None = Field(None, gt=0)
    """Time after which the watchdog ends; when not given, it runs until it is stopped."""


class ModeOptions(OrderOptions):
    """Which mode."""

    mode: Mode
    """`shadow` decides and records only; `canary` goes part of the way to the policy's weights, `active` all of it."""
    percent: Annotated[float | None, Only(mode="canary")] = Field(None, ge=0, le=100)
    """Extent of the canary: in memory, the percentage of requests under the new control; by reload, the
    percentage of its way that every share moves. When not given, the previous value, initially 10."""


class SwapOptions(OrderOptions):
    """Which bundle."""

    bundle: Path
    """Folder of the bundle that acts from now on."""


class ReplayOptions(Options):
    """Which decisions are made again."""

    log: Path
    """An `audit.jsonl`; its rotated files are read first."""
    bundle: Path | None = None
    """Folder of a bundle to decide with; when not given, the recorded advice is used, so that only the guards can
    differ."""


class RefitOptions(FolderOptions):
    """Which bundle is refitted to the audit log of which controller."""

    out: Path
    """Folder for the new bundle."""
    bundle: Path
    """Folder of the bundle whose encoder is refitted."""
    seed: int = Field(1, ge=0)
    """Seed of the mixture's initialisation."""
