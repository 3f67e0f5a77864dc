"""The bench of learned admission: figures are paired by draw, and picture and bars tell all arms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from actuators.contract.topology import social_network
from envs.environment.entry import EntryTask
from envs.scenarios.family import KINDS
from envs.study.goodput import Goodput
from rayjobs.bench.admission_rl import figures
from rayjobs.bench.admission_rl.experiment import WRONG, Arm, Experiment, Found, Training
from rayjobs.bench.admission_rl.picture import picture
from rayjobs.bench.admission_rl.search import AIMD
from rayjobs.bench.admission_rl.tell import bars
from rayjobs.bench.parts.bars import BenchContext
from tuning.learning.entry import untrained
from tuning.learning.proof import Gain, ResidualProof

pytestmark = pytest.mark.thorough

TASK = EntryTask(social_network())
DRAWS = 2 * len(KINDS)


def played(*shares: float, noise: float = 0.01) -> Goodput:
    """Two types of equal worth whose goodput is these shares, in every draw."""
    shape = (DRAWS, len(shares))
    moved = noise * np.arange(DRAWS)[:, None] / DRAWS
    planned, good = np.full(shape, 1000.0), 1000.0 * (np.broadcast_to(shares, shape) - moved)
    return Goodput(planned, good, good, planned, planned - good, good, good, np.ones(shape))


def found() -> Found:
    plays = {name: dict.fromkeys((1.0, *WRONG), played(*shares)) for name, shares in {
        "none": (0.5, 0.5), "aimd_thresh": (0.9, 0.8), "buckets, AIMD tuned": (0.8, 0.6),
    }.items()}  # fmt: skip
    learned = {f: [played(0.93, 0.79), played(0.92, 0.8)] for f in (1.0, *WRONG)}
    gains = {kind: Gain(0.01, 0.002, 2) for kind in KINDS}
    holds = ResidualProof(Gain(0.01, 0.004, 16), gains, 0.5).to_json()
    fails = ResidualProof(Gain(0.01, -0.004, 16), gains | {"flash": Gain(0.0, -0.03, 2)}, 0.25).to_json()
    net = untrained(TASK)
    trainings = [Training(seed, net, 2.0, net, proof) for seed, proof in ((1, holds), (2, fails))]
    arms = (
        Arm("learned factors", TASK, "aimd_thresh", proven=True),
        Arm("learned rates", replace(TASK, rates=AIMD), "buckets, AIMD tuned"),
    )
    return Found(
        plays, {arm.name: learned for arm in arms}, {"learned factors": learned},
        {arm.name: trainings for arm in arms}, arms, AIMD, DRAWS,
    )  # fmt: skip


def test_gains_are_paired_and_tell_the_worst_type() -> None:
    base, trainings = played(0.9, 0.8), [played(0.93, 0.79), played(0.92, 0.8)]
    gain = figures.gain(trainings, base)
    assert gain.mean == pytest.approx(0.01)
    assert gain.half == pytest.approx(0.0, abs=1e-12)  # the draws differ, the pairs do not
    assert figures.goodput(trainings).half > 1e-3
    assert figures.gain_of_worst(trainings, base).mean == pytest.approx(-0.005)
    assert figures.by_kind(trainings, base).startswith("steady +1.00 ± 0.00, surge +1.00")


def test_bars_judge_only_what_the_proof_has_kept() -> None:
    told = {bar.bar: bar for bar in bars(found())}
    assert [name for name, bar in told.items() if bar.limit is not None] == ["learned factors, as proven: gain"]
    assert told["learned factors, as proven: gain"].holds
    assert "kept 50%, nothing" in told["learned factors, as proven: gain"].how
    assert "flash at least -3.00" in told["learned factors, as proven: gain"].how
    assert told["learned factors over aimd_thresh: gain"].value == pytest.approx(1.0)
    assert told["learned factors over aimd_thresh: gain of the worst type"].value == pytest.approx(-0.5)
    assert told["learned factors over aimd_thresh, idle times × 0.5: gain"].reference == (
        "+1.00 ± 0.00; each +1.00 ± 0.00, +1.00 ± 0.00"
    )
    assert told["learned rates over aimd_thresh: gain"].value == pytest.approx(1.0)


def test_the_picture_has_a_row_for_each_arm() -> None:
    tree = ElementTree.fromstring(picture(found()))
    texts = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    rows = [
        "none",
        "aimd_thresh",
        "buckets, AIMD tuned",
        "learned factors",
        "learned rates",
        "learned factors, as proven",
    ]
    assert set(rows) <= set(texts)
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}circle"))) == 2 * len(rows)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_repeated_run_goes_on_from_what_it_has(tmp_path: Path) -> None:
    said: list[str] = []
    context = BenchContext(1, True, tmp_path / "work", said.append, tmp_path)
    first = Experiment(context).run()
    trained = sum("training" in line for line in said)
    again = Experiment(context).run()
    assert trained == sum("training" in line for line in said) == 2
    for name, plays in first.learned.items():
        assert np.array_equal(plays[1.0][0].good, again.learned[name][1.0][0].good)
