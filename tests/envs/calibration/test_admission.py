"""What admission believes of a calibration: deadlines that were given or derived, numbers that were searched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.admission import AdmissionNumbers
from actuators.errors import ConfigError
from envs.admission.tuned import TunedNumbers
from envs.calibration.admission import calibrated_admission, patient_deadlines_s
from envs.calibration.options import AdmissionPlan
from envs.calibration.result import Calibration

CALIBRATION = Calibration.load(Path("tests/data/runs/calibration.json"))
TUNED = TunedNumbers(
    rule="aimd_thresh", numbers=AdmissionNumbers(most=4.0), groups=CALIBRATION.groups, gained=True, gain=0.01,
    low=0.002, high=0.018, goodput=0.93, without=0.6, draws=200, seed=1,
)  # fmt: skip


def test_a_derived_deadline_is_widened_and_a_given_one_is_kept() -> None:
    times = CALIBRATION.response_times
    wide_s = [(each.mean_ms + 6 * each.deviation_ms) / 1e3 for each in times]
    assert patient_deadlines_s(CALIBRATION) == pytest.approx(wide_s)
    assert calibrated_admission(CALIBRATION, AdmissionPlan(), 0.0).deadlines_s == pytest.approx(wide_s)
    given = CALIBRATION.changed({"response_times": (times[0].model_copy(update={"deadline_ms": 60.0}), *times[1:])})
    assert patient_deadlines_s(given) == pytest.approx([0.06, *wide_s[1:]])
    own = AdmissionPlan(deadlines_ms={CALIBRATION.groups[1]: 30.0})
    assert calibrated_admission(given, own, 0.0).deadlines_s == pytest.approx([0.06, 0.03, wide_s[2]])
    unknown = CALIBRATION.changed({"response_times": ()})
    assert np.isnan(patient_deadlines_s(unknown)).all()
    with pytest.raises(ConfigError, match="no deadline of 'compose_backend'"):
        calibrated_admission(unknown, AdmissionPlan(), 0.0)


def test_numbers_come_from_a_file_a_search_or_a_bundle(tmp_path: Path) -> None:
    data = TUNED.model_dump(mode="json")
    for path, content in (
        (tmp_path / "admission.json", data),
        (tmp_path / "bundle" / "bundle.json", {"format_version": 1, "admission": data}),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        for given in (path, path.parent):
            found = calibrated_admission(CALIBRATION, AdmissionPlan(numbers_file=given), 0.0)
            assert found.numbers == AdmissionNumbers(most=4.0)


def test_numbers_of_another_rule_or_system_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "admission.json"
    path.write_text(TUNED.model_dump_json())
    with pytest.raises(ConfigError, match="numbers of aimd_thresh"):
        calibrated_admission(CALIBRATION, AdmissionPlan(numbers_file=path, rule="thresh"), 0.0)
    path.write_text(TUNED.model_copy(update={"groups": ("a", "b")}).model_dump_json())
    with pytest.raises(ConfigError, match="numbers for the groups a, b"):
        calibrated_admission(CALIBRATION, AdmissionPlan(numbers_file=path), 0.0)
    (tmp_path / "bundle.json").write_text('{"format_version": 1}')
    with pytest.raises(ConfigError, match="the bundle holds no numbers"):
        TunedNumbers.load(tmp_path)
    for text, named in (("{", "not JSON"), ("[]", "no numbers of an admission rule"), ('{"rule": 1}', "rule")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=named):
            TunedNumbers.load(path)
    with pytest.raises(ConfigError, match="cannot read"):
        TunedNumbers.load(tmp_path / "nowhere.json")
