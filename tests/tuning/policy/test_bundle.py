"""Network, policy and bundle: equivariance, start at the baseline, files without pickle, errors that say what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from actuators.contract.control import Weights
from actuators.contract.topology import social_network
from actuators.errors import BundleError
from envs.heuristics.controllers import PolicyController
from envs.heuristics.weights import InverseLatency
from envs.simulator.testbed import SimulatedTestbed
from tests.support.problems import TOPOLOGY, demo_scenario, observed, problem
from tests.support.steering_cases import trained_bundle
from tests.support.windows import window
from tuning.options import ModelOptions
from tuning.policy.adviser import Adviser
from tuning.policy.bundle import Bundle, load_bundle
from tuning.policy.model import EquivariantNet
from tuning.steering import window_json


def trained_net(seed: int = 0) -> EquivariantNet:
    """A network whose last layer is not zero, as after training."""
    torch.manual_seed(seed)
    net = EquivariantNet(problem().row_size, 3, ModelOptions(hidden=16))
    with torch.no_grad():
        for parameter in net.action[-1].parameters():
            parameter.normal_(0, 0.5)
    return net


def bundle() -> Bundle:
    return Bundle(trained_net(), problem(), ModelOptions(hidden=16), {"seed": 1})


def test_permuting_the_servers_permutes_the_actions() -> None:
    net, rows = trained_net(), torch.randn(5, 4, problem().row_size)
    order = torch.tensor([2, 0, 3, 1])
    mean, log_std = net(rows)
    moved, _ = net(rows[:, order])
    assert mean.shape == log_std.shape == (5, 12)
    assert torch.allclose(mean.reshape(5, 3, 4)[:, :, order], moved.reshape(5, 3, 4), atol=1e-6)
    assert torch.allclose(net.values(net.encoder(rows)), net.values(net.encoder(rows[:, order])), atol=1e-6)


def test_an_untrained_policy_is_the_baseline() -> None:
    fresh = Bundle(EquivariantNet(problem().row_size, 3, ModelOptions()), problem(), ModelOptions(), {}).policy()
    baseline = InverseLatency(problem().codec)
    observer = problem().observer()
    for seen in observed().windows.equal[:8]:
        observation = observer.observe_window(seen)
        assert fresh.act(observation) == baseline.act(observation)


def test_a_loaded_bundle_acts_the_same(tmp_path: Path) -> None:
    bundle().save(tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    observer = problem().observer()
    for seen in observed().windows.equal[:8]:
        observation = observer.observe_window(seen)
        assert loaded.policy().act(observation) == bundle().policy().act(observation)
    assert loaded.provenance == {"seed": 1}
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == [
        "bundle.json", "encoder.npz", "policy.safetensors",
    ]  # fmt: skip


def test_a_bundle_acts_on_more_servers(tmp_path: Path) -> None:
    bundle().save(tmp_path)
    five = social_network(tuple(f"other-{i}:80" for i in range(5)))
    loaded = load_bundle(tmp_path, five)
    controller = PolicyController("learned", "least_conn", loaded.policy(), loaded.problem.observer())
    with SimulatedTestbed(five) as testbed:
        testbed.reset(demo_scenario(), 1)
        for _ in range(3):
            control = controller.decide(testbed.advance(1.0))
            assert control is not None
            testbed.apply(control)


def test_a_bundle_acts_where_there_is_no_ray(tmp_path: Path) -> None:
    """Any program with torch can load it, act, and even serve it."""
    trained_bundle().save(tmp_path / "bundles" / "own")
    (tmp_path / "window.json").write_text(json.dumps({"windows": [window_json.to_json(window())]}))
    code = (
        "import sys; from pathlib import Path\n"
        "sys.modules['ray'] = None\n"
        "from tuning.policy.adviser import Adviser; from tuning.policy.bundle import load_bundle\n"
        "from rayjobs.serve.options import ServeOptions, make_settings\n"
        "from rayjobs.serve.app import open_answers; from rayjobs.serve.answers import read_body\n"
        "from tuning.steering import window_json\n"
        "adviser = Adviser(load_bundle(Path('bundles/own')))\n"
        "body = Path('window.json').read_bytes()\n"
        "seen = [window_json.from_json(one, adviser.topology) for one in read_body(body).windows]\n"
        "options = ServeOptions(bundle=Path('bundles/own'), front='uvicorn', folder=Path('state'))\n"
        "open_answers(make_settings(options))\n"
        "print(adviser.advise(seen).policy.values.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    policy = Adviser(trained_bundle()).advise([window()]).policy
    assert isinstance(policy, Weights)
    assert json.loads(done.stdout) == policy.values.tolist()


def test_every_broken_bundle_is_refused(tmp_path: Path) -> None:
    def broken(name: str, content: bytes) -> Path:
        folder = tmp_path / name.replace(".", "-")
        bundle().save(folder)
        (folder / name).write_bytes(content)
        return folder

    with pytest.raises(BundleError, match="not a bundle"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="not a bundle"):
        load_bundle(broken("bundle.json", b"{}"))
    with pytest.raises(BundleError, match="not an encoder"):
        load_bundle(broken("encoder.npz", b"junk"))
    with pytest.raises(BundleError, match="not safetensors"):
        load_bundle(broken("policy.safetensors", b"junk"))


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    bundle().save(tmp_path)
    content = json.loads((tmp_path / "bundle.json").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(BundleError, match="bundle format 99"):
        load_bundle(tmp_path)


def test_other_request_types_are_refused(tmp_path: Path) -> None:
    from actuators.contract.topology import Group, Topology

    bundle().save(tmp_path)
    other = Topology((Group("one", "search", "GET", "/search", 2.0, TOPOLOGY.servers),))
    with pytest.raises(BundleError, match="trained for request types compose, home_read, user_read"):
        load_bundle(tmp_path, other)


def test_a_policy_that_emits_nan_falls_back_to_the_baseline() -> None:
    net = trained_net()
    with torch.no_grad():
        net.action[0].weight.fill_(float("nan"))
    broken = Bundle(net, problem(), ModelOptions(hidden=16), {}).policy()
    observation = problem().observer().observe_window(observed().windows.equal[0])
    assert broken.act(observation) == InverseLatency(problem().codec).act(observation)
    assert np.isfinite(observation.features).all()
