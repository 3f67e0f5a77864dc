"""Editing a configuration that is not ours: only weights and `down` change, every other byte stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actuators.contract.control import Weights
from actuators.errors import ActuationError, ConfigError, DeepSchedError
from actuators.external.config_control import changed_files, config_edits, config_topology, config_weights, unusable
from actuators.external.config_editor import ServerEdit, edit_file
from actuators.external.config_reader import read_config

MAIN = b"""# upstream a { server 9.9.9.9; }  (a comment)
user  www-data ;
http { include mime.types; include conf.d/*.conf;
\tserver { listen 80; server_name "x;y"; location / { return 200 "server 1.1.1.1;"; } }
  upstream two{server 10.0.0.1:80   weight=3 max_fails=2;server "10.0.0.2:80" down ; } upstream one{server 10.0.0.1:80;}
\tinit_by_lua_block { local s = "}" -- server 1.2.3.4;
  }
}
"""
PART = (
    "upstream three {\r\n    server unix:/run/a.sock # weight=9; \xe9\r\n      weight=7\r\n  fail_timeout=3s;\r\n"
    "    include servers.inc;\r\n}"
)
INCLUDED = b"server [::1]:81 backup weight=2;\n\n\n"


@pytest.fixture
def main(tmp_path: Path) -> Path:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "nginx.conf").write_bytes(MAIN)
    (tmp_path / "mime.types").write_bytes(b"types { text/html html; }\n")
    (tmp_path / "conf.d" / "three.conf").write_bytes(PART.encode("latin-1"))
    (tmp_path / "servers.inc").write_bytes(INCLUDED)
    return tmp_path / "nginx.conf"


def weights_of(main: Path) -> dict[str, list[tuple[str, int, bool]]]:
    config = read_config(main)
    found: dict[str, list[tuple[str, int, bool]]] = {}
    for line in config.servers:
        found.setdefault(line.group, []).append((line.server, line.weight, line.down))
    return found


def apply(main: Path, values: list[list[int]], down: list[list[bool]] | None = None) -> None:
    config = read_config(main)
    topology = config_topology(config, ())
    flags = np.array(down) if down else np.zeros(topology.shape, bool)
    for path, change in changed_files(config_edits(config, Weights(topology, np.array(values), flags))).items():
        path.write_bytes(change.new)


def test_server_lines_are_found_through_includes(main: Path) -> None:
    assert weights_of(main) == {
        "three": [("unix:/run/a.sock", 7, False), ("[::1]:81", 2, False)],
        "two": [("10.0.0.1:80", 3, False), ("10.0.0.2:80", 1, True)],
        "one": [("10.0.0.1:80", 1, False)],
    }


def test_only_weights_and_down_change(main: Path) -> None:
    # Servers in order of appearance: unix, [::1], 10.0.0.1, 10.0.0.2.
    apply(main, [[5, 9, 0, 0], [0, 0, 30, 40], [0, 0, 1, 0]], [[True, False, False, False], [False] * 4, [False] * 4])
    assert main.read_bytes() == MAIN.replace(b"weight=3", b"weight=30").replace(
        b'server "10.0.0.2:80" down ;', b'server "10.0.0.2:80" weight=40 ;'
    )
    expected = PART.replace("weight=7", "weight=5").replace("fail_timeout=3s;", "fail_timeout=3s down;")
    assert (main.parent / "conf.d/three.conf").read_bytes() == expected.encode("latin-1")
    assert (main.parent / "servers.inc").read_bytes() == INCLUDED.replace(b"weight=2", b"weight=9")
    apply(main, [[7, 2, 0, 0], [0, 0, 3, 1], [0, 0, 8, 0]], [[False] * 4, [False, False, False, True], [False] * 4])
    assert weights_of(main)["one"] == [("10.0.0.1:80", 8, False)]
    assert (main.parent / "conf.d/three.conf").read_bytes() == PART.encode("latin-1")
    assert (main.parent / "servers.inc").read_bytes() == INCLUDED


def test_weights_of_the_files_are_read_and_scaled(main: Path) -> None:
    (main.parent / "servers.inc").write_bytes(b"server [::1]:81 weight=700;")
    config = read_config(main)
    weights = config_weights(config, config_topology(config, ("three",)))
    assert weights.values.tolist() == [[1, 100]]


def test_unknown_groups_and_moved_servers_are_named(main: Path) -> None:
    config = read_config(main)
    with pytest.raises(ConfigError, match="did you mean 'three'"):
        config_topology(config, ("thre",))
    topology = config_topology(config, ())
    main.write_bytes(MAIN.replace(b"10.0.0.2", b"10.0.0.3"))
    with pytest.raises(ConfigError, match="have changed"):
        config_edits(read_config(main), Weights.equal(topology))
    with pytest.raises(ActuationError, match="the server line has moved"):
        edit_file(b"\n\n\n", [ServerEdit(config.servers[0], 3, down=False)])


def test_a_server_that_is_listed_twice_disturbs_only_its_own_group(tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_text(
        "http { upstream g { server a:1; server b:1; }\nupstream h { server a:1; server a:1; } }"
    )
    config = read_config(tmp_path / "nginx.conf")
    assert [group.name for group in config_topology(config, ()).groups] == ["g"]
    assert list(unusable(config)) == ["h"]
    for wanted in (("h",), ("g", "h")):
        with pytest.raises(ConfigError, match=r"a:1 is listed twice in h \(.*nginx.conf:2\).*--groups"):
            config_topology(config, wanted)
    assert config_topology(config, ("g",)).servers == ("a:1", "b:1")


def test_a_group_without_a_server_in_rotation_disturbs_only_itself(tmp_path: Path) -> None:
    """NGINX takes it; weights of such a group are refused everywhere."""
    (tmp_path / "nginx.conf").write_text(
        "http { upstream g { server a:1 down; server b:1 backup; }\n"
        "upstream old { server a:1 down; server b:1 down; } }"
    )
    config = read_config(tmp_path / "nginx.conf")
    assert [group.name for group in config_topology(config, ()).groups] == ["g"]
    assert config_weights(config, config_topology(config, ())).down.tolist() == [[True, False]]
    with pytest.raises(ConfigError, match=r"every server of old is down \(.*nginx.conf:2\)"):
        config_topology(config, ("old",))


def test_a_carriage_return_alone_does_not_end_a_line(tmp_path: Path) -> None:
    main = tmp_path / "nginx.conf"
    main.write_bytes(b"http { upstream g {\rserver a:1; } upstream h {\nserver a:1; } }")
    apply(main, [[2], [3]])
    expected = b"http { upstream g {\rserver a:1 weight=2; } upstream h {\nserver a:1 weight=3; } }"
    assert main.read_bytes() == expected


def test_a_line_that_two_groups_share_cannot_have_two_weights(tmp_path: Path) -> None:
    (tmp_path / "s.inc").write_text("server a:1;\nserver b:1;\n")
    main = tmp_path / "nginx.conf"
    main.write_text("http { upstream g { include s.inc; } upstream h { include s.inc; } }")
    apply(main, [[2, 3], [2, 3]])
    assert (tmp_path / "s.inc").read_text() == "server a:1 weight=2;\nserver b:1 weight=3;\n"
    with pytest.raises(ActuationError, match="share this line"):
        apply(main, [[2, 3], [3, 2]])


@pytest.mark.parametrize("text", ["http {", "}", "http { upstream a { server ; } }", "http { upstream a { } }", ""])
def test_what_is_not_a_configuration_is_an_error_of_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "nginx.conf").write_text(text)
    with pytest.raises(DeepSchedError):
        config_topology(read_config(tmp_path / "nginx.conf"), ())
    with pytest.raises(ConfigError):
        read_config(tmp_path / "missing.conf")


PIECES = st.sampled_from(
    [
        "upstream a {", "upstream b{", "}", "{", ";", "server", " 1.1.1.1:80", " 2.2.2.2", ' "3.3.3.3:1"', "weight=3",
        " weight=12", " down", " backup", "\n", " ", "\t", "# x; {\n", "'", '"', "\\", "${", "http {", "include x;",
        "é",         "$a",
        "location / {", "content_by_lua_block {", "--", "server 4.4.4.4 weight=2 down;", "\r\n", "max_fails=1",
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(PIECES | st.text(max_size=3), max_size=25),
    weight=st.integers(1, 100),
    down=st.booleans(),
)
def test_any_text_is_edited_exactly_or_refused(tmp_path: Path, pieces: list[str], weight: int, down: bool) -> None:
    main = tmp_path / "nginx.conf"
    text = "http {\nupstream g { server 5.5.5.5; server 6.6.6.6; }\n" + "".join(pieces) + "\n}\n"
    main.write_bytes(text.encode(errors="surrogateescape"))
    try:
        config = read_config(main)
        before = [(line.group, line.server, line.weight, line.down) for line in config.servers]
        target = config.servers[len(text) % len(config.servers)]
        new = edit_file(main.read_bytes(), [ServerEdit(target, weight, down)])
    except DeepSchedError:
        return
    main.write_bytes(new)
    after = [(line.group, line.server, line.weight, line.down) for line in read_config(main).servers]
    index = config.servers.index(target)
    assert after[index] == (target.group, target.server, weight, down)
    assert [*after[:index], *after[index + 1 :]] == [*before[:index], *before[index + 1 :]]


def test_files_that_include_each_other_without_end_are_refused(tmp_path: Path) -> None:
    main = tmp_path / "nginx.conf"
    main.write_text("http { upstream g { server a:1; } include nginx.conf; include nginx.conf; }")
    with pytest.raises(ConfigError, match="in a loop"):
        read_config(main)
