"""A local Ray is private to its user, and only heads of this user are joined or removed."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from actuators.contract.topology import social_network
from actuators.errors import ConfigError
from actuators.files import is_own_folder, socket_place
from rayjobs.cli.main import main
from rayjobs.runs.local_ray import LocalRay, joined, running_heads, socket_folder, sweep_stale_folders
from tests.support.orphans import processes_with, wait_gone
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S, wait_until

NOBODY = 65534


def plant(folder: Path, owner: int) -> Path:
    """A folder as that of a head which runs now, with an address where nothing listens."""
    (folder / "ray").mkdir(parents=True)
    (folder / "owner").write_text(str(owner))
    (folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    folder.chmod(0o700)
    return folder


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary folders, which every user may write."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.usefixtures("root_only")
def test_what_others_left_in_the_shared_folder_is_neither_joined_nor_removed(shared: Path, tmp_path: Path) -> None:
    dead = 2**22 - 1
    ours = plant(shared / "deepsched-ray-ours", os.getpid())
    plant(tmp_path / "elsewhere", os.getpid())
    (shared / "deepsched-ray-link").symlink_to(tmp_path / "elsewhere")
    (shared / "deepsched-ray-stale-link").symlink_to(plant(tmp_path / "kept", dead))
    open_to_all = plant(shared / "deepsched-ray-open", os.getpid())
    open_to_all.chmod(0o777)
    for name, owner in (("running", os.getpid()), ("stale", dead)):
        os.chown(plant(shared / f"deepsched-ray-{name}", owner), NOBODY, NOBODY)
    (shared / "deepsched-ray-file").write_text("")
    fifo = plant(shared / "deepsched-ray-fifo", os.getpid()) / "ray" / "ray_current_cluster"
    fifo.unlink()
    os.mkfifo(fifo)  # its reader would wait for ever
    assert [head for head in running_heads() if tmp_path in head.parents] == [ours]
    plant(shared / "deepsched-ray-ended", dead)
    before = {path.name for path in shared.iterdir()}
    sweep_stale_folders()
    assert before - {path.name for path in shared.iterdir()} == {"deepsched-ray-ended"}
    assert (tmp_path / "kept" / "owner").exists()


@pytest.fixture
def alone(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same; nothing is made or removed anywhere else."""
    monkeypatch.setattr("rayjobs.runs.local_ray.socket_place", lambda below: shared)
    return shared


def test_another_namespace_of_process_ids_removes_no_folder_of_a_living_owner(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers may share a folder for temporary folders; each has process ids of its own."""
    with socket_folder(1) as folder:
        assert folder.parent == alone
        monkeypatch.setattr(psutil, "pid_exists", lambda pid: False)
        sweep_stale_folders()
        sweep_stale_folders()
        assert (folder / "owner").exists()
    assert not folder.exists()


KILLED = (
    "import signal, sys\nfrom rayjobs.runs.local_ray import socket_folder\n"
    "with socket_folder(1) as folder:\n    print(folder, flush=True)\n    signal.pause()\n"
)


def test_the_folder_of_a_killed_owner_is_removed_although_its_process_id_is_used_again(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container that is started again, the same ids come again."""
    with subprocess.Popen([sys.executable, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert folder.parent == alone
        sweep_stale_folders()
        assert folder.exists()
        owner.kill()
    assert folder.exists()
    monkeypatch.setattr(psutil, "pid_exists", lambda pid: True)
    sweep_stale_folders()
    assert not folder.exists()


def test_a_head_that_does_not_listen_is_not_joined(shared: Path) -> None:
    """Ray would wait for it for minutes, and then end the process."""
    head = plant(shared / "deepsched-ray-hung", os.getpid())
    before = dict(os.environ)
    with pytest.raises(ConnectionRefusedError), joined(head):
        pass
    (head / "ray" / "ray_current_cluster").write_text("soon")
    with pytest.raises(ConnectionError, match="no head at 'soon'"), joined(head):
        pass
    assert dict(os.environ) == before


def test_sockets_lie_where_their_paths_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / ("long" * 20)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    room = 107 - len(os.fsencode(place)) - 1
    assert socket_place(room) == place
    assert socket_place(room + 1) == Path("/tmp")


def listeners(marker: str) -> set[str]:
    """Names of the programs with that marker that listen, all of them on loopback only."""
    found: set[str] = set()
    for pid in processes_with(marker):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for socket in process.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN:
                    address = ipaddress.ip_address(socket.laddr.ip)
                    address = getattr(address, "ipv4_mapped", None) or address
                    assert address.is_loopback, (process.name(), socket.laddr)
                    found.add(process.name())
    return found


@pytest.mark.slow
@pytest.mark.ray
def test_a_head_is_private_in_a_folder_with_a_long_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself opens its folder to all users."""
    place = tmp_path / ("long" * 20)
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    before = os.umask(0)
    try:
        head = LocalRay(cpus=1)
        try:
            head.wait_ready(lambda: head.folder in running_heads())
            assert is_own_folder(head.folder)
            assert stat.S_IMODE(head.folder.stat().st_mode) == 0o700
            assert listeners(f"{head.folder}/") >= {"gcs_server", "raylet"}
            for path in (head.folder / "token", head.folder / "owner", head.folder / "head.log"):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        finally:
            head.close()
        assert not head.folder.exists()
    finally:
        os.umask(before)


OWNER = (
    "from pathlib import Path\nimport signal, sys\n"
    "from rayjobs.cli.interrupts import claim_signals, kept\nfrom rayjobs.runs.local_ray import local_ray\n"
    "claim_signals()\n"
    "with kept(lambda: 'go on with: this'), local_ray(cpus=1) as ray:\n"
    "    print(ray.folder, flush=True)\n    signal.pause()\n"
)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["gcs_server", "raylet"])
def test_a_killed_part_of_the_head_ends_its_owner_with_one_line(victim: str) -> None:
    """Ray's library would end it without a word of ours, and with pages of its log."""
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = owner.stdout.readline().strip()
        (pid,) = (pid for pid, line in processes_with(f"{folder}/").items() if f"/{victim} " in f"{line} ")
        os.kill(pid, signal.SIGKILL)
        _, said = owner.communicate(timeout=PATIENCE_S)
    assert owner.returncode == 1
    assert said.splitlines() == [
        f"deepsched: Ray's {victim} ended, by a signal or for lack of memory; all was stopped", "go on with: this",
    ]  # fmt: skip
    assert wait_gone(f"{folder}/") == {}
    wait_until(lambda: not Path(folder).exists())


@pytest.mark.parametrize(
    "words",
    ["evaluate --testbed live", "observe --testbed live", "train --testbed live", "demo --testbed simulated", "sweep"],
)
def test_a_verb_asks_for_room_for_the_servers_of_its_system(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    five = social_network(tuple(f"server-{n}:80" for n in range(5)))
    asked: list[int] = []

    def ray_session(*, servers: int, **more: object) -> NoReturn:
        asked.append(servers)
        raise ConfigError("no Ray here")

    monkeypatch.setattr("envs.scenarios.lookup.topology_of", lambda scenarios: five)
    monkeypatch.setattr("rayjobs.runs.local_ray.ray_session", ray_session)
    assert main([*words.split(), "--out", str(tmp_path)]) == 2
    assert asked == [5]
