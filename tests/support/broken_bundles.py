"""Bundles with one thing broken: every value of the description, every array, every file, in every way.

A case is a name and a function that spoils a good bundle in its folder.
"""

from __future__ import annotations

import copy
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tuning.policy.bundle import PREVIOUS, SAMPLES

Spoil = Callable[[Path], None]

DESCRIPTION, ENCODER, NETWORK = "bundle.json", "encoder.npz", "policy.safetensors"
MISSING = object()
"""In place of a value: the value is removed."""

NUMBERS = (-1, 0, 0.5, 2, 10**6, 10**9, 10**18, 10**400, 1e308, -1e308, 1e-320, float("nan"), float("inf"))
TEXTS = ("", "x", "0.05", "\x00", "\ud800", "é" * 2000, "nan")
OTHERS = (None, True, False, [], {}, [[]], [0.05, "x"], [None] * 3, {"a": 1}, {"": []})


def values() -> Iterator[Any]:
    """What may stand in place of a value of JSON."""
    yield MISSING
    yield from NUMBERS
    yield from TEXTS
    yield from OTHERS


def cases(good: Path) -> Iterator[tuple[str, Spoil]]:
    """Every case for a bundle like the good one, each with a name of its own."""
    yield from description_cases(json.loads((good / DESCRIPTION).read_bytes()))
    with np.load(good / ENCODER) as data:
        yield from npz_cases(dict(data))
    yield from array_cases(load_file(good / NETWORK), NETWORK)
    yield from file_cases()


def description_cases(description: dict[str, Any]) -> Iterator[tuple[str, Spoil]]:
    """Every value of the description, on every level, replaced by every odd value."""
    for path in paths(description):
        for number, value in enumerate(values()):
            yield f"{DESCRIPTION} {'.'.join(map(str, path))} #{number}", partial(_replace_value, path, value)
        yield f"{DESCRIPTION} {'.'.join(map(str, path))} wrapped", partial(_wrap_value, path)


