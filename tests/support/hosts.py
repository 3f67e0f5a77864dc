"""Hosts in one box: network namespaces with addresses of their own on a bridge. Needs root and iproute2."""

from __future__ import annotations

import json
import os
import subprocess
from types import TracebackType
from typing import Self

NETWORK = "10.77.31"


class Hosts:
    """One namespace per name, joined by veth pairs to a bridge that only they use; removed at the end."""

    def __init__(self, names: tuple[str, ...]) -> None:
        # Several test sessions may run on one machine; names of interfaces have at most 15 letters.
        self._prefix = f"ds{os.getpid() % 100000}"
        self._bridge = f"{self._prefix}b"
        self.address = {name: f"{NETWORK}.{number + 1}" for number, name in enumerate(names)}

    def __enter__(self) -> Self:
        ip("link", "add", self._bridge, "type", "bridge")
        ip("link", "set", self._bridge, "up")
        for number, (name, address) in enumerate(self.address.items()):
            space, outside, inside = self.space(name), f"{self._prefix}v{number}", f"{self._prefix}i{number}"
            ip("netns", "add", space)
            ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", space)
            ip("link", "set", outside, "master", self._bridge, "up")
            for command in (
                ("addr", "add", f"{address}/24", "dev", inside),
                ("link", "set", inside, "up"),
                ("link", "set", "lo", "up"),
            ):
                ip("-n", space, *command)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self.address:
            subprocess.run(["ip", "netns", "del", self.space(name)], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._bridge], check=False, capture_output=True)

    def space(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def inside(self, name: str) -> list[str]:
        """What to put before a command to run it on that host."""
        return ["ip", "netns", "exec", self.space(name)]

    def packets(self) -> dict[str, int]:
        """Host → packets that it has sent through its veth."""
        links = json.loads(ip("-s", "-j", "link", "show", "master", self._bridge))
        received = {link["ifname"]: int(link["stats64"]["rx"]["packets"]) for link in links}
        return {name: received[f"{self._prefix}v{number}"] for number, name in enumerate(self.address)}


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
