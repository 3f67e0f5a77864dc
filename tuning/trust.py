"""What a bundle folder may hold, checked before anything in it is read: plain files, nothing that could run."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from actuators.errors import BundleError

FILES = frozenset({"bundle.json", "encoder.npz", "policy.safetensors"})
SAMPLES, PREVIOUS = "samples.npz", "previous"
"""What a recalibration adds: what the mixture was fitted to, and the bundle as it was before."""
MAX_BYTES = 256 * 2**20
_REMEDY = "give the folder that train wrote"


def check_bundle(folder: Path, root: Path | None = None) -> Path:
    """The folder's real path, after every check.

    Args:
        root: when given, the folder must lie inside it, links followed.

    Raises:
        BundleError: outside `root`, a file too many or too few or too large, a link that leads out of the
            folder, an array that only pickle could read.
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
        raise BundleError(f"{PREVIOUS} is no folder", where=str(folder), remedy=_REMEDY)
    if set(entries) - {SAMPLES} != FILES:
        odd = sorted((set(entries) - {SAMPLES}) ^ FILES)[0]
        what = "a file that does not belong there" if odd in entries else "a file is missing"
        raise BundleError(f"not a bundle: {what}: {odd}", where=str(folder), remedy=_REMEDY)
    for entry in entries.values():
        if not entry.resolve().is_relative_to(real) or not entry.is_file():
            raise BundleError(f"{entry.name} leads out of the bundle", where=str(folder), remedy=_REMEDY)
        if entry.stat().st_size > MAX_BYTES:
            raise BundleError(f"{entry.name} is larger than {MAX_BYTES} bytes", where=str(folder), remedy=_REMEDY)
    for name in {"encoder.npz", SAMPLES} & set(entries):
        _check_archive(entries[name])
    _check_tensors(entries["policy.safetensors"])
    return real


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MAX_BYTES:
                raise BundleError("unpacks to too much", where=str(path), remedy=_REMEDY)
            for member in members:
                # Arrays of objects are pickles; their header says so before any is read.
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
