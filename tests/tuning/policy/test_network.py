"""The network of plain arrays says what the torch network says, and loads nothing else than what it expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from actuators.errors import BundleError
from envs.environment.actions import ActionOptions
from tests.support.steering_cases import trained_bundle
from tuning.options import ModelOptions
from tuning.policy.bundle import load_bundle
from tuning.policy.model import EquivariantNet, learning_net
from tuning.policy.network import ArrayNet, best_action, expected_shapes

GROUPS, ROW = 3, 17


def both(action: dict[str, Any], *, squashed: bool = False, hidden: int = 32) -> tuple[EquivariantNet, ArrayNet]:
    """A torch network with random parameters, and the same one of arrays."""
    torch.manual_seed(5)
    kind = ActionOptions.model_validate(action)
    net = EquivariantNet(ROW, GROUPS, ModelOptions(hidden=hidden, squashed=squashed), kind)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.4)
    assert {name: array.shape for name, array in net.arrays().items()} == expected_shapes(ROW, GROUPS, hidden, kind)
    return net, ArrayNet(net.arrays(), GROUPS, squashed, kind)


@pytest.mark.parametrize("shape", [(1,), (3,), (300,), (8, 3), (2, 4, 5)], ids=str)
@pytest.mark.parametrize("squashed", [False, True])
def test_means_are_those_of_torch(shape: tuple[int, ...], squashed: bool) -> None:
    net, arrays = both({}, squashed=squashed)
    rows = np.random.default_rng(3).uniform(-10, 10, (*shape, ROW)).astype(np.float32)
    with torch.inference_mode():
        mean = net(torch.from_numpy(rows))[0]
        wanted = (torch.tanh(mean) if squashed else mean).numpy()
    found = best_action(arrays, arrays.outputs(rows))
    assert found.dtype == np.float32
    assert found.shape == (*shape[:-1], GROUPS * shape[-1])
    # Rounding grows with what the last layer sums up.
    tolerance = 1e-6 * float(mean.abs().max())
    assert found == pytest.approx(wanted, abs=tolerance)
    # What acts before it is saved says the same.
    assert best_action(net, net.outputs(rows)) == pytest.approx(wanted, abs=tolerance)


def test_ratio_vectors_are_those_of_torch() -> None:
    net, arrays = both({"kind": "ratios"})
    rows = np.random.default_rng(3).normal(size=(40, 3, ROW)).astype(np.float32)
    with torch.inference_mode():
        wanted = net.logits(net.encoder(torch.from_numpy(rows))).argmax(dim=-1).numpy()
    assert (best_action(arrays, arrays.outputs(rows)) == wanted).all()
    assert len(np.unique(wanted)) > 3


def test_a_loaded_network_goes_on_learning_where_it_was(tmp_path: Path) -> None:
    bundle = trained_bundle()
    bundle.save(tmp_path)
    loaded = load_bundle(tmp_path)
    again = learning_net(loaded.net, loaded.problem, loaded.model).arrays()
    for name, array in bundle.net.arrays().items():
        assert (again[name] == array).all(), name


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_other_tensors_are_refused_by_name(change: str, tmp_path: Path) -> None:
    trained_bundle().save(tmp_path)
    tensors = load_file(tmp_path / "policy.safetensors")
    first = tensors.pop("action.2.bias")
    if change == "unknown":
        tensors |= {"action.2.bias": first, "action.2.scale": first}
    if change == "shape":
        tensors["action.2.bias"] = first[:-1].copy()
    save_file(tensors, tmp_path / "policy.safetensors")
    with pytest.raises(BundleError, match=r"network does not load: 'action\.2\."):
        load_bundle(tmp_path)
