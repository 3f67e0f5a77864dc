"""Finds a scenario by its name in the catalogue, in a YAML file or in a calibration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from actuators.contract.script import Scenario
from actuators.contract.topology import Topology, social_network
from actuators.errors import ConfigError, closest
from envs.scenarios.calibrated import CalibratedScenario, read_calibrated
from envs.scenarios.catalogue import SCENARIOS, STUDY, TRACED, VARYING, Mixture, StudyScenario, randomised
from envs.scenarios.family import FAMILY
from envs.scenarios.file import read_scenario_file
from envs.scenarios.own_family import read_own_family

NAMED: dict[str, StudyScenario] = {**SCENARIOS, **TRACED, **VARYING, **FAMILY}
"""All scenarios that have a name: the catalogue's and family H."""


def scenario(name: str, duration_s: float | None = None, work_scale: float | None = None) -> StudyScenario:
    """A scenario by name (case does not matter), from a YAML file or from a `calibration.json`.

    `H-surge:FILE` is that kind of family H around the calibration in FILE.

    Raises ConfigError, with the closest match for an unknown name.
    """
    base = _from_file(name, duration_s) if name.endswith((".yaml", ".yml", ".json")) else _by_name(name)
    return replace(
        base,
        duration_s=base.duration_s if duration_s is None else duration_s,
        work_scale=base.work_scale if work_scale is None else work_scale,
    )


def topology_of(scenarios: Iterable[Scenario]) -> Topology:
    """The system on which the scenarios of one run are played: that of the calibrated ones, or else the demo's.

    Scenarios of the catalogue fit any system. Raises ConfigError when two are of different systems.
    """
    twins = [each for each in scenarios if isinstance(each, CalibratedScenario)]
    for other in twins[1:]:
        if other.twin_of.topology != twins[0].twin_of.topology:
            names = f"{twins[0].name} and {other.name}"
            raise ConfigError(f"{names} are of different systems", where="scenario", remedy="use one per run")
    return twins[0].twin_of.topology if twins else social_network()


def training_mixture(
    names: Iterable[str] = STUDY, duration_s: float = 100.0, work_scale: float | None = None
) -> Mixture:
    """Randomised variants of the named scenarios, one drawn per seed. Raises ConfigError for an unknown name."""
    return Mixture(tuple(randomised(scenario(name, work_scale=work_scale), duration_s) for name in names))


def _by_name(name: str) -> StudyScenario:
    names = {known.lower(): known for known in NAMED}
    if name.lower() not in names:
        raise ConfigError(f"unknown scenario '{name}'", remedy=closest(name, NAMED))
    return NAMED[names[name.lower()]]


def _from_file(name: str, duration_s: float | None) -> StudyScenario:
    family, colon, file_name = name.partition(":")
    kinds = {known.lower(): known for known in FAMILY}
    if colon and family.lower() in kinds and file_name.endswith(".json"):
        return read_own_family(Path(file_name), FAMILY[kinds[family.lower()]].kind)
    path = Path(name)
    if path.suffix == ".json":
        return read_calibrated(path)
    file = read_scenario_file(path)
    file.require_few_changes(file.duration_s if duration_s is None else duration_s, path)
    same = (
        "name",
        "summary",
        "load",
        "duration_s",
        "work_scale",
        "workers",
        "queue_limit",
        "arrivals",
        "arrivals_cv",
        "service",
    )
    return StudyScenario(
        **{field: getattr(file, field) for field in same},
        service_cv=file.service_cv,
        load_balancers=file.load_balancers,
        speeds=file.speeds_of,
        disturbance=file.disturb,
        load_shape=file.shape_load,
        shaped_type=file.surging_type,
        named_types=tuple(file.speeds) if isinstance(file.speeds, dict) else (),
    )
