"""Advice from a Serve application over HTTP or by its deployment handle, within a deadline; else from the local bundle.

The advice names its source. Imports Ray only for a deployment handle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTimeError
from dataclasses import replace
from typing import Any

import numpy as np

from actuators.contract.control import Control, ServiceTimes, Weights
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import ConfigError, DataError
from actuators.http_client import KeptConnection, NoResponseError
from envs.observation.features import LatencyMemory
from tuning.policy.adviser import Advice, Advises, State
from tuning.steering import window_json

Post = Callable[[dict[str, Any]], dict[str, Any]]
"""Sends a request of `POST /v1/weights` and returns the answer; raises NoResponseError, OSError or ValueError."""


class ServeAdviser:
    """Asks Serve first, and the local bundle when Serve fails or is late.

    Args:
        post: sends the request: `http_post` or `handle_post`.
        local: the adviser of the local bundle.
        deadline_s: how long an answer may take; a tenth of the control interval.

    Attributes:
        fallbacks: how often the local bundle had to answer.
        problem: why, the last time.
    """

    def __init__(self, post: Post, local: Advises, topology: Topology, deadline_s: float) -> None:
        self._post, self._local, self._topology, self._deadline_s = post, local, topology, deadline_s
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="serve")
        self._pending: Future[dict[str, Any]] | None = None
        self.fallbacks, self.problem = 0, ""

    def advise(self, windows: Sequence[Window], memory: LatencyMemory | None = None) -> Advice:
        """Raises only what the local bundle raises."""
        try:
            answer = self._answer(
                {"windows": [window_json.to_json(window) for window in windows], "memory": _memory_json(memory)}
            )
            return _advice(answer, self._topology)
        except NotInTimeError:
            self.problem = f"no answer within {self._deadline_s * 1e3:.0f} ms"
        except (NoResponseError, OSError, ValueError, KeyError, TypeError, ConfigError, DataError) as error:
            self.problem = f"{type(error).__name__}: {error}"[:200]
        self.fallbacks += 1
        return replace(self._local.advise(windows, memory), by=f"local bundle (serve: {self.problem})")

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        if self._pending is not None and not self._pending.done():
            # One request at a time: a Serve that hangs must not make requests pile up in the executor.
            raise NotInTimeError
        self._pending = self._executor.submit(self._post, body)
        return self._pending.result(self._deadline_s)


def http_post(url: str, token: str, timeout_s: float) -> Post:
    """Asks over a kept HTTP connection. Raises ConfigError for a URL that is not an HTTP address."""
    connection = KeptConnection(
        f"{url.rstrip('/')}/v1/weights",
        connect_timeout_s=timeout_s,
        read_timeout_s=timeout_s,
        max_bytes=8 * 2**20,
        where="--serve-url",
    )
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}

    def post(body: dict[str, Any]) -> dict[str, Any]:
        status, answer = connection.request("POST", json.dumps(body, separators=(",", ":")).encode(), headers)
        if status != 200:
            raise ValueError(f"status {status}: {answer[:120].decode(errors='replace')}")
        value: dict[str, Any] = json.loads(answer)
        return value

    return post


def _memory_json(memory: LatencyMemory | None) -> dict[str, Any] | None:
    if memory is None:
        return None
    fast = [[value if np.isfinite(value) else None for value in row] for row in memory.fast_s.tolist()]
    learned = {name: table.tolist() for name, table in memory.learned.items()}
    return {"fast_s": fast, "slow_log": memory.slow_log.tolist(), "learned": learned}


def _advice(answer: dict[str, Any], topology: Topology) -> Advice:
    """The answer as advice; raises ValueError, KeyError or ConfigError for any other document."""
    state = answer["state"]
    memory = answer["memory"]
    fast = np.array([[np.nan if value is None else value for value in row] for row in memory["fast_s"]], dtype=float)
    slow = np.array(memory["slow_log"], dtype=float)
    if fast.shape != topology.shape or slow.shape != topology.shape:
        raise ValueError("the answer is about another topology")
    learned = {name: np.array(table, dtype=float) for name, table in memory["learned"].items()}
    return Advice(
        _control(answer, "policy", topology) if answer["policy"] is not None else None,
        _control(answer, "baseline", topology),
        State(np.array(state["cluster"]), np.array(state["posterior"]), np.array(state["novelty"])),
        LatencyMemory(fast, slow, learned),
        str(answer["problem"]),
        "serve",
    )


def _control(answer: dict[str, Any], name: str, topology: Topology) -> Control:
    times = answer["service_times"]
    if times is None:
        return Weights(topology, np.array(answer[name]))
    return ServiceTimes(topology, np.array(times[name], dtype=float), np.array(times["workers"], dtype=float))


def handle_post(application: str, timeout_s: float) -> Post:
    """`http_post` by deployment handle; the handle is looked up again after a failure, as Serve may have moved.

    Imports Ray.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    handle: Any = None

    def post(body: dict[str, Any]) -> dict[str, Any]:
        nonlocal handle
        try:
            handle = handle or serve.get_app_handle(application)
            response = handle.answer.remote(json.dumps(body, separators=(",", ":")).encode())
            answer: dict[str, Any] = json.loads(response.result(timeout_s=timeout_s))
        except (RayError, RayServeException) as error:
            handle = None
            raise ConnectionError(f"{type(error).__name__}: {str(error).splitlines()[0][:120]}") from error
        except BaseException:
            handle = None
            raise
        return answer

    return post