def paths(node: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every value below a value of JSON; of a long list only to its first elements."""
    keys = list(node) if isinstance(node, dict) else list(range(min(len(node), 2))) if isinstance(node, list) else []
    for key in keys:
        yield (*above, key)
        yield from paths(node[key], (*above, key))


def array_cases(arrays: dict[str, NDArray[Any]], file: str) -> Iterator[tuple[str, Spoil]]:
    """Every array of a file of arrays, broken in every way that such a file can hold."""
    for name, array in arrays.items():
        for way, change in _ways(array).items():
            yield f"{file} {name} {way}", partial(_replace_array, file, name, change)
    yield f"{file} one more", partial(_replace_array, file, "unknown", lambda _: np.zeros(3))


def _ways(array: NDArray[Any]) -> dict[str, Callable[[NDArray[Any]], NDArray[Any] | None]]:
    ways: dict[str, Callable[[NDArray[Any]], NDArray[Any] | None]] = {
        "missing": lambda _: None,
        "integers": lambda a: np.zeros(a.shape, np.int64),
        "booleans": lambda a: np.ones(a.shape, np.bool_),
        "empty": lambda a: a.ravel()[:0],
        "one number": lambda a: np.asarray(a.ravel()[0]) if a.size else np.zeros(()),
        "nested": lambda a: a[None],
        "flat": lambda a: np.concatenate([a.ravel(), a.ravel()]),
        "shorter": lambda a: a.reshape(a.shape or (1,))[:-1],
        "large": lambda a: np.zeros((2000, 1000), a.dtype if a.dtype.kind == "f" else np.float64),
    }
    if array.dtype.kind in "fi":
        ways["half precision"] = lambda a: a.astype(np.float16)
        for text, value in {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "huge": 1e308, "negative": -1.0, "zero": 0.0,
                            "tiny": 1e-320}.items():  # fmt: skip
            ways[text] = partial(_filled, value=value)
            ways[f"one {text}"] = partial(_filled, value=value, first_only=True)
    return ways


NPZ_ONLY: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "texts": lambda a: a.astype(str),
    "bytes": lambda a: a.astype(str).astype(bytes) if a.dtype.kind != "U" else np.full(a.shape, b"x"),
    "complex": lambda a: np.zeros(a.shape, np.complex128),
    "dates": lambda a: np.zeros(a.shape, "datetime64[s]"),
    "records": lambda a: np.zeros(a.shape, [("a", float), ("b", "U4")]),
    "pickled": lambda a: np.full(a.shape, None, dtype=object),
    "one long text": lambda a: np.full(a.shape, "x" * 10_000) if a.size < 100 else np.full((1,), "x" * 10_000),
}
"""Types that safetensors cannot hold."""


def npz_cases(arrays: dict[str, NDArray[Any]]) -> Iterator[tuple[str, Spoil]]:
    """`array_cases` and the types that only numpy's files can hold."""
    yield from array_cases(arrays, ENCODER)
    for name in arrays:
        for way, change in NPZ_ONLY.items():
            yield f"{ENCODER} {name} {way}", partial(_replace_array, ENCODER, name, change)


def file_cases() -> Iterator[tuple[str, Spoil]]:
    """Whole files: missing, of another kind, linked, torn, or much smaller than what they unpack to."""
    for name in (DESCRIPTION, ENCODER, NETWORK):
        yield f"{name} missing", partial(_unlink, name)
        yield f"{name} a folder", partial(_make_folder, name)
        yield f"{name} a FIFO", partial(_make_fifo, name)
        yield f"{name} linked to outside", partial(_link, name, "/etc/hostname")
        yield f"{name} linked to a device", partial(_link, name, "/dev/zero")
        yield f"{name} linked to itself", partial(_link, name, name)
        yield f"{name} empty", partial(_write, name, b"")
        yield f"{name} random", partial(_write, name, bytes(range(256)) * 8)
        yield f"{name} half", partial(_cut, name)
    for name in (SAMPLES, PREVIOUS):
        yield f"{name} a FIFO", partial(_add, os.mkfifo, name)
        yield f"{name} linked to outside", partial(_add, partial(_link_to, "/etc"), name)
        yield f"{name} linked to itself", partial(_add, partial(_link_to, name), name)
    yield f"{SAMPLES} a folder", partial(_add, os.mkdir, SAMPLES)
    yield f"{SAMPLES} random", partial(_write, SAMPLES, bytes(range(256)) * 8)
    yield f"{PREVIOUS} a file", partial(_write, PREVIOUS, b"{}")
    for number, text in enumerate(ODD_DESCRIPTIONS):
        yield f"{DESCRIPTION} text #{number}", partial(_write, DESCRIPTION, text)
    yield f"{ENCODER} packed by bzip2", partial(_write_zeros, zipfile.ZIP_BZIP2, 2**20)
    yield f"{ENCODER} small, and large when unpacked", partial(_write_zeros, zipfile.ZIP_DEFLATED, 100 * 2**20)
    yield f"{ENCODER} declares more than it holds", _write_false_header
    yield f"{ENCODER} encrypted", _mark_encrypted
    for number, header in enumerate(ODD_HEADERS):
        yield f"{NETWORK} header #{number}", partial(_write_header, header)


ODD_DESCRIPTIONS = (
    b"null", b"[]", b'"x"', b"1", b"{}", b"\xff\xfe{}", b"[" * 200_000, b'{"a":' * 100_000, b"9" * 10_000,
    b'{"format_version": 1}', b'{"format_version": 1e400}',
)  # fmt: skip
ODD_HEADERS = (
    b"[]", b"null", b"{" * 100_000, b'{"log_std":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}',
    b'{"log_std":{"dtype":"F32","shape":[3],"data_offsets":[0,1e400]}}', b'{"log_std":{}}',
    b'{"log_std":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}',
)  # fmt: skip


def _replace_value(path: tuple[str | int, ...], value: Any, folder: Path) -> None:
    def change(node: Any, key: Any) -> None:
        if value is MISSING:
            del node[key]
        else:
            node[key] = copy.deepcopy(value)

    _change_description(path, change, folder)


def _wrap_value(path: tuple[str | int, ...], folder: Path) -> None:
    def change(node: Any, key: Any) -> None:
        node[key] = [node[key]]

    _change_description(path, change, folder)


def _change_description(path: tuple[str | int, ...], change: Callable[[Any, Any], None], folder: Path) -> None:
    description = json.loads((folder / DESCRIPTION).read_bytes())
    node = description
    for key in path[:-1]:
        node = node[key]
    change(node, path[-1])
    (folder / DESCRIPTION).write_text(json.dumps(description))


def _filled(array: NDArray[Any], value: float, first_only: bool = False) -> NDArray[Any]:
    kind = array.dtype if array.dtype.kind == "f" else np.float64
    with np.errstate(over="ignore", under="ignore"):
        if not first_only:
            return np.full(array.shape, value).astype(kind)
        changed = array.astype(kind)
        changed.reshape(-1)[:1] = value
        return changed


def _replace_array(file: str, name: str, change: Callable[[Any], NDArray[Any] | None], folder: Path) -> None:
    path = folder / file
    if file == ENCODER:
        with np.load(path) as data:
            arrays = dict(data)
    else:
        arrays = load_file(path)
    changed = change(arrays.get(name))
    arrays.pop(name, None)
    if changed is not None:
        arrays[name] = changed
    path.unlink()
    if file == ENCODER:
        np.savez_compressed(path, allow_pickle=True, **arrays)
    else:
        save_file(arrays, path)


def _unlink(name: str, folder: Path) -> None:
    (folder / name).unlink()


def _make_folder(name: str, folder: Path) -> None:
    _unlink(name, folder)
    (folder / name).mkdir()


def _make_fifo(name: str, folder: Path) -> None:
    _unlink(name, folder)
    os.mkfifo(folder / name)


def _link(name: str, target: str, folder: Path) -> None:
    _unlink(name, folder)
    (folder / name).symlink_to(target)


def _add(make: Callable[[Path], None], name: str, folder: Path) -> None:
    make(folder / name)


def _link_to(target: str, path: Path) -> None:
    path.symlink_to(target)


def _write(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)


def _cut(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def _write_zeros(method: int, size_bytes: int, folder: Path) -> None:
    """`means` of so many bytes, all 0; the other arrays are left as they are."""
    with zipfile.ZipFile(folder / ENCODER) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if name != "means.npy"}
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (2, size_bytes // 16)})
    with zipfile.ZipFile(folder / ENCODER, "w", method, compresslevel=1) as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
        with archive.open("means.npy", "w", force_zip64=True) as member:
            member.write(head.getvalue())
            for _ in range(size_bytes // 2**20):
                member.write(bytes(2**20))


def _write_false_header(folder: Path) -> None:
    """The header of an array says that it has a trillion numbers; the file holds a few."""
    with zipfile.ZipFile(folder / ENCODER) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    kept["means.npy"] = head.getvalue() + bytes(64)
    with zipfile.ZipFile(folder / ENCODER, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)


def _mark_encrypted(folder: Path) -> None:
    """Sets the flag of encryption in every header of the archive."""
    content = bytearray((folder / ENCODER).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + offset] |= 1
            start = content.find(signature, start + 4)
    (folder / ENCODER).write_bytes(content)


def _write_header(header: bytes, folder: Path) -> None:
    (folder / NETWORK).write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
