"""Sets and reads the rule of admission of an NGINX, over HTTP (lua/admission.lua)."""

from __future__ import annotations

from typing import cast

import numpy as np

from actuators.contract.admission import NEVER, Admission, AdmissionNumbers, AdmissionRule
from actuators.contract.topology import Topology
from actuators.errors import ActuationError
from actuators.nginx.endpoint import RefusedError, TextEndpoint


class AdmissionEndpoint:
    """One admission endpoint over a kept connection; arguments and errors as of `TextEndpoint`."""

    def __init__(self, url: str, token: str, topology: Topology) -> None:
        self._endpoint = TextEndpoint(url, token, "admission_url")
        self.url, self.topology = url, topology

    def put(self, admission: Admission | None) -> None:
        """Returns when the rule is in force in all workers; None lets every request enter.

        Another rule than before begins with its first limits. Raises ActuationError; then the old rule is in force.
        """
        self.put_text(to_text(admission) if admission is not None else "")

    def put_text(self, text: str) -> None:
        """As `put`, for a rule that `text` has read; empty for none."""
        shown = self._endpoint.request("POST" if text else "DELETE", text)
        if shown != text:
            raise ActuationError("NGINX reports a rule of admission that differs from the one set", where=self.url)

    def require(self) -> None:
        """Raises ActuationError when the NGINX there has no admission control, or does not answer."""
        try:
            self._endpoint.request("GET")
        except RefusedError as error:
            remedy = "write its snippet with --set memory.admission=true"
            raise ActuationError("this NGINX has no admission control", where=self.url, remedy=remedy) from error

    def get(self) -> Admission | None:
        """The rule in force; None without one. Raises ActuationError."""
        return from_text(self.text(), self.topology)

    def text(self) -> str:
        """The rule in force as `to_text` writes it; empty without one. Raises ActuationError."""
        return self._endpoint.request("GET")

    def close(self) -> None:
        self._endpoint.close()


def to_text(admission: Admission) -> str:
    """The rule as lua/admission_plan.lua reads it; a text is complete, nothing of an earlier one remains."""
    numbers = [f"number {name} {value!r}" for name, value in admission.numbers.model_dump().items()]
    rows = zip(
        admission.topology.groups, admission.deadlines_s, admission.importance, admission.idle_s, admission.rates_rps,
        admission.factors, strict=True,
    )  # fmt: skip
    groups = [
        f"group {group.name} {float(deadline_s)!r} {_importance(float(importance))} {float(idle_s)!r}"
        f" {float(rate_rps)!r} {float(factor)!r}"
        for group, deadline_s, importance, idle_s, rate_rps, factor in rows
    ]
    head = [f"rule {admission.rule}", f"percent {admission.percent!r}", f"machines {admission.machines}"]
    return "\n".join([*head, *numbers, *groups]) + "\n"


def from_text(text: str, topology: Topology) -> Admission | None:
    """The rule of a text; None for an empty one. Raises ActuationError for a text of another kind or topology."""
    if not text.strip():
        return None
    single: dict[str, str] = {}
    numbers: dict[str, str] = {}
    rows: dict[str, list[str]] = {}
    for words in map(str.split, text.splitlines()):
        if words[0] == "number" and len(words) == 3:
            numbers[words[1]] = words[2]
        elif words[0] == "group" and len(words) == 7:
            rows[words[1]] = words[2:]
        elif len(words) == 2:
            single[words[0]] = words[1]
    try:
        deadlines_s, importance, idle_s, rates_rps, factors = np.array(
            [[NEVER if word == "never" else float(word) for word in rows[group.name]] for group in topology.groups]
        ).T
        return Admission(
            topology, cast(AdmissionRule, single["rule"]), deadlines_s, importance, idle_s, rates_rps,
            AdmissionNumbers.model_validate({name: float(text) for name, text in numbers.items()}),
            int(single["machines"]), float(single["percent"]), factors,
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        what = f"not a rule of admission of these groups: {error}"
        raise ActuationError(what, where="admission in memory", evidence=text[:80]) from error


def _importance(value: float) -> str:
    return "never" if value == NEVER else repr(value)
