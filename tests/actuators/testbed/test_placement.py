"""Names of actors: free ones are taken, whoever looks for one at the same time."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorAlreadyExistsError

from actuators.errors import ConflictError
from actuators.testbed.placement import MOST_NAMES, create_named


def test_names_that_others_took_since_they_were_seen_free_are_passed_over() -> None:
    since = {"single run", "single run.3"}

    def create(name: str) -> str:
        if name in since:
            raise ActorAlreadyExistsError(f"The name {name} is already taken")
        return f"actor of {name}"

    assert create_named("single run", create, {"single run.2"}) == ("single run.4", "actor of single run.4")
    assert create_named("other run", create, set()) == ("other run", "actor of other run")


def test_another_error_of_the_creation_is_not_taken_for_a_lost_name() -> None:
    def create(name: str) -> str:
        raise ValueError("no such option")

    with pytest.raises(ValueError, match="no such option"):
        create_named("single run", create, set())


def test_the_search_for_a_name_ends() -> None:
    taken = {"run", *(f"run.{number}" for number in range(2, MOST_NAMES + 1))}
    with pytest.raises(ConflictError, match="end other runs"):
        create_named("run", str.upper, taken)
