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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from actuators.contract.request_cost import RequestCost
from actuators.contract.topology import Group, Topology
from actuators.errors import BundleError, ConfigError
from actuators.files import read_regular, write_atomic
from actuators.options import first_problem
from actuators.plain_arrays import load_arrays
from envs.admission.tuned import TunedNumbers
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.observation.encoder import MAX_BYTES as ENCODER_MAX_BYTES
from envs.observation.encoder import Encoder
from envs.observation.observer import sample_names
from tuning.options import ModelOptions
from tuning.policy.learned import LearnedPolicy
from tuning.policy.network import ArrayNet, Network, expected_shapes

FORMAT_VERSION = 1
MAX_DESCRIPTION_BYTES = 2**24
MOST_GROUPS = 1024
MOST_PARAMETER = 1e6
"""Largest absolute value of a parameter: beyond it the sums of a layer could overflow."""
_REMEDY = "give the folder that train wrote"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained policy with everything it needs to act.

    Attributes:
        net: the network; of plain arrays when the bundle was loaded (`tuning.policy.model.learning_net` learns on).
        problem: topology, deadlines, encoder, observation, action codec.
        model: options that the network was built with.
        provenance: seed, command, config, versions, training curve, evaluation; plain JSON.
        admission: numbers of an admission rule for the same system; None when none were searched.
        request_cost: what requests of the same system cost; None when that was not learned.
    """

    net: Network
    problem: DecisionProblem
    model: ModelOptions
    provenance: dict[str, Any]
    admission: TunedNumbers | None = None
    request_cost: RequestCost | None = None

    def policy(self) -> LearnedPolicy:
        return LearnedPolicy(self.net, self.problem)

    def on(self, topology: Topology, where: str = "bundle.json") -> Bundle:
        """The same policy for other addresses or another number of servers; the network is shared.

        Raises BundleError when the request types differ.
        """
        own, encoder = self.problem.topology, self.problem.encoder
        if topology.request_types != own.request_types or encoder.names != sample_names(topology, encoder.kind):
            raise BundleError(
                f"trained for request types {', '.join(own.request_types)[:200]}",
                where=where,
                remedy="use it with groups of the same types in the same order",
            )
        return replace(self, problem=replace(self.problem, topology=topology, workers=None))

    def save(self, folder: Path) -> None:
        """Writes the three files, `bundle.json` last: a folder without it is not a bundle."""
        folder.mkdir(parents=True, exist_ok=True)
        self.problem.encoder.save(folder / "encoder.npz")
        write_atomic(folder / "policy.safetensors", save(self.net.arrays()))
        description: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "topology": msgspec.to_builtins(self.problem.topology.groups),
            "features": list(self.problem.encoder.names),
            "features_version": self.problem.encoder.features_version,
            "deadlines_s": self.problem.deadlines_s.tolist(),
            "decision": self.problem.options.model_dump(),
            "model": self.model.model_dump(),
            "provenance": self.provenance,
        }
        if self.admission is not None:
            description["admission"] = self.admission.model_dump(mode="json")
        if self.request_cost is not None:
            description["request_cost"] = self.request_cost.model_dump(mode="json")
        write_atomic(folder / "bundle.json", json.dumps(description, indent=1).encode())


def put_admission(folder: Path, numbers: TunedNumbers) -> None:
    """Adds the numbers to a bundle, in one step.

    Raises:
        BundleError: not a bundle.
        OSError: the disk is full, or the folder is not writable; the bundle is unchanged.
    """
    _put(folder, "admission", numbers.model_dump(mode="json"))


def put_request_cost(folder: Path, costs: RequestCost) -> None:
    """Adds what requests cost to a bundle, in one step; errors as of `put_admission`."""
    _put(folder, "request_cost", costs.model_dump(mode="json"))


def _put(folder: Path, name: str, value: dict[str, Any]) -> None:
    path = folder / "bundle.json"
    load_bundle(folder)
    description = json.loads(read_regular(path, MAX_DESCRIPTION_BYTES))
    description[name] = value
    write_atomic(path, json.dumps(description, indent=1).encode())


def load_bundle(folder: Path, topology: Topology | None = None) -> Bundle:
    """Reads a bundle.

    Args:
        topology: servers to act on instead of those of the bundle: other addresses, another number of servers.

    Raises:
        BundleError: a file is missing or has another format, or the request types differ from the topology's.
    """
    path = folder / "bundle.json"
    try:
        description = _description(path)
        own = Topology(description.topology)
        options = DecisionOptions.model_validate(description.decision)
        model = ModelOptions.model_validate(description.model)
        tuned = None if description.admission is None else TunedNumbers.model_validate(description.admission)
        costs = None if description.request_cost is None else RequestCost.model_validate(description.request_cost)
    except ValidationError as error:
        raise _not_a_bundle(path, first_problem(error)) from error
    except (OSError, ValueError, TypeError, OverflowError, RecursionError, ConfigError) as error:
        raise _not_a_bundle(path, getattr(error, "strerror", None) or error) from error
    if len(description.deadlines_s) != len(own.groups):
        raise _not_a_bundle(path, f"{len(description.deadlines_s)} deadlines_s for {len(own.groups)} groups")
    encoder = Encoder.load(folder / "encoder.npz")
    if encoder.features_version != description.features_version:
        versions = f"features of version {description.features_version}, encoder.npz of {encoder.features_version}"
        raise BundleError(f"bundle.json is for {versions}", where=str(path), remedy="export it again")
    problem = DecisionProblem(own, np.array(description.deadlines_s, dtype=float), encoder, options)
    try:
        problem.action_codec.check()
    except ConfigError as error:
        raise BundleError(error.what, where=str(path), remedy=error.remedy) from error
    bundle = Bundle(_network(folder, problem, model), problem, model, description.provenance, tuned, costs)
    return bundle.on(topology or own, str(path))


class _Description(msgspec.Struct):
    """What bundle.json holds."""

    format_version: int
    topology: Annotated[tuple[Group, ...], msgspec.Meta(min_length=1, max_length=MOST_GROUPS)]
    deadlines_s: tuple[Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)], ...]
    decision: dict[str, Any]
    model: dict[str, Any]
    provenance: dict[str, Any]
    features_version: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    admission: dict[str, Any] | None = None
    request_cost: dict[str, Any] | None = None


def _description(path: Path) -> _Description:
    """Raises OSError, ValueError, RecursionError, or BundleError for a format that this release does not know."""
    data = json.loads(read_regular(path, MAX_DESCRIPTION_BYTES))
    if isinstance(data, dict) and data.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        what = f"bundle format {str(data['format_version'])[:40]}"
        raise BundleError(what, where=str(path), remedy="export it again")
    return msgspec.convert(data, _Description)


def _not_a_bundle(path: Path, why: object) -> BundleError:
    return BundleError(f"not a bundle: {str(why)[:300]}", where=str(path), remedy=_REMEDY)


def _network(folder: Path, problem: DecisionProblem, model: ModelOptions) -> ArrayNet:
    """Raises BundleError when a parameter is missing, unknown, of another type or shape, or too large."""
    groups, action = problem.topology.shape[0], problem.options.action
    wanted = expected_shapes(problem.row_size, groups, model.hidden, action)
    path = folder / "policy.safetensors"
    try:
        _check_tensors(path)
        arrays = load_file(path)
        if why := _misfit(arrays, wanted):
            raise ValueError(why)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, SafetensorError) as error:
        why = str(getattr(error, "strerror", None) or error)[:300]
        raise BundleError(f"network does not load: {why}", where=str(path), remedy="export it again") from error
    return ArrayNet(arrays, groups, model.squashed, action)


def _misfit(arrays: Mapping[str, NDArray[Any]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """The first parameter that is not as the network needs it; empty when all are."""
    for name in sorted(arrays.keys() | wanted):
        array = arrays.get(name)
        shape = None if array is None else array.shape
        if array is None or shape != wanted.get(name):
            return f"'{name[:80]}' has shape {shape} instead of {wanted.get(name)}"
        if array.dtype != np.float32:
            return f"'{name}' holds {array.dtype.name} instead of float32"
        if not (np.abs(array) <= MOST_PARAMETER).all():
            return f"'{name}' is not within ±{MOST_PARAMETER:g}"
    return ""


FILES = frozenset({"bundle.json", "encoder.npz", "policy.safetensors"})
SAMPLES, PREVIOUS = "samples.npz", "previous"
"""Added by a recalibration: the samples that the mixture was fitted to, and the bundle before it."""
MAX_BYTES = 256 * 2**20
"""Of each file; the arrays of an archive may also unpack to no more."""


def check_bundle(folder: Path, root: Path | None = None) -> Path:
    """Checks a bundle folder without loading it and returns its real path.

    Args:
        root: folder that must contain it, after links are resolved; None allows any place.

    Raises:
        BundleError: the folder is outside `root`; a file is missing, unexpected or larger than 256 MiB; a link points
            outside the folder; an array needs pickle.
    """
    real = _resolved(folder)
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
        if not _resolved(entry).is_relative_to(real) or not entry.is_file():
            raise BundleError(f"{entry.name} points outside the bundle", where=str(folder), remedy=_REMEDY)
        if entry.stat().st_size > MAX_BYTES:
            raise BundleError(f"{entry.name} is larger than {MAX_BYTES} bytes", where=str(folder), remedy=_REMEDY)
    for name, most in (("encoder.npz", ENCODER_MAX_BYTES), (SAMPLES, MAX_BYTES)):
        if name in entries:
            _check_archive(entries[name], most)
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


def _resolved(path: Path) -> Path:
    """Raises BundleError for a link that leads to itself, and for what no path can be."""
    try:
        return path.resolve()
    except RuntimeError as error:
        raise BundleError("a link that leads to itself", where=str(path), remedy=_REMEDY) from error
    except ValueError as error:
        raise BundleError(f"not a path: {error}", where=repr(str(path)), remedy=_REMEDY) from error


def _check_archive(path: Path, max_bytes: int) -> None:
    """Raises BundleError when the file is not an archive of plain arrays."""
    try:
        load_arrays(path, max_bytes)
    except (OSError, ValueError) as error:
        raise BundleError(f"not plain arrays: {error}", where=str(path), remedy=_REMEDY) from error


def _check_tensors(path: Path) -> None:
    """A safetensors file begins with the length of its JSON header; a pickle does not. Raises BundleError."""
    try:
        content = read_regular(path, MAX_BYTES)
        length = int.from_bytes(content[:8], "little")
        described = json.loads(content[8 : 8 + length]) if 0 < length < 2**20 else None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"not safetensors: {error}", where=str(path), remedy=_REMEDY) from error
    if not isinstance(described, dict):
        raise BundleError("not safetensors", where=str(path), remedy=_REMEDY)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def _exchange(one: Path, other: Path) -> None:
    if _libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(other))
