"""A policy bundle: the folder that holds a trained policy (docs/file-formats.md#bundle); no pickle is ever loaded.

Saves and loads bundles, checks that a folder holds plain data files only, replaces a bundle atomically and restores
the one that was replaced.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from actuators.contract.topology import Group, Topology
from actuators.errors import BundleError
from actuators.files import write_atomic
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.observation.encoder import Encoder
from envs.observation.observer import sample_names
from tuning.options import ModelOptions
from tuning.policy.learned import LearnedPolicy
from tuning.policy.network import ArrayNet, Network, expected_shapes

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained policy with everything it needs to act.

    Attributes:
        net: the network; of plain arrays when the bundle was loaded (`tuning.policy.model.learning_net` learns on).
        problem: topology, deadlines, encoder, observation, action codec.
        model: options that the network was built with.
        provenance: seed, command, config, versions, training curve, evaluation; plain JSON.
    """

    net: Network
    problem: DecisionProblem
    model: ModelOptions
    provenance: dict[str, Any]

    def policy(self) -> LearnedPolicy:
        return LearnedPolicy(self.net, self.problem)

    def save(self, folder: Path) -> None:
        """Writes the three files, `bundle.json` last: a folder without it is not a bundle."""
        folder.mkdir(parents=True, exist_ok=True)
        self.problem.encoder.save(folder / "encoder.npz")
        write_atomic(folder / "policy.safetensors", save(self.net.arrays()))
        description = {
            "format_version": FORMAT_VERSION,
            "topology": msgspec.to_builtins(self.problem.topology.groups),
            "features": list(self.problem.encoder.names),
            "features_version": self.problem.encoder.features_version,
            "deadlines_s": self.problem.deadlines_s.tolist(),
            "decision": self.problem.options.model_dump(),
            "model": self.model.model_dump(),
            "provenance": self.provenance,
        }
        write_atomic(folder / "bundle.json", json.dumps(description, indent=1).encode())


