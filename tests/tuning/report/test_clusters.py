"""The cluster report: shares, times and transitions are those of the windows; the page holds every figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.window import Fault, Window
from actuators.errors import DataError
from envs.mixture.fit import Candidate, candidates, fit_from_windows, window_samples
from envs.observation.encoder import EncoderOptions
from rayjobs.cli.main import main
from tests.support.pages import page_figures
from tests.support.problems import TOPOLOGY, observed
from tests.support.windows import window
from tuning.observing.clusters import Meaning, meaning
from tuning.report.clusters import render_cluster_page
from tuning.report.page import Provenance

DEADLINES_S = np.array([0.1, 0.1, 0.1])
FAST_MS, SLOW_MS = 10.0, 80.0


def alternating(count: int, weight: np.ndarray | None = None, start: int = 0) -> list[Window]:
    """All servers fast in even windows, slow in odd ones."""
    return [
        window((FAST_MS, SLOW_MS)[i % 2], seed=start + i, spread=0.2, weight=weight, start_s=float(start + i))
        for i in range(count)
    ]


def of(windows: list[Window], kind: str = "server") -> Meaning:
    options = EncoderOptions.model_validate({"kind": kind, "clusters": (2,)})
    encoder = fit_from_windows(windows, TOPOLOGY, DEADLINES_S, options, 1)
    return meaning(windows, TOPOLOGY, DEADLINES_S, encoder)


def test_shares_times_and_ranks_are_those_of_the_windows() -> None:
    found = of(alternating(40))
    fast, slow = found.mean_ms[:, 0].argsort()
    assert found.share.tolist() == [0.5, 0.5]
    assert found.mean_ms[fast] == pytest.approx(FAST_MS, rel=0.1)
    assert found.mean_ms[slow] == pytest.approx(SLOW_MS, rel=0.05)
    assert found.deviation_ms[slow] == pytest.approx(0.2 * SLOW_MS, rel=0.2)
    assert found.slow[slow] == pytest.approx((SLOW_MS + 3 * 0.2 * SLOW_MS) / 100, rel=0.1)
    assert (found.places[fast], found.places[slow]) == (1, 2)
    assert found.encoder.ranks()[slow] == 1.0


def test_transitions_are_counted_by_what_the_weights_gave_a_server() -> None:
    uneven = np.array([[5, 3, 1]] * 3)
    windows = [*alternating(20), *alternating(20, uneven, start=20)]
    found = of(windows)
    assert list(found.transitions) == ["less than an equal share", "about an equal share", "more than an equal share"]
    totals = [int(counts.sum()) for counts in found.transitions.values()]
    # 19 steps under equal weights, 20 under (5, 3, 1), of which the middle server gets its equal share.
    assert totals == [20, 3 * 19 + 20, 20]
    for counts in found.transitions.values():
        assert np.diagonal(counts).sum() == 0


def test_nothing_follows_a_window_without_numbers() -> None:
    windows = alternating(21)
    windows[10] = replace(windows[10], faults=(Fault("gap", "nothing read"),))
    found = of(windows)
    assert found.windows == 20
    assert sum(int(counts.sum()) for counts in found.transitions.values()) == 3 * 18
    with pytest.raises(DataError, match="no usable window"):
        meaning([windows[10]], TOPOLOGY, DEADLINES_S, found.encoder)


def test_a_joint_mixture_has_one_state_for_all_and_tells_whom_the_weights_favoured() -> None:
    uneven = np.array([[1, 1, 5]] * 3)
    found = of([*alternating(20), *alternating(20, uneven, start=20)], "joint")
    assert {family: int(counts.sum()) for family, counts in found.transitions.items()} == {
        "about equal shares": 19,
        "most to server 3": 20,
    }
    assert len(found.labels) == 1
    assert found.mean_ms.min() == pytest.approx(FAST_MS, rel=0.1)


def test_the_page_holds_every_figure_and_says_how_stable_the_states_are() -> None:
    seen = observed()
    problem = seen.problem
    windows = [*seen.windows.equal, *seen.windows.exploring]
    options = EncoderOptions(clusters=(2, 3), restarts=1)
    tried = candidates(window_samples(windows, TOPOLOGY, problem.deadlines_s, "server"), options, 1)
    found = meaning(windows, TOPOLOGY, problem.deadlines_s, problem.encoder)
    page = render_cluster_page(found, tried, Provenance("deepsched observe"), ["<odd>"])
    names = [figure["name"] for figure in page_figures(page)]
    assert {"states", "timeline", "criteria", "stability", "response-0", "response-2", "transitions-0"} <= set(names)
    for name in names:
        assert page.count(f'id="{name}"') == 1
    assert "default-src 'none'" in page
    assert "&lt;odd&gt;" in page
    assert f"{problem.encoder.clusters} states of a server" in page
    unstable = [Candidate(c.clusters, c.bic, c.icl, 0.2) for c in tried]
    assert "do not name or interpret" in render_cluster_page(found, unstable, Provenance())
    alone = render_cluster_page(found, (), Provenance())
    assert "was given, not chosen" in alone


def test_observe_writes_the_page_and_the_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["observe.duration_s=10", "observe.explore_s=5", "observe.encoder.clusters=[2,3]"]
    assert main(["observe", "--out", str(tmp_path), *(word for text in words for word in ("--set", text))]) == 0
    (folder,) = tmp_path.iterdir()
    assert (folder / "clusters.html").stat().st_size > 1e6
    with np.load(folder / "samples.npz", allow_pickle=False) as data:
        assert data["samples"].shape == (3 * 30, 15)
    assert "K (stability): 2 (" in capsys.readouterr().out
