"""Which groups would spoil the windows of all others, and which fault is the most common one. Not: what a fault is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from actuators.contract.topology import Topology
from actuators.contract.window import Fault, Window
from envs.calibration.verdict import GroupVerdict

MOST_FAULTY = 0.5
"""Share of the windows above which a group with faults of its own is left out."""


def faulty(windows: Sequence[Window], topology: Topology) -> tuple[GroupVerdict, ...]:
    """Verdicts on the groups with faults of their own in most of the windows, as one whose servers do not answer.

    A window with a fault is used for no group (`Window.usable`): with such a group hardly any is left for the others.
    """
    own: dict[str, list[list[Fault]]] = {group.name: [] for group in topology.groups}
    for faults in map(_counted, windows):
        for name in own.keys() & {fault.group for fault in faults}:
            own[name].append([fault for fault in faults if fault.group == name])
    found = []
    for name, each in own.items():
        fault = _most_common(each)
        if fault is not None and len(each) > MOST_FAULTY * len(windows):
            what = f"{fault.server}: {fault.detail}" if fault.server else fault.detail
            detail = f"left out, with faults in {len(each)} of {len(windows)} windows, as: {what}"
            found.append(GroupVerdict(group=name, judgement="little_traffic", detail=detail))
    return tuple(found)


def commonest_fault(windows: Sequence[Window]) -> str:
    """The fault of the most windows in words, with its group and server; empty when there is none."""
    fault = _most_common([_counted(window) for window in windows])
    return "" if fault is None else ": ".join(filter(None, (fault.group, fault.server, fault.detail)))


def _counted(window: Window) -> list[Fault]:
    """The faults for which the window is not usable."""
    return [fault for fault in window.faults if fault.kind != "reload"]


def _most_common(faults: Sequence[Sequence[Fault]]) -> Fault | None:
    """The first one of the kind that the most windows have, of the faults of each window."""
    kinds = Counter(kind for each in faults for kind in {fault.kind for fault in each})
    if not kinds:
        return None
    kind = kinds.most_common(1)[0][0]
    return next(fault for each in faults for fault in each if fault.kind == kind)