def load_bundle(folder: Path, topology: Topology | None = None) -> Bundle:
    """Reads a bundle.

    Args:
        topology: servers to act on instead of those of the bundle: other addresses, another number of servers.

    Raises:
        BundleError: a file is missing or has another format, or the request types differ from the topology's.
    """
    path = folder / "bundle.json"
    try:
        data = json.loads(path.read_bytes())
        if data["format_version"] != FORMAT_VERSION:
            raise BundleError(f"bundle format {data['format_version']}", where=str(path), remedy="export it again")
        own = Topology(msgspec.convert(data["topology"], tuple[Group, ...]))
        options = DecisionOptions.model_validate(data["decision"])
        model = ModelOptions.model_validate(data["model"])
        deadlines_s = np.array(data["deadlines_s"], dtype=float)
        features_version = int(data.get("features_version", 1))
        provenance = dict(data["provenance"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, AttributeError, ValidationError) as error:
        raise BundleError(
            f"not a bundle: {error}", where=str(path), remedy="give the folder that train wrote"
        ) from error
    if deadlines_s.shape != (len(own.groups),) or not (np.isfinite(deadlines_s) & (deadlines_s > 0)).all():
        remedy = "give a positive number of seconds for each group"
        raise BundleError("deadlines_s are wrong", where=str(path), remedy=remedy)
    encoder = Encoder.load(folder / "encoder.npz")
    if encoder.features_version != features_version:
        what = f"bundle.json is for features of version {features_version}, encoder.npz of {encoder.features_version}"
        raise BundleError(what, where=str(path), remedy="export it again")
    target = topology or own
    if target.request_types != own.request_types or encoder.names != sample_names(target, encoder.kind):
        raise BundleError(
            f"trained for request types {', '.join(own.request_types)}",
            where=str(path),
            remedy="use it with groups of the same types in the same order",
        )
    problem = DecisionProblem(target, deadlines_s, encoder, options)
    return Bundle(_network(folder, problem, model), problem, model, provenance)


def _network(folder: Path, problem: DecisionProblem, model: ModelOptions) -> ArrayNet:
    """Raises BundleError when a parameter is missing, unknown or of another shape."""
    groups, action = problem.topology.shape[0], problem.options.action
    wanted = expected_shapes(problem.row_size, groups, model.hidden, action)
    try:
        arrays = load_file(folder / "policy.safetensors")
        found = {name: array.shape for name, array in arrays.items()}
        if found != wanted:
            odd = sorted(name for name in found.keys() | wanted if found.get(name) != wanted.get(name))[0]
            raise ValueError(f"'{odd}' has shape {found.get(odd)} instead of {wanted.get(odd)}")
    except (OSError, ValueError, SafetensorError) as error:
        raise BundleError(f"network does not load: {error}", where=str(folder), remedy="export it again") from error
    return ArrayNet(arrays, groups, model.squashed, action)


FILES = frozenset({"bundle.json", "encoder.npz", "policy.safetensors"})
SAMPLES, PREVIOUS = "samples.npz", "previous"
"""Added by a recalibration: the samples that the mixture was fitted to, and the bundle before it."""
MAX_BYTES = 256 * 2**20
_REMEDY = "give the folder that train wrote"


def check_bundle(folder: Path, root: Path | None = None) -> Path:
    """Checks a bundle folder without loading it and returns its real path.

    Args:
        root: folder that must contain it, after links are resolved; None allows any place.

    Raises:
        BundleError: the folder is outside `root`; a file is missing, unexpected or larger than 256 MiB; a link points
            outside the folder; an array needs pickle.
    """
    real = folder.resolve()
    if root is not None and not real.is_relative_to(root.resolve()):
        raise BundleError("outside the folder of bundles", where=str(folder), remedy=f"put it below {root}")
    try:
        entries = {entry.name: entry for entry in real.iterdir()}
    except OSError as error:
        raise BundleError(f"not a bundle: {error.strerror}", where=str(folder), remedy=_REMEDY) from error
    previous = entries.pop(PREVIOUS, None)
    if previous is not None and (previous.is_symlink() or not previous.is_dir()):
        raise BundleError(f"{PREVIOUS} is not a folder", where=str(folder), remedy=_REMEDY)
    if set(entries) - {SAMPLES} != FILES:
        odd = sorted((set(entries) - {SAMPLES}) ^ FILES)[0]
        what = "a file that does not belong there" if odd in entries else "a file is missing"
        raise BundleError(f"not a bundle: {what}: {odd}", where=str(folder), remedy=_REMEDY)
    for entry in entries.values():
        if not entry.resolve().is_relative_to(real) or not entry.is_file():
            raise BundleError(f"{entry.name} points outside the bundle", where=str(folder), remedy=_REMEDY)
        if entry.stat().st_size > MAX_BYTES:
            raise BundleError(f"{entry.name} is larger than {MAX_BYTES} bytes", where=str(folder), remedy=_REMEDY)
    for name in {"encoder.npz", SAMPLES} & set(entries):
        _check_archive(entries[name])
    _check_tensors(entries["policy.safetensors"])
    return real


_EXCHANGE, _HERE = 2, -100
"""RENAME_EXCHANGE and AT_FDCWD of renameat2(2)."""
_libc = ctypes.CDLL(None, use_errno=True)


def swap_in(folder: Path, fill: Callable[[Path], None]) -> None:
    """Replaces a bundle atomically by the one that `fill` writes into an empty folder; `previous/` keeps the old one.

    Raises:
        BundleError: `folder` is not a bundle, or `fill` did not write one; the old bundle is unchanged.
        OSError: the disk is full, or the folder is not writable; the old bundle is unchanged.
    """
    real = check_bundle(folder)
    with tempfile.TemporaryDirectory(prefix=f".{real.name}-", dir=real.parent) as place:
        fresh = Path(place) / "bundle"
        fresh.mkdir()
        fill(fresh)
        check_bundle(fresh)
        # Only one step back is kept: the old bundle is copied without its own previous/.
        shutil.copytree(real, fresh / PREVIOUS, ignore=lambda path, names: {PREVIOUS} & set(names))
        fresh.chmod(real.stat().st_mode)
        _exchange(fresh, real)


def roll_back(folder: Path) -> None:
    """Restores the bundle that `swap_in` replaced; the current one becomes the previous one.

    Raises:
        BundleError: there is no previous bundle.
    """
    kept = check_bundle(folder) / PREVIOUS
    if not kept.is_dir():
        raise BundleError("no earlier bundle is kept", where=str(kept), remedy="there is nothing to roll back to")
    check_bundle(kept)
    swap_in(folder, lambda fresh: _copy(kept, fresh))


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MAX_BYTES:
                raise BundleError("its unpacked contents are too large", where=str(path), remedy=_REMEDY)
            for member in members:
                # An array of objects is a pickle; its header shows this before anything is unpickled.
                if not member.filename.endswith(".npy") or b"'|O'" in archive.open(member).read(256):
                    raise BundleError(f"{member.filename} is not a plain array", where=str(path), remedy=_REMEDY)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"not an encoder: {error}", where=str(path), remedy=_REMEDY) from error


def _check_tensors(path: Path) -> None:
    """A safetensors file begins with the length of its JSON header; a pickle does not."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            described = json.loads(file.read(length)) if 0 < length < 2**20 else None
        except ValueError:
            described = None
    if not isinstance(described, dict):
        raise BundleError("not safetensors", where=str(path), remedy=_REMEDY)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def _exchange(one: Path, other: Path) -> None:
    if _libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(other))
