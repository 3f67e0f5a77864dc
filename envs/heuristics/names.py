"""Names of the policies on `expected_delay`, and former names, which stay aliases on the command line and in files."""

from __future__ import annotations

from actuators.contract.late_binding import HoldOrder

ESTIMATED = {
    "expected_delay": "levelled", "expected_delay_static": "type_means", "ratio": "ratio", "unlevelled": "idle",
}  # fmt: skip
"""Policy → the service-time estimator that it follows; the static one learns nothing about the servers, `unlevelled` is
`expected_delay` as it was before servers that differ by chance got equal service times."""

HELD: dict[str, HoldOrder] = {"late_binding": "shortest", "earliest_deadline": "earliest_deadline"}
"""Policy → the order in which `late_binding` sends what it holds."""

LEARNED_SLOTS = "_learned"
"""Behind a name of `HELD`: slots for the workers that it learns, none before it has."""

TODAY = "today"
"""What balanced while a calibrated system was recorded: its method and its weights."""

FORMER_NAMES = {"idle": "expected_delay", "type_means": "expected_delay_static", "levelled": "expected_delay"}
"""Former name → name."""

_SUFFIX = "@expected_delay"


def policy_name(name: str) -> str:
    """The present name of a policy: of ``idle`` and ``idle@expected_delay`` it is ``expected_delay``."""
    base = name.removesuffix(_SUFFIX)
    present = FORMER_NAMES.get(base, base)
    return present if present in ESTIMATED else name


def estimator_policy(estimator: str) -> str:
    """The policy that follows an estimator: ``expected_delay`` for ``levelled``, ``inverse_latency@expected_delay``."""
    return next((policy for policy, followed in ESTIMATED.items() if followed == estimator), estimator + _SUFFIX)
