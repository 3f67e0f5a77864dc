"""Testbeds that wait for each other. Ray's workers import this module, so it imports nothing heavy."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from actuators.contract.topology import social_network
from actuators.contract.window import Fault, Window
from rayjobs.bench.parts.waiting_testbed import WaitingTestbed
from tests.support.waiting import wait_until


class Meeting(WaitingTestbed):
    """Its n-th interval ends when all testbeds of the folder are in theirs: one after the other they never end."""

    def __init__(self, folder: Path, count: int, build: int = 0) -> None:
        super().__init__(social_network())
        self.folder, self.count, self.number = folder, count, 0

    def advance(self, interval_s: float) -> Window:
        self.number += 1
        (self.folder / f"{self.number}-{os.getpid()}").touch()
        wait_until(lambda: len(list(self.folder.glob(f"{self.number}-*"))) >= self.count, "the others never came")
        return super().advance(interval_s)


class Uneven(WaitingTestbed):
    """Some of its intervals, by number, take several seconds longer, and some have no usable window."""

    def __init__(self, slow: tuple[int, ...], lost: tuple[int, ...], pause_s: float, build: int = 0) -> None:
        super().__init__(social_network())
        self.slow, self.lost, self.pause_s, self.number = slow, lost, pause_s, 0

    def advance(self, interval_s: float) -> Window:
        self.number += 1
        if self.number in self.slow:
            time.sleep(self.pause_s)  # what is tested is that it lasts so long
        window = super().advance(interval_s)
        faults = (Fault("gap", "no statistics"),) if self.number in self.lost else ()
        return replace(window, faults=faults)
