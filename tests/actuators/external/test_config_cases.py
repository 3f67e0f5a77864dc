"""Configurations that were once read in another way than NGINX reads them: what is seen, and what an edit changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from actuators.contract.control import Weights
from actuators.errors import ActuationError, ConfigError
from actuators.external.actuator import parse_weights
from actuators.external.config_control import changed_files, config_edits, config_topology, config_weights, unusable
from actuators.external.config_reader import read_config
from tests.support.configurations import accepted, refusal
from tests.support.paths import ROOT

CASES = ROOT / "tests" / "data" / "cases"
SHOP = {"127.0.0.1:19001": 5, "127.0.0.1:19002": 1}
SEEN = {
    "weight_twice": {"shop": {"127.0.0.1:19001": 7, "127.0.0.1:19002": 1}},
    "lua_long_string": {"shop": SHOP, "spare": {"127.0.0.1:19003": 1}},
    "lua_comment": {"shop": SHOP},
    "lua_no_space": {"shop": SHOP},
    "stream_and_http": {"shop": SHOP},
    "odd_names": {
        "1c_backend": {"127.0.0.1:19003": 1}, "a-b.c_d": {"127.0.0.1:19004": 2}, "two words": {"127.0.0.1:19005": 1},
        'q;{}"': {"127.0.0.1:19006": 1}, "größe": {"127.0.0.1:19007": 1}, "shop": SHOP,
    },
    "sockets": {
        "php": {"unix:/run/app@1.sock": 1, "unix:/run/app:2.sock": 1, "unix:/run/my app.sock": 4},
        "shop": {"127.0.0.1": 5, "[::1]:19002": 1, "[::1]": 1},
    },
    "host_names": {
        "compose": {"localhost:19001": 3, "LOCALHOST:19002": 1}, "read": {"localhost:19001": 1, "localhost:19002": 1},
    },
}  # fmt: skip


@pytest.fixture
def case(request: pytest.FixtureRequest, short_dir: Path) -> Path:
    shutil.copy(CASES / f"{request.param}.conf", short_dir / "nginx.conf")
    return short_dir / "nginx.conf"


def weights_in(main: Path) -> dict[str, dict[str, int]]:
    config = read_config(main)
    return {name: {line.server: line.weight for line in config.group(name)} for name in config.groups}


def set_weights(main: Path, *changes: str) -> None:
    config = read_config(main)
    base = config_weights(config, config_topology(config, ()))
    for path, change in changed_files(config_edits(config, parse_weights(changes, base))).items():
        path.write_bytes(change.new)


@pytest.mark.nginx
@pytest.mark.parametrize("case", SEEN, indirect=True)
def test_every_group_is_seen_as_nginx_sees_it(case: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["case"]
    assert accepted(case) or ("stream" in name and 'unknown directive "stream"' in refusal(case))
    assert weights_in(case) == SEEN[name]
    assert unusable(read_config(case)) == {}


def test_every_case_is_tested() -> None:
    assert {path.stem for path in CASES.glob("*.conf")} == set(SEEN)


@pytest.mark.nginx
@pytest.mark.parametrize("case", SEEN, indirect=True)
def test_one_weight_is_changed_and_no_other_byte(case: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["case"]
    before, group = case.read_text(), next(iter(SEEN[name]))
    server = list(SEEN[name][group])[-1]
    set_weights(case, f"{group}/{server}=8")
    wanted = {**SEEN[name], group: {**SEEN[name][group], server: 8}}
    assert weights_in(case) == wanted
    assert accepted(case) or "stream" in name
    after = case.read_text()
    assert (
        after.replace(" weight=8", "", 1) == before
        or after.replace("weight=8", "weight=2") == before
        or (after.replace("weight=8", "weight=4") == before)
    )


def test_the_last_weight_is_edited(tmp_path: Path) -> None:
    main = tmp_path / "nginx.conf"
    shutil.copy(CASES / "weight_twice.conf", main)
    set_weights(main, "127.0.0.1:19001=9")
    assert "weight=3 max_fails=2 weight=9;" in main.read_text()


def test_what_nginx_reads_as_no_upstream_is_none(tmp_path: Path) -> None:
    main = tmp_path / "nginx.conf"
    main.write_text("stream { upstream a { server a:1; } } upstream b { server b:1; } http { }")
    with pytest.raises(ConfigError, match="no upstream in its http block"):
        config_topology(read_config(main), ())


def test_an_upstream_without_servers_is_refused_by_name(tmp_path: Path) -> None:
    main = tmp_path / "nginx.conf"
    main.write_text("http {\nupstream a { server a:1; }\nupstream dynamic { zone z 64k; } }")
    config = read_config(main)
    assert config_topology(config, ()).groups[0].name == "a"
    assert list(unusable(config)) == ["dynamic"]
    with pytest.raises(ConfigError, match=r"dynamic has no server lines \(.*nginx.conf:3\); .*--groups"):
        config_topology(config, ("dynamic",))


@pytest.mark.parametrize("value", ["0", "x", "-1", ""])
def test_a_weight_that_nginx_refuses_stops_only_its_own_group(tmp_path: Path, value: str) -> None:
    main = tmp_path / "nginx.conf"
    main.write_text(f"http {{ upstream a {{ server a:1; }} upstream b {{ server b:1 weight={value}; }} }}")
    config = read_config(main)
    assert [group.name for group in config_topology(config, ()).groups] == ["a"]
    with pytest.raises(ConfigError, match=f"b: weight '{value}' is not a number above 0"):
        config_topology(config, ("b",))


def test_another_servers_down_comments_and_form_stay(tmp_path: Path) -> None:
    main = tmp_path / "nginx.conf"
    text = (
        'http { upstream a{ server a:1 down weight=4; # down weight=9;\n server "b:1"\tbackup\n # server c:1;\n'
        " down; server c:1;}\n upstream b { server a:1 down; server c:1; } }\n"
    )
    main.write_text(text)
    set_weights(main, "a/c:1=6")
    assert main.read_text() == text.replace("server c:1;}", "server c:1 weight=6;}")
    set_weights(main, "a/a:1=up")
    assert main.read_text() == text.replace("server c:1;}", "server c:1 weight=6;}").replace(
        "a:1 down weight", "a:1 weight"
    )


def test_weights_of_lines_that_moved_are_not_set(tmp_path: Path) -> None:
    main = tmp_path / "nginx.conf"
    main.write_text("http { upstream a { server a:1; } }")
    config = read_config(main)
    edits = config_edits(config, Weights.equal(config_topology(config, ()), 7))
    main.write_text("# new\nhttp { upstream a { server a:1; } }")
    with pytest.raises(ActuationError, match="the server line has moved"):
        changed_files(edits)
