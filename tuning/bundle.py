"""A policy bundle: the folder that carries a trained policy from training to a live NGINX.

`bundle.json` (problem and provenance), `encoder.npz`, `policy.safetensors`. No pickle is ever loaded.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from actuators.errors import BundleError
from actuators.files import write_atomic
from actuators.topology import Group, Topology
from envs.decision import DecisionOptions, DecisionProblem
from envs.encoding import Encoder
from envs.observation import sample_names
from tuning.model import EquivariantNet
from tuning.options import ModelOptions
from tuning.policy import LearnedPolicy, net_for

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained policy with all it needs.

    Attributes:
        net: the network.
        problem: topology, deadlines, encoder, observation, action codec.
        provenance: seed, command, config, versions, training curve, evaluation; plain JSON.
    """

    net: EquivariantNet
    problem: DecisionProblem
    model: ModelOptions
    provenance: dict[str, Any]

    def policy(self) -> LearnedPolicy:
        return LearnedPolicy(self.net, self.problem)

    def save(self, folder: Path) -> None:
        """Writes the three files, `bundle.json` last: a folder without it is not a bundle."""
        folder.mkdir(parents=True, exist_ok=True)
        self.problem.encoder.save(folder / "encoder.npz")
        tensors = {name: tensor.contiguous() for name, tensor in self.net.state_dict().items()}
        write_atomic(folder / "policy.safetensors", save(tensors))
        description = {
            "format_version": FORMAT_VERSION,
            "topology": [asdict(group) for group in self.problem.topology.groups],
            "features": list(self.problem.encoder.names),
            "deadlines_s": self.problem.deadlines_s.tolist(),
            "decision": self.problem.options.model_dump(),
            "model": self.model.model_dump(),
            "provenance": self.provenance,
        }
        write_atomic(folder / "bundle.json", json.dumps(description, indent=1).encode())


def load_bundle(folder: Path, topology: Topology | None = None) -> Bundle:
    """Reads a bundle; with a topology, for that one (other addresses, other number of servers).

    Raises:
        BundleError: a file is missing, of another format, or does not fit the topology's request types.
    """
    path = folder / "bundle.json"
    try:
        data = json.loads(path.read_bytes())
        if data["format_version"] != FORMAT_VERSION:
            raise BundleError(f"bundle format {data['format_version']}", where=str(path), remedy="export it again")
        own = Topology(tuple(Group(**{**g, "servers": tuple(g["servers"])}) for g in data["topology"]))
        options = DecisionOptions.model_validate(data["decision"])
        model = ModelOptions.model_validate(data["model"])
        deadlines_s = np.array(data["deadlines_s"], dtype=float)
        provenance = data["provenance"]
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise BundleError(
            f"not a bundle: {error}", where=str(path), remedy="give the folder that train wrote"
        ) from error
    encoder = Encoder.load(folder / "encoder.npz")
    target = topology or own
    if target.request_types != own.request_types or encoder.names != sample_names(target, encoder.kind):
        raise BundleError(
            f"trained for request types {', '.join(own.request_types)}",
            where=str(path),
            remedy="use it with groups of the same types in the same order",
        )
    problem = DecisionProblem(target, deadlines_s, encoder, options)
    net = net_for(problem, model)
    try:
        net.load_state_dict(load_file(folder / "policy.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"network does not load: {error}", where=str(folder), remedy="export it again") from error
    return Bundle(net, problem, model, provenance)
