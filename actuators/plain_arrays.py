"""Archives of arrays (.npz) from strangers: sizes and types are checked before memory is taken for them."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actuators.files import read_regular

_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What numpy writes; deflate unpacks to at most 1032 times its size, others to a million times."""
_ENCRYPTED = 1


def load_arrays(path: Path, max_bytes: int) -> dict[str, NDArray[Any]]:
    """The arrays of numbers, booleans and texts in an archive, by name. Nothing is unpickled.

    Args:
        max_bytes: of the file, and of all that it unpacks to.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger.
        ValueError: it is not an archive of plain arrays, unpacks to more, or says that it is larger than it is.
    """
    content = io.BytesIO(read_regular(path, max_bytes))
    try:
        with zipfile.ZipFile(content) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > max_bytes:
                raise ValueError(f"it unpacks to more than {max_bytes} bytes")
            return {_name_of(member): _read_array(archive, member) for member in members}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error


def parse_array(content: bytes) -> NDArray[Any]:
    """The array in the content of a .npy file. Raises ValueError, as `load_arrays`."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"arrays of format {version}")
    if dtype.kind not in "biufU":
        raise ValueError(f"{dtype.name} is not a type of plain numbers or texts")
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"shape {shape} does not fit {len(content) - file.tell()} bytes")
    file.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _name_of(member: zipfile.ZipInfo) -> str:
    if member.compress_type not in _PACKINGS or member.flag_bits & _ENCRYPTED:
        raise ValueError(f"{member.filename} is packed in another way than numpy packs")
    if not member.filename.endswith(".npy"):
        raise ValueError(f"{member.filename} is not an array")
    return member.filename.removesuffix(".npy")


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    try:
        return parse_array(archive.read(member))
    except ValueError as error:
        raise ValueError(f"{member.filename}: {error}") from error
