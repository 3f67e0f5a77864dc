"""systemd units: taken by systemd, with the options that were given, and nothing of ours is left after removal."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from actuators.contract.control import Weights
from actuators.external.nginx import ExternalNginx, ExternalNginxOptions
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from rayjobs.cli.config import load_options
from rayjobs.cli.main import main
from rayjobs.steer.options import SteerOptions, WatchdogOptions
from tests.support.waiting import wait_until

STATUS = "http://127.0.0.1:8081/status/format/json"


def write_units(folder: Path, *more: str, reload: bool = True) -> None:
    place = ["--nginx-conf", str(folder / "nginx" / "nginx.conf")] if reload else ["--control-url", f"{STATUS}/control"]
    words = ["--bundle", str(folder / "bundle"), "--status-url", STATUS, "--folder", str(folder / "steer")]
    assert main(["steer", "units", str(folder / "units"), *words, *place, *more]) == 0


def service(folder: Path, name: str) -> str:
    return (folder / "units" / f"deepsched-{name}.service").read_text()


@pytest.mark.parametrize("reload", [True, False])
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_takes_them(reload: bool, tmp_path: Path) -> None:
    write_units(tmp_path, "--user", "daemon", reload=reload)
    units = sorted(str(path) for path in (tmp_path / "units").glob("*.service"))
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(units) == 2


def test_both_run_with_what_was_given(tmp_path: Path) -> None:
    write_units(tmp_path, "--metrics-port", "9109", "--set", "guards.floor=4", "--watchdog-after-s", "12")
    for name, kind in (("steer", SteerOptions), ("watchdog", WatchdogOptions)):
        file = tmp_path / "units" / f"deepsched-{name}.yaml"
        options = load_options(kind, file=file)
        assert (options.bundle, options.folder) == (tmp_path / "bundle", tmp_path / "steer")
        assert options.nginx_conf == tmp_path / "nginx" / "nginx.conf"
        (line,) = [line for line in service(tmp_path, name).splitlines() if line.startswith("ExecStart=")]
        words = shlex.split(line.removeprefix("ExecStart="))
        assert words[1:3] == ["-m", "rayjobs.steer"]
        assert words[4:] == ["--config", str(file)]
        assert Path(words[0]).is_absolute()
    assert isinstance(options, WatchdogOptions)
    assert options.watchdog_after_s == 12
    steer = load_options(SteerOptions, file=tmp_path / "units" / "deepsched-steer.yaml")
    assert (steer.metrics_port, steer.guards.floor, steer.mode) == (9109, 4, "shadow")


def test_they_may_write_their_folder_and_what_a_reload_changes(tmp_path: Path) -> None:
    write_units(tmp_path, reload=False)
    assert f"ReadWritePaths={tmp_path}/steer\n" in service(tmp_path, "steer")
    assert "ProtectSystem=strict\nProtect" in service(tmp_path, "watchdog")
    assert "NoNewPrivileges=yes" in service(tmp_path, "steer")
    write_units(tmp_path, "--set", "reload.reload_command=[sudo,-n,nginx,-s,reload]")
    assert f"ReadWritePaths={tmp_path}/steer {tmp_path}/nginx\n" in service(tmp_path, "steer")
    assert "ProtectSystem=full" in service(tmp_path, "steer")
    # sudo needs new privileges.
    assert "NoNewPrivileges" not in service(tmp_path, "watchdog")
    write_units(tmp_path, "--folder", "/var/lib/deepsched", reload=False)
    assert "StateDirectory=deepsched\n" in service(tmp_path, "steer")


@pytest.mark.usefixtures("root_only")
def test_the_services_user_owns_a_folder_that_another_user_has_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the printed commands, without sudo."""
    used = tmp_path / "steer"
    (used / "onboard").mkdir(parents=True, mode=0o700)
    (used / "onboard" / "watch.json").touch(0o600)
    write_units(tmp_path, "--user", "daemon", reload=False)
    printed = capsys.readouterr().out.splitlines()
    for line in printed[: printed.index("# remove")]:
        if str(used) in line:
            subprocess.run(["sh", "-ec", line.replace("sudo ", "")], check=True)
    assert {path.owner() for path in (used, *used.rglob("*"))} == {"daemon"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bundle", "b"], "no NGINX is given"),
        (["--bundle", "b", "--control-url", STATUS, "--folder", "a b"], "as one word"),
        (["--bundle", "b", "--control-url", STATUS, "--set", "duration_s=3"], "runs until it is stopped"),
        (["--bundle", "b", "--control-url", STATUS, "--user", "x;y"], "user"),
        (["--bundle", "b", "--nginx-conf", "n", "--control-url", STATUS], "has no effect"),
        (["--bundle", "b", "--control-url", "http://me:secret@h/c"], "keep no password of a URL (--control-url)"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["steer", "units", str(tmp_path / "units"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.rglob("*.service"))


MAIN = """daemon off; pid {run}/nginx.pid; error_log {run}/error.log; events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {run}/t1; proxy_temp_path {run}/t2; fastcgi_temp_path {run}/t3;
  uwsgi_temp_path {run}/t4; scgi_temp_path {run}/t5;
  include sites/*;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://app; }} }}
}}
"""
SITE = "# mine\nupstream app { server 127.0.0.1:9 weight=2; server 127.0.0.1:8 weight=5; }\n"


@pytest.fixture
def external(tmp_path: Path) -> Iterator[ExternalNginx]:
    """A running NGINX whose configuration is in `nginx/`."""
    conf, run = tmp_path / "nginx", tmp_path / "run"
    (conf / "sites").mkdir(parents=True)
    run.mkdir()
    (conf / "nginx.conf").write_text(MAIN.format(run=run, port=free_port("127.0.0.1")))
    (conf / "sites" / "app").write_text(SITE)
    binary = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    assert binary is not None
    with ManagedProcess([binary, "-c", str(conf / "nginx.conf")], name="nginx", log_path=run / "log"):
        wait_until(lambda: (run / "nginx.pid").exists() and (run / "nginx.pid").read_text().strip() != "")
        yield ExternalNginx(ExternalNginxOptions(config=conf / "nginx.conf"))


def kept(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.nginx
def test_nothing_of_ours_is_left_beside_the_configuration(
    external: ExternalNginx, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the printed commands, without sudo; systemd itself does not run here."""
    conf, before = tmp_path / "nginx", kept(tmp_path / "nginx")
    first = external.control()
    assert external.apply(Weights(external.topology, first.values * 3, first.down)).changed
    assert external.restore(first).changed
    assert set(kept(conf)) > set(before), "an actuator keeps a lock and the original files there"
    write_units(tmp_path)
    (tmp_path / "steer").mkdir()
    printed = capsys.readouterr().out.splitlines()
    removal = [line.removeprefix("sudo ") for line in printed[printed.index("# remove") + 1 :]]
    for line in removal:
        if line.startswith(("find", "rm")):
            subprocess.run(shlex.split(line), check=True)
    assert kept(conf) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nginx", "run"]
