"""`deepsched admission show|set|off`: which requests may enter an NGINX that has our admission control."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pydantic import Field

from actuators.contract.admission import NEVER, Admission
from actuators.contract.topology import Topology
from actuators.files import read_token
from actuators.nginx.admission_endpoint import AdmissionEndpoint, to_text
from actuators.nginx.control_endpoint import MemoryControl, beside, topology_from_text
from actuators.options import Options
from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import AdmissionStatus
from envs.calibration.options import AdmissionPlan
from rayjobs.cli.console import console_out, log_line
from rayjobs.cli.main import Verb
from rayjobs.cli.restarts import kept_for_restarts

_log = partial(log_line, "admission")


class ShowOptions(Options):
    """Which NGINX."""

    control_url: str
    """Control endpoint of an NGINX whose snippet has admission control, as http://127.0.0.1:8090/control; /admission
    and /status beside it are used."""


class OffOptions(ShowOptions):
    """Which NGINX."""

    token_file: Path | None = None
    """File with the token of the control endpoint; changes are refused when not given."""
    keep: Path | None = None
    """SNIPPET.admission beside the snippet: a restarted NGINX loads the rule from this file. When not given, the file
    does not change."""


class SetOptions(OffOptions, AdmissionPlan):
    """Which rule, for which groups."""

    calibration: Path
    """`calibration.json` of the system, as `onboard` and `calibrate` write it: its groups are admitted, by its
    deadlines, rates and idle response times."""
    percent: float = Field(0.0, ge=0, le=100)
    """Percentage of the requests beyond the limit that is refused; 0 only counts them."""


def show(options: ShowOptions) -> int:
    """Prints the rule in force, its limits, and what was refused since NGINX started; 1 without admission control."""
    status = _status(options)
    if status is None:
        _log("this NGINX has no admission control: write its snippet with --set memory.admission=true")
        return 1
    for line in _lines(status):
        console_out().print(line, markup=False, soft_wrap=True)
    return 0


def set_rule(options: SetOptions) -> int:
    """Puts a rule in force, and keeps it for restarts of NGINX."""
    # The calibration's readers load numpy's statistics, which `admission show` does without.
    from envs.calibration.admission import calibrated_admission
    from envs.calibration.result import Calibration

    calibration = Calibration.load(options.calibration)
    admission = calibrated_admission(calibration, options, options.percent)
    with _endpoint(options, calibration.topology) as endpoint, _keeping(options, admission):
        endpoint.put(admission)
    for line in _told(admission):
        _log(line)
    return 0


def off(options: OffOptions) -> int:
    """Lets every request enter."""
    topology = topology_from_text(MemoryControl.read(options.control_url))
    with _endpoint(options, topology) as endpoint, _keeping(options, None):
        endpoint.put(None)
    _log("every request enters")
    return 0


@contextlib.contextmanager
def _endpoint(options: OffOptions, topology: Topology) -> Iterator[AdmissionEndpoint]:
    token = read_token(options.token_file)
    with contextlib.closing(AdmissionEndpoint(beside(options.control_url, "admission"), token, topology)) as endpoint:
        endpoint.require()
        yield endpoint


def _status(options: ShowOptions) -> AdmissionStatus | None:
    with StatusReader(beside(options.control_url, "status")) as reader:
        balancer = reader.snapshot().balancer
    return balancer.admission if balancer is not None else None


@contextlib.contextmanager
def _keeping(options: OffOptions, admission: Admission | None) -> Iterator[None]:
    """As `kept_for_restarts`."""
    status = _status(options)
    read = status.kept if status is not None else ""
    text = to_text(admission) if admission is not None else None
    begins = "without a rule" if admission is None else f"with this rule, in {options.keep}"
    with kept_for_restarts(options.keep, read, text, begins, _log):
        yield


def _told(admission: Admission) -> Iterator[str]:
    part = "refusals are only counted" if admission.percent == 0 else f"{admission.percent:g} % of them are refused"
    yield f"{admission.rule}: of the requests beyond the limits {part}; {admission.nominal:.1f} in flight are ordinary"
    for g, group in enumerate(admission.topology.groups):
        worth = "never refused" if admission.importance[g] == NEVER else f"importance {admission.importance[g]:g}"
        yield (
            f"{group.name}: deadline {1e3 * admission.deadlines_s[g]:.0f} ms, {1e3 * admission.idle_s[g]:.1f} ms"
            f" without waiting, {admission.rates_rps[g]:.1f} requests/s, {worth}"
        )


def _lines(status: AdmissionStatus) -> Iterator[str]:
    if status.rule == "none":
        yield "no rule: every request enters"
        return
    part = "refusals are only counted" if status.percent == 0 else f"{status.percent:g} % of those beyond are refused"
    yield f"{status.rule}: {part}; late {status.late_share:.1%} at the last tick"
    width = max(len(entry.group) for entry in status.groups)
    for entry in status.groups:
        offered = max(entry.offered, 1)
        limit = "no limit" if entry.limit is None else f"limit {entry.limit:.1f}"
        yield (
            f"{entry.group:<{width}}  {entry.offered} requests, refused {entry.refused / offered:.2%}, spared"
            f" {entry.spared / offered:.2%}, late {entry.late / max(entry.finished, 1):.2%}; {entry.in_flight} in"
            f" flight, {limit}"
        )


SHOW = Verb(
    name="admission show",
    example="deepsched admission show --control-url http://127.0.0.1:8090/control",
    options=ShowOptions,
    run=show,
)
SET = Verb(
    name="admission set",
    example="deepsched admission set --control-url http://127.0.0.1:8090/control --token-file deepsched.conf.token"
    " --calibration DIR/onboard/calibration.json --percent 0",
    options=SetOptions,
    run=set_rule,
    common=(
        "control_url", "token_file", "keep", "calibration", "rule", "percent", "importance", "never_refused",
        "deadlines_ms", "load_balancers",
    ),
)  # fmt: skip
OFF = Verb(
    name="admission off",
    example="deepsched admission off --control-url http://127.0.0.1:8090/control --token-file deepsched.conf.token",
    options=OffOptions,
    run=off,
)
