"""Weights of an NGINX that is not ours, by reload: in force or rolled back, whatever happens on the way."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from actuators.contract.control import ServiceTimes, Weights
from actuators.errors import ActuationError, ConfigError
from actuators.external import config_control
from actuators.external.nginx import ExternalNginx, ExternalNginxOptions
from actuators.http_client import http_session
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from tests.support.disasters import full, small_disk
from tests.support.http_server import ScriptedServer
from tests.support.nginx_site import answer
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.nginx
FILE_CLOCK_S = 0.02
"""The kernel takes a file's time from the last tick of its clock."""

MAIN = """# my nginx
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
worker_processes 2; worker_shutdown_timeout 5s;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  include sites/*;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://app; }} }}
}}
"""
SITE = "# keep me\nupstream app {{  server {0};   server {1} weight=2 ; server {2} down;\n  include more.inc; }}\n"


@dataclass
class External:
    """A running NGINX of somebody else."""

    folder: Path
    address: str
    options: ExternalNginxOptions

    @property
    def site(self) -> Path:
        return self.folder / "sites" / "app"

    def who(self, count: int) -> Counter[str]:
        seen: Counter[str] = Counter()
        for _ in range(count):
            with http_session(10.0) as session:
                seen[session.get(f"http://{self.address}/").text] += 1
        return seen

    def passes(self) -> bool:
        command = ["/usr/sbin/nginx", "-t", "-q", "-e", "stderr", "-c", str(self.folder / "nginx.conf")]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def external(short_dir: Path) -> Iterator[External]:
    servers = [ScriptedServer(lambda _, i=i: answer(200, str(i))) for i in range(4)]
    for server in servers:
        server.__enter__()
    port = free_port("127.0.0.1")
    (short_dir / "sites").mkdir()
    (short_dir / "nginx.conf").write_text(MAIN.format(folder=short_dir, port=port))
    (short_dir / "sites" / "app").write_text(SITE.format(*(server.address for server in servers)))
    (short_dir / "more.inc").write_text(f"server {servers[3].address} backup;\n")
    command = ["/usr/sbin/nginx", "-e", str(short_dir / "error.log"), "-c", str(short_dir / "nginx.conf")]
    options = ExternalNginxOptions(config=short_dir / "nginx.conf", min_reload_interval_s=0)
    with ManagedProcess(command, name="nginx", log_path=short_dir / "error.log") as process:
        process.wait_ready(lambda: (short_dir / "nginx.pid").exists() and (short_dir / "nginx.pid").read_text() != "")
        yield External(short_dir, f"127.0.0.1:{port}", options)
    for server in servers:
        server.__exit__(None, None, None)


def weights(nginx: ExternalNginx, *values: int, down: int = -1) -> Weights:
    flags = np.array([[index == down for index in range(4)]])
    return Weights(nginx.topology, np.array([values]), flags)


def test_weights_are_set_in_place_and_in_force(external: External) -> None:
    nginx = ExternalNginx(external.options)
    assert nginx.topology.groups[0].name == "app"
    assert nginx.control() == weights(nginx, 1, 2, 1, 1, down=2)
    original = external.site.read_text()
    applied = nginx.apply(weights(nginx, 5, 3, 2, 1))
    assert applied.changed
    assert sum((external.who(10) for _ in range(4)), Counter()) == {"0": 20, "1": 12, "2": 8}
    text = external.site.read_text()
    assert text == original.replace(";   server", " weight=5;   server").replace("weight=2 ", "weight=3 ").replace(
        " down;", " weight=2;"
    )
    assert not nginx.apply(weights(nginx, 5, 3, 2, 1)).changed
    assert (external.folder / "sites" / ".app.deepsched-original").read_text() == original
    left = [path.name for path in external.folder.rglob(".*") if "original" not in path.name]
    assert left == [".nginx.conf.deepsched-lock"]
    with pytest.raises(ActuationError, match="takes weights"):
        nginx.apply(ServiceTimes(nginx.topology, np.ones((1, 4)), np.ones(4)))


