"""Does one thing for each of many environments, in several threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def side_by_side(play: Callable[[int], None], count: int, threads: int) -> None:
    """Calls `play` with 0 … `count` - 1, each once, in the calling thread and `threads` - 1 others.

    It pays where `play` runs without the interpreter's lock, as the compiled simulator does. What it raises
    is raised here.
    """
    waiting = iter(range(count))

    def work() -> None:
        # Whoever is free takes the next: some environments have much more traffic than others.
        for index in waiting:
            play(index)

    helpers = [_pool().submit(work) for _ in range(min(threads, count) - 1)]
    work()
    for helper in helpers:
        helper.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "side-by-side")
