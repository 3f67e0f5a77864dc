"""Finds a scenario by its name in the catalogue, in a YAML file or in a calibration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from actuators.errors import ConfigError, closest
from envs.scenarios.calibrated import read_calibrated
from envs.scenarios.catalogue import SCENARIOS, STUDY, Mixture, StudyScenario, randomised
from envs.scenarios.file import read_scenario_file


def scenario(name: str, duration_s: float | None = None, work_scale: float | None = None) -> StudyScenario:
    """A scenario by name (case does not matter), from a YAML file or from a `calibration.json`.

    Raises ConfigError, with the closest match for an unknown name.
    """
    base = _from_file(Path(name)) if name.endswith((".yaml", ".yml", ".json")) else _by_name(name)
    return replace(
        base,
        duration_s=base.duration_s if duration_s is None else duration_s,
        work_scale=base.work_scale if work_scale is None else work_scale,
    )


def training_mixture(
    names: Iterable[str] = STUDY, duration_s: float = 100.0, work_scale: float | None = None
) -> Mixture:
    """Randomised variants of the named scenarios, one drawn per seed. Raises ConfigError for an unknown name."""
    return Mixture(tuple(randomised(scenario(name, work_scale=work_scale), duration_s) for name in names))


def _by_name(name: str) -> StudyScenario:
    names = {known.lower(): known for known in SCENARIOS}
    if name.lower() not in names:
        raise ConfigError(f"unknown scenario '{name}'", remedy=closest(name, SCENARIOS))
    return SCENARIOS[names[name.lower()]]


def _from_file(path: Path) -> StudyScenario:
    if path.suffix == ".json":
        return read_calibrated(path)
    file = read_scenario_file(path)
    same = ("name", "summary", "load", "duration_s", "work_scale", "workers", "queue_limit", "arrivals", "service")
    return StudyScenario(
        **{field: getattr(file, field) for field in same},
        service_cv=file.service_cv,
        load_balancers=file.load_balancers,
        speeds=file.speeds_of,
        disturbance=file.disturb,
        load_shape=file.shape_load,
        shaped_type=file.surging_type,
    )
