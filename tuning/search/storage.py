"""Where the parts of a sweep are in a storage, as Tune takes it. Nothing is read or written here."""

from __future__ import annotations

from pathlib import Path


def below(storage: str, name: str) -> str:
    """The place of this name in a storage.

    Args:
        storage: a folder, or a URL for pyarrow (file://, s3://…), with or without a query.

    Returns:
        An absolute path, which pyarrow asks for, or the URL with the name at the end of its path, before the query.
    """
    if "://" not in storage:
        return str(Path(storage).absolute() / name)
    place, mark, query = storage.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{query}"
