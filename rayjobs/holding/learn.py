"""`deepsched holding learn`: what requests cost in relation to others of their group, learned from an NGINX in traffic.

NGINX keeps samples of requests that found an idle worker while this runs; models by group are fitted and tried on the
last ones (docs/late-binding.md#request-cost).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import Field

from actuators.contract.request_cost import LEAST_R2, GroupCost, SeenRequest
from actuators.errors import ActuationError, ConfigError, DataError
from actuators.files import read_token, writable_folder, write_json
from actuators.nginx.control_endpoint import MemoryControl, topology_from_text
from actuators.options import Options
from rayjobs.cli.console import console_out, log_line
from rayjobs.cli.main import Verb
from rayjobs.cli.progress import Progress, Stage

if TYPE_CHECKING:
    from envs.estimators.request_cost import CostRow

_log = partial(log_line, "holding")
_POLL_S = 1.0
SILENT_S = 60.0
"""After so long without an answer, or with a canary in force, collecting ends with what there is."""
MOST_SAMPLES = 200_000
"""Samples that are kept, the newest: some 60 MB."""


class SampleSource(Protocol):
    """What keeps samples; `MemoryControl` is one, and its methods tell what they raise."""

    def sample(self, rate_rps: float | None) -> None: ...
    def samples_kept(self) -> bool: ...
    def samples(self) -> list[str]: ...


class LearnOptions(Options):
    """Which NGINX, and for how long."""

    control_url: str
    """Control endpoint of an NGINX in memory that balances by service times, as http://127.0.0.1:8090/control."""
    token_file: Path | None = None
    """File with the token of the control endpoint; it is refused when not given."""
    seconds: float = Field(120.0, ge=1, le=86400)
    """How long samples are collected; the newest 200,000 of this time are used."""
    rate_rps: float = Field(100.0, gt=0, le=500)
    """Samples that each worker of NGINX keeps in a second, at most."""
    out: Path = Path("cost.json")
    """File for what was learned."""
    bundle: Path | None = None
    """Bundle of the same system that receives it, so that `steer run --late-binding` uses it; none when not given."""


def run(options: LearnOptions) -> int:
    """0 when a model of any group is good enough to be used, else 1; then all requests of a group cost the same."""
    token = read_token(options.token_file)
    topology = topology_from_text(MemoryControl.read(options.control_url))
    if options.bundle is not None:
        _require_bundle(options.bundle, {group.name for group in topology.groups})
    # Before collecting: neither a missing scikit-learn (extra `train`) nor a closed folder may cost the samples.
    from envs.estimators.request_cost import learn_cost

    writable_folder(options.out.parent)
    with contextlib.closing(MemoryControl(options.control_url, token, topology)) as endpoint:
        samples = collect(endpoint, options)
    _log(f"fitting models to {len(samples)} samples")
    costs = learn_cost(cost_rows(samples))
    write_json(options.out, costs.model_dump(mode="json"))
    if options.bundle is not None:
        from tuning.policy.bundle import put_request_cost

        put_request_cost(options.bundle, costs)
    for group in topology.groups:
        console_out().print(_told(group.name, costs.groups.get(group.name)), markup=False, soft_wrap=True)
    _log(f"written to {options.out}")
    return 0 if costs.in_force() else 1


def _require_bundle(folder: Path, groups: set[str]) -> None:
    from tuning.policy.bundle import load_bundle

    own = {group.name for group in load_bundle(folder).problem.topology.groups}
    if own != groups:
        what = f"the bundle is of the groups {', '.join(sorted(own))[:200]}"
        raise ConfigError(what, where=str(folder), remedy="give a bundle of this NGINX")


