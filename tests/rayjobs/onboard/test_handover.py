"""What an onboarding leaves for steering: `steer run` needs the folder only, and what is given wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from actuators.errors import ConfigError
from actuators.external.nginx import ExternalNginxOptions
from rayjobs.cli.config import load_options
from rayjobs.cli.main import main
from rayjobs.steer.handover import FILE, Handover
from rayjobs.steer.options import SteerOptions, WatchdogOptions

STATUS = "http://127.0.0.1:8081/status/format/json"


def by_reload(folder: Path) -> Path:
    Handover(
        bundle=Path("bundle"), nginx_conf=Path("/etc/nginx/nginx.conf"), status_url=STATUS, groups=("9.shop",),
        interval_s=2.0, reload=ExternalNginxOptions(test_command=("sudo", "nginx", "-t")),
    ).write(folder)  # fmt: skip
    return folder


def in_memory(folder: Path) -> Path:
    Handover(
        bundle=Path("bundle"), control_url="http://127.0.0.1:8090/control", token_file=Path("/etc/token"),
        status_url=STATUS, groups=("9.shop",), workers=3.0, interval_s=1.0,
    ).write(folder)  # fmt: skip
    return folder


def steering(**flags: Any) -> SteerOptions:
    return load_options(SteerOptions, flags=flags)


def test_the_folder_says_everything_and_print_config_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_reload(tmp_path)
    assert main(["steer", "run", "--mode", "shadow", "--folder", str(tmp_path), "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["bundle"], shown["nginx_conf"]) == (str(tmp_path / "bundle"), "/etc/nginx/nginx.conf")
    assert (shown["status_url"], shown["interval_s"], shown["mode"]) == (STATUS, 2.0, "shadow")
    assert shown["reload"]["test_command"] == ["sudo", "nginx", "-t"]
    assert "control_url" not in shown
    watchdog = load_options(WatchdogOptions, flags={"folder": tmp_path})
    assert watchdog.nginx_conf == Path("/etc/nginx/nginx.conf")


def test_an_nginx_whose_urls_were_not_stored_must_be_named_again(tmp_path: Path) -> None:
    Handover(bundle=Path("bundle"), groups=("9.shop",), interval_s=1.0).write(tmp_path)
    with pytest.raises(ConfigError, match="give --control-url with user and password"):
        steering(folder=tmp_path)
    given = steering(folder=tmp_path, control_url="http://ops:secret@127.0.0.1:8090/control", token_file=tmp_path / "t")
    assert given.interval_s == 1.0


def test_in_memory_too(tmp_path: Path) -> None:
    options = steering(folder=in_memory(tmp_path))
    assert (options.control_url, options.workers) == ("http://127.0.0.1:8090/control", 3.0)
    assert (options.token_file, options.nginx_conf) == (Path("/etc/token"), None)


def test_what_is_given_wins(tmp_path: Path) -> None:
    options = steering(folder=by_reload(tmp_path), bundle=Path("/other"), interval_s=5.0)
    assert (options.bundle, options.interval_s, options.status_url) == (Path("/other"), 5.0, STATUS)
    other_way = steering(folder=tmp_path, control_url="http://127.0.0.1:1/control")
    assert (other_way.nginx_conf, other_way.reload.test_command) == (None, ())
    timed = load_options(SteerOptions, flags={"folder": tmp_path}, assignments=["reload.reload_timeout_s=9"])
    assert (timed.reload.reload_timeout_s, timed.reload.test_command) == (9.0, ("sudo", "nginx", "-t"))


def test_without_an_onboarding_a_bundle_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="option 'bundle' is missing"):
        steering(folder=tmp_path)


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"bundle": ')
    with pytest.raises(ConfigError, match=r"cannot be used.*onboarding\.json"):
        steering(folder=tmp_path)
