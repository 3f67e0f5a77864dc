"""One Ray for all test modules that need an ordinary one; each of them is a driver of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rayjobs.runs.local_ray import LocalRay, joined, running_heads


@pytest.fixture(scope="session")
def ray_head() -> Iterator[LocalRay]:
    """Room for one testbed and for as many actors as one training run on four testbeds has."""
    head = LocalRay(testbeds=1, cpus=3)
    try:
        head.wait_ready(lambda: head.folder in running_heads())
        yield head
    finally:
        head.close()


@pytest.fixture(scope="module")
def ray(ray_head: LocalRay) -> Iterator[None]:
    """This process as a driver of that Ray; what a module started ends with it."""
    # Not at the top: the process that shares out the tests imports this module and needs no Ray.
    from ray.tune.registry import _global_registry

    with joined(ray_head.folder):
        # Ray registers environments under the id of a process's first job; this is a further job of the process.
        _global_registry._prefix = None  # noqa: SLF001
        yield