def collect(
    endpoint: SampleSource,
    options: LearnOptions,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Samples of `options.seconds` in their order, the newest `MOST_SAMPLES`, each without its number.

    What others set meanwhile, and a restart of NGINX, end the sampling, which then begins again. After `SILENT_S` of
    failures, what was collected before is all.

    Args:
        clock: seconds, monotonic.
        wait: returns after these seconds.

    Raises ActuationError when it does not begin, or when nothing was collected before it failed.
    """
    collected = _Collected(endpoint.samples())
    began_s = good_s = clock()
    failing = False
    endpoint.sample(options.rate_rps)
    try:
        with Progress([Stage("collect", options.seconds)]) as progress, progress.stage("collect") as stage:
            while (left_s := began_s + options.seconds - clock()) > 0:
                wait(min(_POLL_S, left_s))
                try:
                    if collected.add(endpoint.samples()):
                        stage.say(f"only the newest {MOST_SAMPLES} samples are kept")
                    if not endpoint.samples_kept():
                        endpoint.sample(options.rate_rps)
                except ActuationError as error:
                    if clock() - good_s >= SILENT_S:
                        if not collected.samples:
                            raise
                        stage.say(f"failed for {SILENT_S:g} s: ends with {len(collected.samples)} samples")
                        break
                    if not failing:
                        stage.say(f"{error}; goes on, for up to {SILENT_S:g} s of failures")
                    failing = True
                    continue
                good_s, failing = clock(), False
                stage.update(f"{len(collected.samples)} samples")
    finally:
        try:
            endpoint.sample(None)
        except ActuationError as error:
            if not collected.samples:
                raise
            _log(f"NGINX may go on keeping samples: {error}")
    return [collected.samples[key] for key in sorted(collected.samples)]


class _Collected:
    """Samples by number; NGINX numbers them from 1 after a start, which begins a new epoch.

    Attributes:
        samples: (epoch, number) → the rest of the line.
    """

    def __init__(self, before: Sequence[str]) -> None:
        self.samples: dict[tuple[int, int], str] = {}
        self._before = set(_numbered(before))
        self._epoch, self._newest, self._cut = 0, max(self._before, default=0), False

    def add(self, lines: Sequence[str]) -> bool:
        """Whether samples were left out for the first time."""
        seen = _numbered(lines)
        newest = max(seen, default=0)
        if newest < self._newest:
            self._epoch, self._before = self._epoch + 1, set()
        self._newest = newest
        self.samples.update({(self._epoch, n): rest for n, rest in seen.items() if n not in self._before})
        excess = len(self.samples) - MOST_SAMPLES
        if excess > 0:
            for key in sorted(self.samples)[:excess]:
                del self.samples[key]
        first, self._cut = excess > 0 and not self._cut, self._cut or excess > 0
        return first


def _numbered(lines: Sequence[str]) -> dict[int, str]:
    """Number → the rest of each line."""
    return {int(number): rest for number, _, rest in (line.partition(" ") for line in lines) if number}


def cost_rows(samples: Sequence[str]) -> dict[str, list[CostRow]]:
    """Group → its samples. Raises DataError for a line that lua/samples.lua does not write."""
    from envs.estimators.request_cost import CostRow

    rows: dict[str, list[CostRow]] = {}
    for line in samples:
        try:
            group, response_ms, service_s, method, path, body, *arguments = line.split(" ")
            values = dict(_argument(text) for text in arguments)
            cost = float(response_ms) / 1e3 / float(service_s)
            seen = SeenRequest(path, values, int(float(body)), method)
        except (ValueError, ZeroDivisionError) as error:
            raise DataError(f"not a sample: {line[:80]}", where="control endpoint") from error
        rows.setdefault(group, []).append(CostRow.single(seen, cost))
    return rows


def _argument(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    return name, float(value)


def _told(group: str, model: GroupCost | None) -> str:
    if model is None or not model.terms:
        number = 0 if model is None else model.requests
        return f"{group}: no cost model: only {number} requests found an idle worker, or their costs do not differ"
    told = f"{group}: R² {model.r2:.3f} on held-out requests of {model.requests}"
    return f"{told}, by {', '.join(model.terms)}" if model.counts else f"{told}, below {LEAST_R2:g}: not used"


VERB = Verb(
    name="holding learn",
    example="deepsched holding learn --control-url http://127.0.0.1:8090/control --token-file deepsched.conf.token"
    " --seconds 300 --out cost.json",
    options=LearnOptions,
    run=run,
)
