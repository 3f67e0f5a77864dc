"""The body of `POST /v1/weights` → what was asked. Documents are read past what nobody needs: they can be megabytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from actuators.errors import StatusError
from actuators.vts import Document, Snapshot, not_vts, snapshot
from rayjobs.serve_models import MAX_MOMENTS, MemoryModel, WeightsRequest
from tuning.window_json import WindowModel

_NOTHING = msgspec.Raw(b"null")


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    documents: Annotated[list[Document], msgspec.Meta(min_length=2, max_length=MAX_MOMENTS)] | None = None
    windows: msgspec.Raw = _NOTHING
    memory: msgspec.Raw = _NOTHING


_DECODER = msgspec.json.Decoder(_Body)


@dataclass(frozen=True)
class Asked:
    """One request: either snapshots or windows, oldest first, and what is known from before."""

    snapshots: list[Snapshot] | None
    windows: list[WindowModel] | None
    memory: MemoryModel | None


def read_body(body: bytes) -> Asked:
    """Raises StatusError or pydantic's ValidationError naming the first thing that is not as it should be."""
    try:
        parts = _DECODER.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise not_vts(error) if "documents" in str(error) else StatusError(f"not a request: {error}"[:300]) from error
    if parts.documents is None or bytes(parts.windows) != b"null":
        # Small, and refused with pydantic's words.
        request = WeightsRequest.model_validate_json(body)
        return Asked(None, request.windows, request.memory)
    memory = None if bytes(parts.memory) == b"null" else MemoryModel.model_validate_json(bytes(parts.memory))
    return Asked([snapshot(document) for document in parts.documents], None, memory)
