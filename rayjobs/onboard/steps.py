"""The steps of an onboarding in order; each keeps its result at once, and is not run again when it is there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from actuators.credentials import without_credentials
from actuators.errors import ActuationError, ConfigError, DataError, StatusError
from actuators.external.checks import Check, failed
from actuators.external.preflight import PreflightOptions, preflight
from actuators.statistics.lacks import unfit
from actuators.statistics.reader import StatusReader
from envs.observation.precision import precision
from rayjobs.cli.console import console_err
from rayjobs.cli.progress import Progress, Stage
from rayjobs.onboard.fit import Fit, fit, load_fit, save_fit, telling
from rayjobs.onboard.judge import Judged, judge
from rayjobs.onboard.kept import Kept
from rayjobs.onboard.learn import BUNDLE, learn
from rayjobs.onboard.options import IDENTITY, OnboardOptions
from rayjobs.onboard.page import PAGE, Found, write_page
from rayjobs.onboard.system import Way, way_of
from rayjobs.onboard.watch import RECORDING, Recorded, Watch, rule_of, summary
from rayjobs.steer.handover import Handover
from tuning.policy.bundle import Bundle, load_bundle

NEEDED = (
    "statistics",
    "one machine",
    "upstreams",
    "source",
    "zone",
    "histogram",
    "configuration",
    "control",
    "balancing",
)
"""Checks without which nothing can be watched or said; the others must hold before something is changed."""


def step_options(options: OnboardOptions) -> dict[str, dict[str, Any]]:
    """Step → the options that its result depends on, beyond those of the steps before it."""
    every = options.model_dump(mode="json")
    return {
        "preflight": {name: _shown(every[name]) for name in IDENTITY},
        "watch": {name: every[name] for name in ("interval_s", "watch_s", "watch")},
        "fit": {name: every[name] for name in ("method", "calibrate", "seed", "load_balancers")},
        "train": {"train_steps": every["train_steps"]},
        "judge": {name: every[name] for name in ("promise", "token_file", "reload")},
    }


def _shown(value: Any) -> Any:
    return without_credentials(value) if isinstance(value, str) else value


def _without_password(url: str) -> str:
    """The URL, or nothing when it has credentials: these are kept nowhere, and it must be given to `steer` again."""
    return url if without_credentials(url) == url else ""


def stages(options: OnboardOptions) -> list[Stage]:
    """What will happen and about how long it takes."""
    rule = rule_of(options)
    train = [Stage("train", 25 + options.train_steps / 600)] if options.train_steps else [Stage("train", 1)]
    return [Stage("preflight", 3), Stage("watch", rule.least_s), Stage("fit", 60), *train, Stage("judge", 60)]


def _forbids(check: Check) -> bool:
    return check.level == "fail" and check.name in NEEDED


class Onboarding:
    """One onboarding: `preflight`, then `finish`."""

    def __init__(self, options: OnboardOptions, kept: Kept, progress: Progress) -> None:
        self._options, self._kept, self._progress = options, kept, progress

    def preflight(self) -> list[dict[str, Any]]:
        """The checks that failed and are needed; empty when it may go on."""
        if self._kept.result("preflight") is not None:
            return []
        with self._progress.stage("preflight") as stage:
            checks = self._checks()
            forbidding = [check for check in checks if _forbids(check)]
            stage.update(f"{len(checks)} checks, {len(forbidding)} failed", 1.0)
        for check in checks:
            if check.level != "ok" and check not in forbidding:
                console_err().print(f"{check.name}: {check.what}; {check.remedy}", markup=False, soft_wrap=True)
        if not forbidding:
            self._kept.keep("preflight", {"checks": [dataclasses.asdict(check) for check in checks]})
        return [dataclasses.asdict(check) for check in forbidding]

    def finish(self) -> Found:
        """All other steps, and the page. Raises DataError when the recording does not allow a fit."""
        seen = self._watch()
        way, fitted = self._fit(seen)
        bundle, proof = self._train(way, fitted)
        judged = self._judge(way, fitted, bundle)
        checks, watched = self._kept.result("preflight"), self._kept.result("watch")
        assert checks is not None
        assert watched is not None
        found = Found(self._options, way, fitted, judged, checks["checks"], watched, proof)
        write_page(self._kept.folder / PAGE, found)
        return found

    def _checks(self) -> list[Check]:
        """Those of the preflight and, where none of them forbids the watch, what its recording would lack for a fit."""
        checks = preflight(self._preflight_options())
        lacking = None if any(map(_forbids, checks)) else self._lacking()
        if lacking is not None:
            return [*(each for each in checks if each.name != lacking.name), lacking]
        return checks

    def _lacking(self) -> Check | None:
        """Read as the watch does: the preflight also takes vts' metrics, with which nothing can be steered."""
        options = self._options
        try:
            with StatusReader(options.status_url, options.reading) as reader:
                snapshot = reader.snapshot()
        except (ConfigError, StatusError) as error:
            return failed("source", error)
        lack = unfit(snapshot, options.groups)
        if lack is not None:
            return Check(lack.name, "fail", lack.what, lack.remedy)
        used = [
            name for name, servers in snapshot.groups.items() if any(each.request_counter for each in servers.values())
        ]
        groups = options.groups or used
        try:
            if groups:
                way_of(options, groups)
        except (ConfigError, ActuationError) as error:
            return failed("balancing", error)
        return None

    def _preflight_options(self) -> PreflightOptions:
        options = self._options
        return PreflightOptions(
            status_url=options.status_url,
            groups=options.groups,
            nginx_conf=options.nginx_conf,
            control_url=options.control_url,
            token_file=options.token_file,
            load_balancers=options.load_balancers,
            nginx=options.reload.binary,
            reading=options.reading,
            reload=options.reload,
        )

    def _watch(self) -> Recorded:
        options, path = self._options, self._kept.place / RECORDING
        done = self._kept.result("watch") is not None

        def note(text: str) -> None:
            console_err().print(f"watch: {text}", markup=False, soft_wrap=True)

        if done:
            return Watch(options, path, lambda text, part: None, note).seen
        with self._progress.stage("watch") as stage:
            seen = Watch(options, path, stage.update, note).run()
        if len(seen.snapshots) < 2:
            what = f"the statistics were read {len(seen.snapshots)} times in {rule_of(options).most_s:g} s"
            raise DataError(what, where=options.status_url, remedy="see the gaps above, and repeat the command")
        windows = seen.windows()
        if not windows:
            raise DataError("no request was seen", where=options.status_url, remedy="watch while there is traffic")
        self._kept.keep("watch", summary(precision(windows), windows[0].topology, rule_of(options)))
        return seen

    def _fit(self, seen: Recorded) -> tuple[Way, Fit]:
        kept = self._kept.result("fit")
        if kept is not None:
            return Way(**kept["way"]), load_fit(self._kept.place, kept)
        options, windows = self._options, seen.windows()
        assert windows, "the watch has seen requests"
        chosen, few = telling(windows, windows[0].topology)
        way = way_of(options, [group.name for group in chosen.groups])
        with self._progress.stage("fit") as stage:
            windows = seen.windows_of(chosen)
            fitted = fit(windows, chosen, way, options.calibrate, options.seed, str(self._kept.place), stage.update)
        fitted = dataclasses.replace(fitted, verdicts=(*fitted.verdicts, *few, *seen.left_out))
        save_fit(fitted, self._kept.place)
        self._kept.keep("fit", {"way": dataclasses.asdict(way), **fitted.to_json()})
        return way, fitted

    def _train(self, way: Way, fitted: Fit) -> tuple[Bundle, dict[str, Any] | None]:
        place, kept = self._kept.place / BUNDLE, self._kept.result("train")
        if kept is not None:
            bundle = load_bundle(place)
            problem = dataclasses.replace(bundle.problem, workers=fitted.problem.workers)
            return dataclasses.replace(bundle, problem=problem), kept["proof"]
        options = self._options
        with self._progress.stage("train") as stage:
            bundle, proof = learn(
                fitted, way, options.train_steps, options.interval_s, options.seed, self._kept.place / "training",
                stage.update, options.address,
            )  # fmt: skip
            bundle.save(place)
        self._kept.keep("train", {"proof": proof})
        return bundle, proof

    def _judge(self, way: Way, fitted: Fit, bundle: Bundle) -> Judged:
        kept = self._kept.result("judge")
        if kept is not None:
            return Judged.model_validate(kept)
        with self._progress.stage("judge") as stage:
            judged, bundle = judge(fitted, way, bundle, self._options.promise, self._options.seed, stage.update)
        bundle.save(self._kept.folder / BUNDLE)
        handover_of(self._options, fitted, way).write(self._kept.folder)
        self._kept.keep("judge", json.loads(judged.model_dump_json()))
        return judged


def handover_of(options: OnboardOptions, fitted: Fit, way: Way) -> Handover:
    """What `deepsched steer run --folder` goes on with, without credentials."""
    return Handover(
        bundle=Path(BUNDLE),
        nginx_conf=options.nginx_conf and options.nginx_conf.absolute(),
        control_url=_without_password(options.control_url),
        token_file=options.token_file and options.token_file.absolute(),
        status_url=_without_password(options.status_url),
        groups=fitted.calibration.groups,
        workers=float(fitted.problem.believed_workers[0]) if way.in_memory else None,
        interval_s=options.interval_s,
        reload=options.reload if options.nginx_conf else None,
    )
