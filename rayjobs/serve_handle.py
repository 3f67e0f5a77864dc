"""Asks a Serve application of the same cluster by its deployment handle; imports Ray."""

from __future__ import annotations

import json
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from rayjobs.advisers import Post


def handle_post(application: str, timeout_s: float) -> Post:
    """What `advisers.http_post` is for HTTP; the handle is looked up anew after a failure: Serve may have moved."""
    handle: Any = None

    def post(body: dict[str, Any]) -> dict[str, Any]:
        nonlocal handle
        try:
            handle = handle or serve.get_app_handle(application)
            asked = handle.answer.remote(json.dumps(body, separators=(",", ":")).encode())
            answer: dict[str, Any] = json.loads(asked.result(timeout_s=timeout_s))
        except (RayError, RayServeException) as error:
            handle = None
            raise ConnectionError(f"{type(error).__name__}: {str(error).splitlines()[0][:120]}") from error
        except BaseException:
            handle = None
            raise
        return answer

    return post