def test_mode_acl_and_attributes_of_a_changed_file_are_kept(external: External) -> None:
    """An ACL that lets the user 65534 read, besides the owner and the group."""
    entries = [(1, 6, -1), (2, 4, 65534), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(external.site, "user.origin", b"ansible")
    os.setxattr(external.site, "system.posix_acl_access", acl)
    before = {name: os.getxattr(external.site, name) for name in os.listxattr(external.site)}
    mode = external.site.stat().st_mode
    ExternalNginx(external.options).apply(weights(ExternalNginx(external.options), 5, 3, 2, 1))
    assert {name: os.getxattr(external.site, name) for name in os.listxattr(external.site)} == before
    assert set(before) >= {"user.origin", "system.posix_acl_access"}
    assert external.site.stat().st_mode == mode


@pytest.mark.parametrize("name", ["nginx.conf", "sites/app"])
def test_a_file_with_hard_links_is_refused_by_name(external: External, name: str) -> None:
    nginx, before = ExternalNginx(external.options), external.site.read_bytes()
    os.link(external.folder / name, external.folder / "other-name")
    with pytest.raises(ActuationError, match="has 2 hard links") as refused:
        nginx.apply(weights(nginx, 5, 3, 2, 1))
    assert refused.value.where == str(external.folder / name)
    assert external.site.read_bytes() == before


def test_links_to_one_configuration_have_one_lock(external: External) -> None:
    link = external.folder / "linked.conf"
    link.symlink_to("nginx.conf")
    linked = ExternalNginx(external.options.model_copy(update={"config": link}))
    assert linked.apply(weights(linked, 5, 3, 2, 1)).changed
    assert link.is_symlink()
    assert [path.name for path in external.folder.glob("*lock")] == [".nginx.conf.deepsched-lock"]


@pytest.mark.usefixtures("root_only")
def test_a_full_disk_and_a_read_only_one_are_said_in_words(external: External, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        shutil.move(external.site, disk / "app")
        external.site.symlink_to(disk / "app")
        nginx, before = ExternalNginx(external.options), external.site.read_bytes()
        with full(disk), pytest.raises(ActuationError, match="No space left on device") as refused:
            nginx.apply(weights(nginx, 5, 3, 2, 1))
        assert "make room" in refused.value.remedy
        assert refused.value.where.startswith(f"{disk}/")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True, timeout=20)
        with pytest.raises(ActuationError, match="Read-only file system") as refused:
            nginx.apply(weights(nginx, 5, 3, 2, 1))
        assert "for writing" in refused.value.remedy
        assert external.site.read_bytes() == before
        external.site.unlink()
        external.site.write_bytes(before)


@pytest.mark.usefixtures("root_only")
def test_files_are_put_back_on_a_disk_that_has_filled_up(external: External, tmp_path: Path) -> None:
    """Another program fills it between the first and the second file."""
    with small_disk(tmp_path / "disk") as disk, contextlib.ExitStack() as filling:
        files = [_moved(external.site, disk), _moved(external.folder / "more.inc", disk)]

        def disturb(step: str) -> None:
            if step == "swap more.inc":
                filling.enter_context(full(disk))
            if step == "confirm":
                raise ActuationError("refused here")

        nginx, before = ExternalNginx(external.options, on_step=disturb), [path.read_bytes() for path in files]
        with pytest.raises(ActuationError, match="not applied: refused here"):
            nginx.apply(weights(nginx, 5, 3, 2, 4))
        assert [path.read_bytes() for path in files] == before
        assert not list(disk.glob(".*.deepsched"))
        filling.close()
        assert ExternalNginx(external.options).apply(weights(nginx, 5, 3, 2, 4)).changed
        assert all(path.read_bytes() != text for path, text in zip(files, before, strict=True))
        assert not list(disk.glob(".*.deepsched"))


@pytest.mark.usefixtures("root_only")
def test_a_file_that_cannot_be_put_back_is_named_and_the_others_are_put_back(
    external: External, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        site, other = _moved(external.site, disk), external.folder / "more.inc"

        def disturb(step: str) -> None:
            if step == "confirm":
                subprocess.run(["mount", "-o", "remount,ro", disk], check=True, timeout=20)
                raise ActuationError("refused here")

        nginx, before = ExternalNginx(external.options, on_step=disturb), other.read_bytes()
        with pytest.raises(ActuationError, match="not applied: refused here; these could not be put back") as refused:
            nginx.apply(weights(nginx, 5, 3, 2, 4))
        assert f"{site} (Read-only file system)" in refused.value.what
        assert str(other) not in refused.value.what
        assert (other.read_bytes(), b"weight=5" in site.read_bytes()) == (before, True)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True, timeout=20)
        assert ExternalNginx(external.options).apply(weights(nginx, 1, 2, 1, 1, down=2)).changed
        assert not list(disk.glob(".*.deepsched"))


def _moved(path: Path, disk: Path) -> Path:
    """Where the file is then, behind a link in its place."""
    place = disk / path.name
    shutil.move(path, place)
    path.symlink_to(place)
    return place


def test_a_refused_configuration_changes_nothing(external: External) -> None:
    nginx = ExternalNginx(external.options)
    (external.folder / "nginx.conf").write_text(
        (external.folder / "nginx.conf").read_text().replace("access_log", "nonsense")
    )
    before = external.site.read_bytes()
    with pytest.raises(ActuationError, match='unknown directive "nonsense"'):
        nginx.apply(weights(nginx, 9, 9, 9, 9))
    assert external.site.read_bytes() == before


def test_an_edit_that_does_not_say_what_was_wanted_is_refused(
    external: External, monkeypatch: pytest.MonkeyPatch
) -> None:
    nginx = ExternalNginx(external.options)
    before = external.site.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(config_control, "edit_file", lambda text, _: text + b"# nothing\n")
        with pytest.raises(ActuationError, match="do not hold these weights"):
            nginx.apply(weights(nginx, 9, 8, 7, 6))
    assert external.site.read_bytes() == before


def test_a_reload_that_is_not_confirmed_is_rolled_back(external: External) -> None:
    options = external.options.model_copy(update={"reload_timeout_s": 0.5, "reload_command": ("true",)})
    nginx = ExternalNginx(options)
    before = external.site.read_bytes()
    with pytest.raises(ActuationError, match="old workers still accept"):
        nginx.apply(weights(nginx, 9, 8, 7, 6))
    assert external.site.read_bytes() == before
    # What was left pending is settled by the next actuator.
    assert ExternalNginx(external.options).apply(weights(nginx, 1, 2, 1, 1, down=2)).changed


def test_a_file_that_changes_meanwhile_is_left_alone(external: External) -> None:
    def meddle(step: str) -> None:
        if step.startswith("swap"):
            external.site.write_text(external.site.read_text() + "# mine\n")

    nginx = ExternalNginx(external.options, on_step=meddle)
    with pytest.raises(ActuationError, match="changed by another program"):
        nginx.apply(weights(nginx, 9, 8, 7, 6))
    assert external.site.read_text().endswith("# mine\n")
    assert "weight=9" not in external.site.read_text()


def test_two_actuators_take_turns(external: External) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(step: str) -> None:
        if step == "test":
            entered.set()
            assert leave.wait(PATIENCE_S)

    first = ExternalNginx(external.options, on_step=hold)
    thread = threading.Thread(target=first.apply, args=(weights(first, 5, 5, 5, 5),))
    thread.start()
    assert entered.wait(PATIENCE_S)
    second = ExternalNginx(external.options.model_copy(update={"lock_timeout_s": 0.1}))
    with pytest.raises(ActuationError, match="another process"):
        second.apply(weights(second, 1, 1, 1, 1))
    leave.set()
    thread.join()
    assert second.apply(weights(second, 1, 1, 1, 1)).changed


_SET = """
import sys
from pathlib import Path
import numpy as np
from actuators.contract.control import Weights
from actuators.external.nginx import ExternalNginx, ExternalNginxOptions
nginx = ExternalNginx(ExternalNginxOptions(config=Path(sys.argv[1]), min_reload_interval_s=0, lock_timeout_s=60))
sys.stdin.readline()
for number in range(10):
    nginx.apply(Weights(nginx.topology, np.full((1, 4), int(sys.argv[2]) + number), np.zeros((1, 4), bool)))
    print("set", flush=True)
"""


def test_twenty_changes_of_two_processes_are_each_in_force_as_a_whole(external: External) -> None:
    setters = [
        subprocess.Popen(
            [sys.executable, "-c", _SET, str(external.options.config), first],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for first in ("11", "51")
    ]  # fmt: skip
    for setter in setters:
        assert setter.stdin is not None
        setter.stdin.write("\n")
        setter.stdin.flush()
    said = [setter.communicate(timeout=PATIENCE_S)[0].split() for setter in setters]
    assert said == [["set"] * 10] * 2
    left = set(ExternalNginx(external.options).control().as_weights().values.ravel().tolist())
    assert left in ({20}, {60})
    assert external.passes()


def test_the_reload_budget_is_kept(external: External) -> None:
    swaps: list[float] = []

    def note(step: str) -> None:
        if step.startswith("swap"):
            swaps.append(time.monotonic())

    options = external.options.model_copy(update={"min_reload_interval_s": 2.0})
    nginx = ExternalNginx(options, on_step=note)
    began_s = time.monotonic()
    nginx.apply(weights(nginx, 5, 1, 1, 1))
    nginx.apply(weights(nginx, 6, 1, 1, 1))
    # A bound from below: no delay of this test can break it.
    assert swaps[-1] - began_s > 2.0 - FILE_CLOCK_S


def test_first_weights_come_back_on_the_servers_that_still_exist(external: External) -> None:
    nginx = ExternalNginx(external.options)
    first = nginx.control()
    servers = nginx.topology.servers
    nginx.apply(weights(nginx, 5, 3, 2, 4))
    # The administrator removes the second server, renames the group of the fourth, and adds one.
    text = external.site.read_text()
    removed = text[text.index(f"server {servers[1]}") : text.index(f"server {servers[2]}")]
    external.site.write_text(text.replace(removed, "server 127.0.0.1:9 weight=7 down; "))
    (external.folder / "more.inc").write_text("\n")
    with pytest.raises(ConfigError, match="have changed"):
        nginx.apply(first)
    restored = nginx.restore(first)
    assert restored.changed
    assert restored.restored == (f"app/{servers[0]}", f"app/{servers[2]}")
    assert restored.missing == (f"app/{servers[1]}", f"app/{servers[3]}")
    assert restored.added == ("app/127.0.0.1:9",)
    assert f"server {servers[2]} down;" in external.site.read_text()
    assert "server 127.0.0.1:9 weight=7 down;" in external.site.read_text()
    assert set(external.who(8)) == {"0"}
    assert nginx.restore(first).restored == restored.restored
    other = ExternalNginx(external.options)
    external.site.write_text(external.site.read_text().replace("upstream app", "upstream other"))
    assert other.restore(first).missing == tuple(f"app/{server}" for server in servers)


@pytest.mark.parametrize("line", ["server {0};", "server {0}  weight=700 max_fails=3;", "server {0} weight=1; # one\n"])
def test_first_weights_are_written_as_they_stood_there(external: External, line: str) -> None:
    """Byte for byte: without `weight=` where there was none, above 100 where they were."""
    external.site.write_text(external.site.read_text().replace("server ", line.format("127.0.0.1:9") + " server ", 1))
    before = {path: path.read_bytes() for path in (external.site, external.folder / "more.inc")}
    nginx = ExternalNginx(external.options)
    first = nginx.control()
    for values in ([5, 3, 2, 4, 9], [1, 1, 1, 1, 1]):
        assert nginx.apply(Weights(nginx.topology, np.array([values]), first.down)).changed
    assert nginx.apply(first).changed
    assert {path: path.read_bytes() for path in before} == before


def test_a_group_that_stays_keeps_weights_above_100(external: External) -> None:
    shop = "upstream shop { server 127.0.0.1:1 weight=1000; server 127.0.0.1:2; }\n"
    external.site.write_text(external.site.read_text() + shop)
    nginx = ExternalNginx(external.options)
    present = nginx.control()
    app = next(group for group in nginx.topology.groups if group.name == "app")
    values = present.values.copy()
    values[nginx.topology.groups.index(app), nginx.topology.server_index(app.servers[0])] = 7
    assert nginx.apply(Weights(nginx.topology, values, present.down)).changed
    assert " weight=7;" in external.site.read_text()
    assert external.site.read_text().endswith(shop)


def test_first_weights_that_somebody_wrote_and_did_not_load_are_loaded(external: External) -> None:
    """NGINX would go on with those of the controller, and the files would deny it."""
    nginx = ExternalNginx(external.options)
    first, text = nginx.control(), external.site.read_text()
    nginx.apply(weights(nginx, 1, 1, 8, 1))
    assert "2" in external.who(11)
    external.site.write_text(text)
    assert nginx.restore(first).changed
    assert external.site.read_text() == text
    assert "2" not in external.who(11), "it is down again"


def test_weights_are_set_although_the_statistics_do_not_answer(external: External) -> None:
    """In an overload they time out, and that is when a controller goes back to its baseline."""
    options = external.options.model_copy(update={"status_url": f"http://{external.address}/status"})
    nginx = ExternalNginx(options)
    first = nginx.control()
    nginx.apply(weights(nginx, 1, 1, 8, 1))
    assert "2" in external.who(11)
    assert nginx.restore(first).changed
    assert "2" not in external.who(11)


def test_long_requests_hold_up_changes_and_not_what_is_put_back(external: External) -> None:
    """As of websockets, which keep workers of earlier configurations busy for hours: here three, where two serve."""
    main = external.folder / "nginx.conf"
    main.write_text(main.read_text().replace("worker_shutdown_timeout 5s;", ""))
    nginx = ExternalNginx(external.options.model_copy(update={"drain_timeout_s": 0.2}))
    first = nginx.control()
    with contextlib.ExitStack() as stack:
        for value in (4, 5, 6, 7):
            nginx.apply(weights(nginx, value, 1, 8, 1))
            client = stack.enter_context(socket.create_connection(external.address.split(":"), timeout=PATIENCE_S))
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        with pytest.raises(ActuationError, match="two earlier configurations are still busy"):
            nginx.apply(weights(nginx, 8, 1, 8, 1))
        assert "2" in external.who(11)
        assert nginx.restore(first).changed
        assert "2" not in external.who(11)


def test_an_interruption_after_the_signal_puts_the_old_weights_in_force_again(external: External) -> None:
    class Interruption(BaseException):
        pass

    def interrupt(step: str) -> None:
        if step == "confirm":
            raise Interruption

    text = external.site.read_bytes()
    nginx = ExternalNginx(external.options, on_step=interrupt)
    with pytest.raises(Interruption):
        nginx.apply(weights(nginx, 1, 1, 8, 1))
    assert external.site.read_bytes() == text
    wait_until(lambda: "2" not in external.who(11))


STEPS = ["test", "keep originals", "swap app", "swap more.inc", "reload", "confirm", "done"]


@pytest.mark.parametrize("step", STEPS)
def test_killed_between_any_two_steps_the_config_is_old_or_new_and_valid(external: External, step: str) -> None:
    files = [external.site, external.folder / "more.inc"]
    old = [path.read_bytes() for path in files]
    code = (
        "import os, signal, sys\nimport numpy as np\nfrom pathlib import Path\n"
        "from actuators.contract.control import Weights\n"
        "from actuators.external.nginx import ExternalNginx, ExternalNginxOptions\n"
        "def die(step):\n    if step == sys.argv[2]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "n = ExternalNginx(ExternalNginxOptions(config=Path(sys.argv[1])), on_step=die)\n"
        "n.apply(Weights(n.topology, np.array([[4, 3, 2, 5]])))\n"
    )
    command = [sys.executable, "-c", code, str(external.options.config), step]
    assert subprocess.run(command, timeout=PATIENCE_S, check=False).returncode == -signal.SIGKILL
    assert external.passes()
    nginx = ExternalNginx(external.options)
    for path, text in zip(files, old, strict=True):
        assert path.read_bytes() == text or b" weight=" in path.read_bytes()
    assert external.who(4)
    # Whoever comes next settles it.
    assert nginx.apply(weights(nginx, 4, 3, 2, 5)).changed
    assert sum((external.who(9) for _ in range(4)), Counter()) == {"0": 16, "1": 12, "2": 8}
    wait_until(external.passes)
    assert not list(external.folder.rglob(".*.deepsched-test"))


def test_without_the_right_to_signal_the_remedy_is_named(external: External, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    nginx = ExternalNginx(external.options)
    before = external.site.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", refuse)
        with pytest.raises(ActuationError, match="reload_command"):
            nginx.apply(weights(nginx, 9, 8, 7, 6))
    assert external.site.read_bytes() == before


def test_a_pid_file_of_another_process_is_not_believed(external: External, tmp_path: Path) -> None:
    nginx, original = ExternalNginx(external.options), external.site.read_text()
    pid_file, other = external.folder / "nginx.pid", tmp_path / "other.conf"
    master = int(pid_file.read_text())
    bystander = subprocess.Popen(["sleep", "600"])
    worker = psutil.Process(master).children()[0].pid
    other.write_text(f"pid {tmp_path}/pid; daemon off; error_log {tmp_path}/log; events {{}}")
    try:
        with ManagedProcess(["/usr/sbin/nginx", "-c", str(other)], name="other", log_path=tmp_path / "log") as process:
            process.wait_ready(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
            for pid, problem in (
                (bystander.pid, "is not an NGINX master"), (worker, "is not an NGINX master"),
                (process.pid, "other.conf"), (2**22 - 1, "not running"),
            ):  # fmt: skip
                pid_file.write_text(f"{pid}\n")
                with pytest.raises(ActuationError, match=problem):
                    nginx.apply(weights(nginx, 5, 3, 2, 1))
                assert external.site.read_text() == original
            assert bystander.poll() is None
        pid_file.unlink()
        os.mkfifo(pid_file)
        with pytest.raises(ActuationError, match="not running"):
            nginx.apply(weights(nginx, 5, 3, 2, 1))
    finally:
        bystander.kill()
        bystander.wait()
    pid_file.unlink()
    pid_file.write_text(f"{master}\n")
    assert nginx.apply(weights(nginx, 5, 3, 2, 1)).changed
