"""Hosts in one box: network namespaces with addresses of their own on a bridge, and disks of their own.

Needs root and iproute2.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

NETWORK = "10.77.31"


class Hosts:
    """One namespace per name, joined by veth pairs to a bridge that only they use; removed at the end.

    Args:
        disk: folder that holds other files on each host; None when they share all of them.
    """

    def __init__(self, names: tuple[str, ...], disk: Path | None = None) -> None:
        # Several test sessions may run on one machine; names of interfaces have at most 15 letters.
        self._prefix = f"ds{os.getpid() % 100000}"
        self._bridge = f"{self._prefix}b"
        self.address = {name: f"{NETWORK}.{number + 1}" for number, name in enumerate(names)}
        self._disk = disk

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
        enter = ["ip", "netns", "exec", self.space(name)]
        if self._disk is None:
            return enter
        # `ip netns exec` gives each command its own mounts; they end with it.
        mount = f'mount --bind "{self.disk_of(name)}" "{self._disk}" && cd "{self._disk}" && exec "$@"'
        return [*enter, "sh", "-c", mount, "sh"]

    def disk_of(self, name: str) -> Path:
        """Where this machine sees what is in the folder `disk` on that host."""
        assert self._disk is not None
        return self._disk.with_name(f"{self._disk.name}-{name}")

    def cut(self, name: str) -> None:
        """Nothing reaches that host and nothing comes from it, until `mend`."""
        ip("link", "set", self._outside(name), "down")

    def mend(self, name: str) -> None:
        ip("link", "set", self._outside(name), "up")

    def _outside(self, name: str) -> str:
        return f"{self._prefix}v{list(self.address).index(name)}"

    def packets(self) -> dict[str, int]:
        """Host → packets that it has sent through its veth."""
        links = json.loads(ip("-s", "-j", "link", "show", "master", self._bridge))
        received = {link["ifname"]: int(link["stats64"]["rx"]["packets"]) for link in links}
        return {name: received[f"{self._prefix}v{number}"] for number, name in enumerate(self.address)}


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
