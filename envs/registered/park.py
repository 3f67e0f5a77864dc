"""Park's `load_balance` as a gymnasium environment: a step sends one job to one of ten servers (`envs.study.park`)."""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.environment.picture import BAR_CHARACTERS, Panel, RenderMode, check_render_mode, drawn
from envs.study.park import JOBS, PARETO_SCALE, RATES, SERVERS, Jobs

MOST = 20.0
"""Bound of the observation, far above what queues reach."""


class ParkEnv(gym.Env[NDArray[np.float32], np.int64]):
    """An episode has 1000 jobs; its return is minus the mean job time.

    Observation ``[21]``, 0 to 20: log(1 + jobs) of each server, log(1 + unfinished work / 100) of each server, and
    log(size / 100) of the job that waits for a server. Action: the server. Reward: minus the job's time in the system
    over 1000, which is known at once, because servers work in order. `info["job_time"]` has it.

    Args:
        seed: of the episodes until `reset` is given one; random when None.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 30}

    def __init__(self, *, seed: int | None = None, render_mode: RenderMode | None = None) -> None:
        self.render_mode = check_render_mode(render_mode)
        self.observation_space = gym.spaces.Box(0.0, MOST, (2 * SERVERS + 1,), np.float32)
        self.action_space = gym.spaces.Discrete(SERVERS)
        if seed is not None:
            self.np_random = np.random.default_rng(seed)
        self._jobs: Jobs | None = None
        self._next = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draws new jobs; `options={"episode_seed": n}` takes those of `Jobs.draw(n)`."""
        super().reset(seed=seed)
        drawn_seed = int(self.np_random.integers(2**31))
        episode_seed = int((options or {}).get("episode_seed", drawn_seed))
        self._jobs, self._next = Jobs.draw(episode_seed), 0
        self._queues: list[deque[tuple[float, float]]] = [deque() for _ in range(SERVERS)]
        self._sent, self._times = np.zeros(SERVERS, dtype=np.int64), np.zeros(SERVERS)
        return self._see(), {"episode_seed": episode_seed}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Sends the job to the server; the last job of an episode terminates it."""
        if self._jobs is None or self._next == JOBS:
            raise gym.error.ResetNeeded("call reset before step")
        server = int(action)
        now, size = self._jobs.arrivals[self._next], self._jobs.sizes[self._next]
        queue = self._queues[server]
        done = max(now, queue[-1][0] if queue else now) + float(np.floor(size / RATES[server]))
        queue.append((done, float(size)))
        self._sent[server] += 1
        self._times[server] += done - now
        self._next += 1
        return self._see(), -(done - now) / JOBS, self._next == JOBS, False, {"job_time": float(done - now)}

    def render(self) -> str | NDArray[np.uint8] | None:
        """Jobs per server so far, jobs there now and their mean time; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._jobs is None:
            raise gym.error.ResetNeeded("call reset before render")
        shares, waiting = self._sent / max(self._sent.sum(), 1), np.array([len(queue) for queue in self._queues])
        mean = self._times / np.maximum(self._sent, 1)
        names = [f"server {server + 1}" for server in range(SERVERS)]
        if self.render_mode == "ansi":
            rows = zip(names, shares, waiting, mean, strict=True)
            return "\n".join(
                f"{name:<9} {'#' * round(BAR_CHARACTERS * share):<{BAR_CHARACTERS}} {share:4.0%}"
                f"  jobs {count:3d}  mean time {each:8.0f}"
                for name, share, count, each in rows
            )
        panels = (
            Panel("share of the jobs", shares, [f"{share:.0%}" for share in shares]),
            Panel("jobs there", waiting / max(waiting.max(), 1), [str(count) for count in waiting]),
            Panel("mean job time", mean / max(mean.max(), 1.0), [f"{each:.0f}" for each in mean]),
        )
        return drawn(names, [0] * SERVERS, panels)

    def unfinished(self) -> NDArray[np.float64]:
        """``[servers]``: work that is left, in size units, when the waiting job arrives."""
        assert self._jobs is not None
        now = self._jobs.arrivals[min(self._next, JOBS - 1)]
        return np.array([_left(queue, now, rate) for queue, rate in zip(self._queues, RATES, strict=True)])

    def _see(self) -> NDArray[np.float32]:
        assert self._jobs is not None
        job = min(self._next, JOBS - 1)
        for queue in self._queues:
            while queue and queue[0][0] <= self._jobs.arrivals[job]:
                queue.popleft()
        seen = np.zeros(2 * SERVERS + 1)
        seen[:SERVERS] = np.log1p([len(queue) for queue in self._queues])
        seen[SERVERS:-1] = np.log1p(self.unfinished() / PARETO_SCALE)
        seen[-1] = np.log(self._jobs.sizes[job] / PARETO_SCALE)
        return np.clip(seen, 0.0, MOST).astype(np.float32)


def _left(queue: deque[tuple[float, float]], now: float, rate: float) -> float:
    """Of the job that is served and of those behind it."""
    if not queue:
        return 0.0
    return (queue[0][0] - now) * rate + sum(size for _, size in queue) - queue[0][1]
