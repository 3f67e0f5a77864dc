"""Recalibration: what was seen is not novel, a system that changed is; a refit must prove itself and can go back.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actuators.contract.topology import Topology, social_network
from actuators.contract.window import Window
from actuators.errors import BundleError, ConfigError, DataError
from actuators.files import write_json
from envs.mixture.fit import window_samples
from envs.mixture.novelty import check, load_known
from envs.mixture.refit import SAMPLES, drawn_samples, prove, recalibrate, save_samples
from envs.observation.observer import ObservationName
from envs.simulator.testbed import SimulatedTestbed, SimulationOptions
from rayjobs.cli.main import main
from tests.support.problems import TOPOLOGY, demo_scenario, observed, problem
from tests.support.windows import window
from tuning.options import ModelOptions
from tuning.policy.bundle import Bundle, check_bundle, load_bundle
from tuning.policy.learned import LearnedPolicy
from tuning.policy.model import net_for
from tuning.policy.warm_start import widened


def play(overhead_ms: float) -> list[Window]:
    with SimulatedTestbed(TOPOLOGY, options=SimulationOptions(overhead_ms=overhead_ms)) as testbed:
        testbed.reset(demo_scenario(), 5)
        return [testbed.advance(0.5) for _ in range(50)]


def observed_folder(folder: Path) -> Path:
    problem().encoder.save(folder / "encoder.npz")
    seconds = dict(zip(TOPOLOGY.request_types, (observed().deadlines.seconds * 1e3).tolist(), strict=True))
    write_json(folder / "deadlines.json", {"deadlines_ms": seconds})
    return folder


def test_the_same_system_is_known_and_a_slower_one_is_novel() -> None:
    encoder, deadlines_s = problem().encoder, problem().deadlines_s
    same = check(play(0.0), TOPOLOGY, encoder, deadlines_s)
    slower = check(play(40.0), TOPOLOGY, encoder, deadlines_s)
    assert same.windows == slower.windows == 40
    assert same.share < 0.2
    assert same.typical < 1.0
    assert slower.share > 0.9


def test_too_few_windows_are_no_answer() -> None:
    windows = [window(seed=i) for i in range(10)]
    with pytest.raises(DataError, match="10 usable windows"):
        check(windows, TOPOLOGY, problem().encoder, problem().deadlines_s)


def test_groups_are_put_into_the_encoders_order(tmp_path: Path) -> None:
    folder = observed_folder(tmp_path)
    turned = Topology(tuple(reversed(social_network(("a:1", "b:1")).groups)))
    topology, encoder, deadlines_s = load_known(folder, turned)
    assert topology.request_types == TOPOLOGY.request_types
    assert encoder.names == problem().encoder.names
    assert np.allclose(deadlines_s, problem().deadlines_s)


def test_other_request_types_and_empty_folders_are_refused(tmp_path: Path) -> None:
    folder = observed_folder(tmp_path)
    other = Topology((replace(TOPOLOGY.groups[0], request_type="search"), *TOPOLOGY.groups[1:]))
    with pytest.raises(ConfigError, match="search"):
        load_known(folder, other)
    (folder / "deadlines.json").unlink()
    with pytest.raises(BundleError, match="no deadlines"):
        load_known(folder, TOPOLOGY)


def test_a_check_needs_snapshots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encoder", "check", str(tmp_path)]) == 2
    assert "option 'snapshots' is missing" in capsys.readouterr().err


def record(windows: list[Window], path: Path) -> Path:
    """The snapshots between which these windows lie, as `deepsched collect` writes them."""
    fields = ("requests", "in_bytes", "out_bytes", "responses", "response_ms_sum", "latency_histogram")
    sums = {name: np.zeros_like(getattr(windows[0], name)) for name in fields}
    with open(path, "w") as file:
        for now_ms, played in zip(range(0, 500 * len(windows) + 1, 500), [None, *windows], strict=True):
            if played is not None:
                sums = {name: total + getattr(played, name) for name, total in sums.items()}
            line: dict[str, object] = {"nowMsec": 10_000 + now_ms, "loadMsec": 1, "connections": {}}
            for g, group in enumerate(TOPOLOGY.groups):
                line[group.name] = {a: _counters(sums, windows[0], g, s) for s, a in enumerate(group.servers)}
            file.write(json.dumps(line) + "\n")
    return path


def _counters(sums: dict[str, np.ndarray], like: Window, g: int, s: int) -> dict[str, object]:
    cell = {name: total[g, s] for name, total in sums.items()}
    buckets = {"msecs": list(like.bounds_ms), "counters": np.cumsum(cell["latency_histogram"])[:-1].tolist()}
    answered = {f"{kind + 1}xx": int(count) for kind, count in enumerate(cell["responses"])}
    return {
        "requestCounter": int(cell["requests"]), "inBytes": int(cell["in_bytes"]), "outBytes": int(cell["out_bytes"]),
        "responses": answered, "responseMsecCounter": int(cell["response_ms_sum"]), "responseBuckets": buckets,
        "weight": int(like.weight[g, s]),
    }  # fmt: skip


def known_samples() -> np.ndarray:
    seen = observed().windows
    return window_samples([*seen.equal, *seen.exploring], TOPOLOGY, problem().deadlines_s, "server")


def rows_of(windows: list[Window]) -> np.ndarray:
    samples = window_samples(windows, TOPOLOGY, problem().deadlines_s, "server")
    return samples.reshape(len(windows), 3, -1)[10:]


def test_a_refit_keeps_the_old_clusters_places_and_adds_some_for_what_is_new() -> None:
    old = problem().encoder
    fresh, proof = recalibrate(old, known_samples(), rows_of(play(40.0)), 0.2, 1)
    assert proof.proven, proof.reasons
    assert proof.novel_before > 0.9
    assert proof.novel <= 0.2
    assert proof.gained > 1.0
    assert fresh.clusters > old.clusters
    assert (fresh.names, fresh.scale.tolist()) == (old.names, old.scale.tolist())
    # Who was in an old cluster still is in the same one.
    before, after = (encoder.encode(known_samples())[0].argmax(axis=-1) for encoder in (old, fresh))
    assert (before == after).mean() > 0.8


def test_what_is_not_new_changes_little_and_too_little_is_refused() -> None:
    old = problem().encoder
    fresh, proof = recalibrate(old, known_samples(), rows_of(play(0.0)), 0.3, 1)
    assert proof.forgotten < 1.0
    assert proof.stability > 0.5
    assert fresh.encode(known_samples())[1].max() < 3.0
    with pytest.raises(DataError, match="5 new windows"):
        recalibrate(old, known_samples(), rows_of(play(0.0))[:5], 0.2, 1)


def test_a_mixture_that_does_not_know_the_new_or_forgot_the_old_is_not_proven() -> None:
    old, known, new = problem().encoder, known_samples(), rows_of(play(40.0))
    stuck = prove(old, old, known, new, 0.2, 1.0)
    assert ["still novel" in reason for reason in stuck.reasons] == [True]
    elsewhere = replace(old, means=old.means + 8.0)
    lost = prove(old, elsewhere, known, known[:60].reshape(20, 3, -1), 0.2, 0.1)
    assert any("old samples are less likely" in reason for reason in lost.reasons)
    assert any("less likely than before" in reason for reason in lost.reasons)
    assert any("refits disagree" in reason for reason in lost.reasons)


def test_few_old_samples_are_held_out_too_and_none_prove_nothing() -> None:
    """13 old windows are fewer than the blocks of which every fourth is held out."""
    old, known, new = problem().encoder, known_samples(), rows_of(play(40.0))
    _, proof = recalibrate(old, known[: 13 * 3], new, 0.2, 1)
    assert np.isfinite(proof.forgotten)
    with pytest.raises(DataError, match="3 samples of the old encoder"):
        recalibrate(old, known[:3], new, 0.2, 1)
    with pytest.warns(RuntimeWarning):
        nothing = prove(old, old, known[:0], new, 1.0, 1.0)
    assert ["old samples are less likely" in reason for reason in nothing.reasons] == [True]


def test_draws_from_a_mixture_are_like_what_it_was_fitted_to() -> None:
    drawn, known = drawn_samples(problem().encoder, 1), known_samples()
    assert abs(drawn.mean(axis=0) - known.mean(axis=0)).max() < 0.5 * known.std(axis=0).max()
    assert (problem().encoder.encode(drawn)[1] > 1.0).mean() < 0.02


def test_check_recalibrate_check_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = observed_folder(tmp_path)
    save_samples(folder / SAMPLES, known_samples(), problem().encoder.names)
    slow = str(record(play(40.0), tmp_path / "slow.jsonl"))
    first = (folder / "encoder.npz").read_bytes()
    assert main(["encoder", "check", str(folder), "--snapshots", slow]) == 3
    heard = capsys.readouterr()
    assert "deepsched_novel_window_share" in heard.out
    assert "warning: recalibrate" in heard.err
    assert "[2/2] compare: done" in heard.err
    assert main(["encoder", "recalibrate", str(folder), "--snapshots", slow]) == 0
    heard = capsys.readouterr()
    assert "novel before" in heard.out
    assert "[2/2] refit: done" in heard.err
    assert main(["encoder", "check", str(folder), "--snapshots", slow]) == 0
    assert (folder / "previous" / "encoder.npz").read_bytes() == first
    with np.load(folder / SAMPLES) as data:
        assert len(data["samples"]) == len(known_samples()) + 3 * 40
    assert main(["encoder", "rollback", str(folder)]) == 0
    assert main(["encoder", "check", str(folder), "--snapshots", slow]) == 3


def test_what_is_not_proven_leaves_the_old_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = observed_folder(tmp_path)
    first = (folder / "encoder.npz").read_bytes()
    # Slow in every window that is held out and in no other: what was refitted to cannot tell.
    held_out = [i >= 10 and (i - 10) // 5 % 4 == 3 for i in range(50)]
    wild = [
        replace(w, response_ms_sum=w.response_ms_sum * (60 if slow else 1))
        for w, slow in zip(play(0.0), held_out, strict=True)
    ]
    unlike = str(record(wild, tmp_path / "wild.jsonl"))
    assert main(["encoder", "recalibrate", str(folder), "--snapshots", unlike]) == 4
    heard = capsys.readouterr()
    assert "not proven" in heard.err
    assert "draws from the encoder replace them" in heard.err
    assert (folder / "encoder.npz").read_bytes() == first
    assert not (folder / "previous").exists()
    assert main(["encoder", "rollback", str(folder)]) == 2
    assert main(["encoder", "recalibrate", str(folder)]) == 2


def test_a_bundle_goes_on_with_its_policy_and_comes_back(tmp_path: Path) -> None:
    folder, old = tmp_path / "bundle", problem()
    net = net_for(old, ModelOptions(hidden=8))
    torch.nn.init.normal_(net.action[-1].weight)
    Bundle(net, old, ModelOptions(hidden=8), {"seed": 1}).save(folder)
    slow = str(record(play(40.0), tmp_path / "slow.jsonl"))
    assert main(["encoder", "recalibrate", str(folder), "--snapshots", slow]) == 0
    after = load_bundle(check_bundle(folder))
    assert after.problem.encoder.clusters > old.encoder.clusters
    assert after.provenance["recalibrations"][0]["clusters"] == after.problem.encoder.clusters
    assert load_bundle(check_bundle(folder / "previous")).problem.encoder.clusters == old.encoder.clusters
    assert not list(tmp_path.glob(".bundle-*"))
    # As it was spelled up to version 0.1.
    assert main(["observe", "--rollback", str(folder)]) == 0
    assert load_bundle(check_bundle(folder)).problem.encoder.clusters == old.encoder.clusters


@pytest.mark.parametrize("name", ["posterior+features", "label", "fisher"])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_widened_network_acts_as_before_where_new_clusters_are_silent(name: ObservationName, frames: int) -> None:
    old = problem()
    old = replace(old, options=old.options.model_copy(update={"observation": name, "frames": frames}))
    encoder = old.encoder
    # A cluster far away from everything, which nothing belongs to.
    more = replace(
        encoder,
        weights=np.append(encoder.weights, 1e-12),
        means=np.concatenate([encoder.means, np.full((1, len(encoder.names)), 1e6)]),
        precisions_cholesky=np.concatenate([encoder.precisions_cholesky, encoder.precisions_cholesky[:1]]),
    )
    new = replace(old, encoder=more)
    net = net_for(old, ModelOptions(hidden=8))
    torch.nn.init.normal_(net.action[-1].weight)
    wide = widened(net, ModelOptions(hidden=8), old, new)
    before, after = old.observer(), new.observer()
    for seen in play(0.0)[:12]:
        acted = LearnedPolicy(net, old).action(old.array(before.observe_window(seen)))
        assert LearnedPolicy(wide, new).action(new.array(after.observe_window(seen))) == pytest.approx(acted, abs=1e-5)
    with pytest.raises(BundleError, match="differ in more"):
        widened(
            net,
            ModelOptions(hidden=8),
            old,
            problem()
            if name != "posterior+features" or frames > 1
            else replace(new, options=new.options.model_copy(update={"observation": "label"})),
        )
