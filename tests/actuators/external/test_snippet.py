"""What the snippet carries over, what it refuses by name, and the change of the configuration that it needs."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from actuators.errors import ConfigError
from actuators.external.config_reader import ParsedConfig, read_config
from actuators.external.snippet import (
    Asking,
    MemoryGroup,
    asking_locations,
    asking_notes,
    changes,
    memory_groups,
    notes,
    render_snippet,
    unified_diff,
)
from actuators.nginx.config import NginxOptions
from actuators.nginx.detect import NginxBuild

LUA = NginxBuild(
    Path("/usr/sbin/nginx"), "1.22.1", lua=(Path("/m/ndk.so"), Path("/m/ngx_http_lua_module.so")), vts=None
)
FRAME = "events {{}}\nhttp {{\n{}\n  server {{ location / {{ proxy_pass http://app; }} }}\n}}\n"


def groups(folder: Path, http: str, *wanted: str) -> tuple[MemoryGroup, ...]:
    (folder / "nginx.conf").write_text(FRAME.format(http))
    return memory_groups(read_config(folder / "nginx.conf"), wanted)


def test_every_parameter_that_nginx_has_is_carried_over(tmp_path: Path) -> None:
    (group,) = groups(
        tmp_path,
        "upstream 1c.back-end { zone z 64k; least_conn; server 127.0.0.1:1 weight=2 weight=7 max_fails=3"
        " fail_timeout=1m30s max_conns=10; server [::1]:2 backup; server unix:/run/app@1.sock down;"
        " keepalive 8; keepalive_timeout 20s; keepalive_requests 50; }",
    )
    assert (group.name, group.method, group.zone) == ("1c.back-end", "least_conn", True)
    assert group.text.splitlines() == [
        "upstream 1c.back-end {",
        "  server 127.0.0.1:1 weight=7 max_fails=3 fail_timeout=90s max_conns=10;",
        "  server [::1]:2 weight=1 max_fails=1 fail_timeout=10s backup;",
        "  server unix:/run/app@1.sock weight=1 max_fails=1 fail_timeout=10s down;",
        '  balancer_by_lua_block { BALANCER.pick("1c.back-end") }',
        "  keepalive 8;",
        "  keepalive_timeout 20s;",
        "  keepalive_requests 50;",
        "}",
    ]
    assert any("'zone' is left out" in note for note in notes(ParsedConfig(tmp_path), [group]))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("hash $request_uri consistent;", "'hash $request_uri consistent'"), ("ip_hash;", "'ip_hash'"),
        ("sticky cookie a;", "'sticky cookie a'"), ("ntlm;", "'ntlm'"), ("random two least_time=header;", "least_time"),
        ("least_time header;", "'least_time header'"), ("queue 10;", "'queue 10'"), ("keepalive $n;", "'keepalive $n'"),
        ('balancer_by_lua_block { return "}" }', "'balancer_by_lua_block'"),
        ("server 127.0.0.1:2 slow_start=30s;", "'slow_start=30s'"), ("server 127.0.0.1:2 resolve;", "'resolve'"),
        ("server 127.0.0.1:2 route=a;", "'route=a'"), ("server 127.0.0.1:2 max_fails=x;", "max_fails 'x'"),
        ("server 127.0.0.1:2 fail_timeout=1q;", "fail_timeout '1q'"),
        ("server no.such.host.invalid;", "host not found"),
        ("server 127.0.0.1:1 backup;", "two different lines for 127.0.0.1:1"),
        ('server "unix:/run/a b.sock";', "unix:/run/a b.sock"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_named_with_its_line(tmp_path: Path, line: str, named: str) -> None:
    with pytest.raises(ConfigError, match=r"nginx\.conf:[34]") as caught:
        groups(tmp_path, f"upstream app {{ server 127.0.0.1:1;\n{line} }}")
    assert named in str(caught.value)
    (other,) = groups(tmp_path, f"upstream app {{ server 127.0.0.1:1;\n{line} }}\nupstream b {{ server [::1]; }}", "b")
    assert other.name == "b", "another group does not suffer"


@pytest.mark.parametrize("line", ["init_by_lua_block { x = 1 }", "log_by_lua_file a.lua;", "lua_package_path a;",
                                  "server { location / { log_by_lua_block { f() } } }"])  # fmt: skip
def test_lua_that_the_snippet_needs_for_itself_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be kept beside .*nginx\.conf:3"):
        groups(tmp_path, f"{line} upstream app {{ server 127.0.0.1:1; }}")
    assert groups(tmp_path, "server { location / { content_by_lua_block { f() } } } upstream app { server [::1]; }")


def test_a_group_without_a_server_in_rotation_is_named(tmp_path: Path) -> None:
    text = "upstream app { server 127.0.0.1:1; } upstream old { server 127.0.0.1:2 down; }"
    with pytest.raises(ConfigError, match=r"every server of old is down.*--groups"):
        groups(tmp_path, text)
    (other,) = groups(tmp_path, text, "app")
    assert other.name == "app"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("auth_request /a;", True), ("mirror /m;", True), ("mirror off;", False), ("ssi on;", True),
        ("ssi off;", False), ("add_before_body /a;", True), ("add_after_body /a;", True), ("gzip on;", False),
    ],
)  # fmt: skip
def test_the_access_log_of_a_configuration_with_subrequests_is_told(tmp_path: Path, line: str, told: bool) -> None:
    found = groups(tmp_path, f"upstream app {{ server [::1]; }} server {{ location /p {{ {line} }} }}")
    lines = notes(read_config(tmp_path / "nginx.conf"), found)
    assert [f"nginx.conf:3: '{line.split(maxsplit=1)[0]}'" in each for each in lines] == [True] * told


def test_a_group_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown group 'ap'"):
        groups(tmp_path, "upstream app { server 127.0.0.1:1; }", "ap")


def test_host_names_are_told_with_the_addresses_that_they_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: str, **_: object) -> list[tuple[object, ...]]:
        addresses = ("10.0.0.1", "10.0.0.2", "::1") if host == "three" else (host,)
        return [(0, 0, 0, "", (address, int(port))) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    (group,) = groups(tmp_path, "upstream app { server three:81 weight=2; server 10.0.0.9; server 10.0.0.3:80; }")
    assert group.servers[0].addresses == ("10.0.0.1:81", "10.0.0.2:81", "[::1]:81")
    (note,) = notes(ParsedConfig(tmp_path), [group])
    assert "three:81 is resolved when NGINX starts" in note
    assert "10.0.0.1:81 and 10.0.0.2:81 and [::1]:81" in note
    with pytest.raises(ConfigError, match=r"two different lines for 10\.0\.0\.2:81"):
        groups(tmp_path, "upstream app { server three:81; server 10.0.0.2:81 max_fails=3; }")


def test_the_method_is_kept_until_one_is_given(tmp_path: Path) -> None:
    found = groups(tmp_path, "upstream a { server [::1]; }\nupstream b { random; server [::1]; }")

    def text(chosen: tuple[MemoryGroup, ...], options: NginxOptions) -> str:
        return render_snippet(tmp_path / "s.conf", chosen, options, LUA, port=8090, token="t")

    assert 'method = "configured", methods = { ["a"] = "round_robin", ["b"] = "random" }' in text(found, NginxOptions())
    assert 'method = "round_robin"' in text(found[:1], NginxOptions())
    assert 'method = "configured"' in text(found[1:], NginxOptions())
    assert 'method = "least_conn"' in text(found, NginxOptions(method="least_conn"))
    with pytest.raises(ConfigError, match="choose another with --out"):
        render_snippet(tmp_path / "a b.conf", found, NginxOptions(), LUA, port=8090, token="t")


def test_the_change_replaces_the_blocks_and_loads_lua_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_bytes(b"# first\r\nupstream b {\r\n  server [::1]; # }\r\n}\r\n# last")
    http = "  upstream a { server [::1]; }   # mine\n  upstream other { ip_hash; }\n  include more.conf;"
    found = groups(tmp_path, http, "a", "b")
    config, path = read_config(tmp_path / "nginx.conf"), Path("/etc/deepsched.conf")
    changed = changes(config, found, path, LUA)
    main = changed[tmp_path / "nginx.conf"][1]
    assert main.splitlines()[:2] == ["load_module /m/ndk.so;", "load_module /m/ngx_http_lua_module.so;"]
    assert "  include /etc/deepsched.conf;   # mine\n  upstream other { ip_hash; }\n  include more.conf;\n" in main
    assert changed[tmp_path / "more.conf"][1] == "# first\r\n# last"
    diff = unified_diff(changed)
    assert f"--- {tmp_path}/more.conf\n+++ {tmp_path}/more.conf\n@@" in diff
    assert "-  upstream a { server [::1]; }   # mine\n+  include /etc/deepsched.conf;   # mine\n" in diff
    (tmp_path / "nginx.conf").write_text(
        "load_module x/ngx_http_lua_module.so;\n" + FRAME.format("upstream a { server [::1]; }")
    )
    config = read_config(tmp_path / "nginx.conf")
    (main,) = (new for _, new in changes(config, memory_groups(config, ()), path, LUA).values())
    assert main.count("load_module") == 1


LOCATIONS = """
  upstream a {{ server [::1]; }}
  upstream b {{ server [::1]:81; }}
  server {{
    location /a {{
      proxy_pass http://a/path;   # mine
    }}
    location = /health {{ proxy_pass http://a; }}
    location ~ "^/b(.*)$" {{
      if ($request_method = POST) {{ uwsgi_pass uwsgi://b; }}
      include pass.conf;
    }}
    location /c {{ include pass.conf; }}
    location @fallback {{ proxy_pass http://a; }}
    location /elsewhere {{ proxy_pass http://elsewhere; }}
    location /any {{ proxy_pass http://$where; }}
  }}
"""


def located(folder: Path, text: str = LOCATIONS) -> tuple[ParsedConfig, tuple[MemoryGroup, ...]]:
    (folder / "pass.conf").write_text("fastcgi_pass b;\n")
    found = groups(folder, text.format(), "a", "b")
    return read_config(folder / "nginx.conf"), found


def test_locations_of_the_groups_ask_to_enter(tmp_path: Path) -> None:
    config, found = located(tmp_path)
    asks = Asking(admission=True)
    passes = asking_locations(config, found, ("= /health",), asks)
    places = [(each.location, each.host) for each in passes]
    assert places == [("/a", "a"), ("~ ^/b(.*)$", "b"), ("~ ^/b(.*)$", "b")]
    changed = changes(config, found, Path("/etc/deepsched.conf"), LUA, passes, asks)
    main = changed[tmp_path / "nginx.conf"][1]
    assert '      proxy_pass http://a/path;\n      access_by_lua_block { ADMISSION.enter("a") }   # mine\n' in main
    assert 'uwsgi_pass uwsgi://b; access_by_lua_block { ADMISSION.enter("b") } }' in main
    assert main.count("ADMISSION.enter") == 2
    assert changed[tmp_path / "pass.conf"][1] == 'fastcgi_pass b;\naccess_by_lua_block { ADMISSION.enter("b") }\n'
    notes = asking_notes(config, passes, asks)
    assert any("location /any passes to 'http://$where'" in note for note in notes)
    assert any("location /a asks to enter a" in note for note in notes)
    assert any("location @fallback does not ask, because it is named" in note for note in notes)


def asking(folder: Path, text: str, exempt: tuple[str, ...] = (), *, slots: bool = False) -> list[tuple[str, int]]:
    """Locations that ask, and their lines; the body of a `server` is on line 5 and below."""
    (folder / "pass.conf").write_text("proxy_pass http://a/;\n")
    whole = "upstream a { server [::1]; }\nserver {\n" + text + "\n}\n"
    found = groups(folder, whole, "a")
    passes = asking_locations(read_config(folder / "nginx.conf"), found, exempt, Asking(not slots, slots))
    return [(each.location, each.line) for each in passes]


SHARED = "location = /health { include pass.conf; }\nlocation / { include pass.conf; }"


def test_a_shared_line_asks_for_all_its_locations_or_is_refused(tmp_path: Path) -> None:
    assert asking(tmp_path, SHARED) == [("= /health", 1)]
    assert asking(tmp_path, SHARED, ("/", "= /health")) == []
    named = "location @back { include pass.conf; }\nlocation / { include pass.conf; }"
    assert asking(tmp_path, named) == [("/", 1)]
    for text in (SHARED, "\n".join(SHARED.split("\n")[::-1])):
        with pytest.raises(ConfigError, match=r"location = /health is exempt and shares .*pass\.conf:1"):
            asking(tmp_path, text, ("= /health",))


@pytest.mark.parametrize(
    ("inside", "named"),
    [
        ("location = /health { proxy_pass http://a; }", "location = /health would ask"),
        ("location /static/ { root /srv; }", "location /static/ would ask"),
        ("if ($x) { proxy_pass http://other; }", "location / also passes to 'http://other'"),
        ("location /in { proxy_pass http://a; if ($x) { proxy_pass http://$b; } }", "location /in also passes to"),
    ],
)
def test_what_would_inherit_the_calls_of_a_location_is_refused(tmp_path: Path, inside: str, named: str) -> None:
    outside = f"location / {{ proxy_pass http://a;\n {inside}\n}}"
    with pytest.raises(ConfigError, match=r"nginx\.conf:\d") as error:
        asking(tmp_path, outside, ("= /health",) if "health" in inside else ())
    assert named in str(error.value)


def test_nested_locations_that_all_ask_and_equal_names_of_two_servers_pass(tmp_path: Path) -> None:
    nested = "location / { proxy_pass http://a; location /in { proxy_pass http://a/$uri; } }"
    other = "} server { location / { root /srv; location /x { root /srv; } }"
    assert [name for name, _ in asking(tmp_path, nested + other)] == ["/", "/in"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("location /g { grpc_pass grpc://a; }", "gRPC stream"),
        ("proxy_cache z; location /c { proxy_pass http://a; }", "what the cache could answer"),
        ("location /c { proxy_pass http://a; proxy_cache z; }", "what the cache could answer"),
    ],
)
def test_what_cannot_be_held_is_refused_unless_it_is_exempt(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=r"nginx\.conf:\d") as error:
        asking(tmp_path, text, slots=True)
    assert named in str(error.value)
    assert asking(tmp_path, text, ("/g",) if "/g" in text else ("/c",), slots=True) == []
    assert len(asking(tmp_path, text)) == 1
    off = "proxy_cache z; location /c { proxy_pass http://a; proxy_cache off; fastcgi_cache z; }"
    assert len(asking(tmp_path, off, slots=True)) == 1


def test_a_snippet_that_is_included_cannot_be_written_again(tmp_path: Path) -> None:
    found = groups(tmp_path, "upstream a { server [::1]; }", "a")
    text = render_snippet(tmp_path / "s.conf", found, NginxOptions(), LUA, port=8090, token="t")
    (tmp_path / "s.conf").write_text(text)
    with pytest.raises(ConfigError, match=r"included already .*s\.conf:\d+.*patch -R"):
        groups(tmp_path, "include s.conf;", "a")


def test_the_method_that_needs_slots_needs_locations_that_ask(tmp_path: Path) -> None:
    found = groups(tmp_path, "upstream a { server [::1]; }", "a")
    holding = NginxOptions(method="late_binding")
    with pytest.raises(ConfigError, match=r"memory\.late_binding=true"):
        render_snippet(tmp_path / "s.conf", found, holding, LUA, port=8090, token="t")
    both = NginxOptions(method="late_binding", late_binding=True)
    assert "holds = true" in render_snippet(tmp_path / "s.conf", found, both, LUA, port=8090, token="t")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("access_by_lua_file /x.lua;", "'access_by_lua_file'"), ("satisfy any;", "satisfy any"),
        ("location /p { access_by_lua_block { return } }", "'access_by_lua_block'"),
    ],
)  # fmt: skip
def test_what_admission_control_would_break_is_named_with_its_line(tmp_path: Path, line: str, named: str) -> None:
    config, found = located(
        tmp_path,
        LOCATIONS.replace("  server {{\n", "  server {{\n" + line.replace("{", "{{").replace("}", "}}") + "\n"),
    )
    with pytest.raises(ConfigError) as error:
        asking_locations(config, found, (), Asking(admission=True))
    assert named in str(error.value)
    assert "nginx.conf:7" in str(error.value)


def test_an_exempt_location_that_does_not_exist_is_named(tmp_path: Path) -> None:
    config, found = located(tmp_path)
    with pytest.raises(ConfigError, match=r"no location '/health'.*= /health"):
        asking_locations(config, found, ("/health",), Asking(admission=True))


def test_locations_ask_for_a_slot_and_free_it_with_the_last_byte(tmp_path: Path) -> None:
    config, found = located(tmp_path)
    for asks, access in (
        (Asking(slots=True), 'BALANCER.enter("a")'), (Asking(True, True), 'ADMISSION.enter("a") BALANCER.enter("a")'),
    ):  # fmt: skip
        passes = asking_locations(config, found, ("= /health",), asks)
        main = changes(config, found, Path("/etc/deepsched.conf"), LUA, passes, asks)[tmp_path / "nginx.conf"][1]
        line = (
            f"      access_by_lua_block {{ {access} }} lua_need_request_body on; lua_check_client_abort on;"
            " body_filter_by_lua_block { BALANCER.answered() }   # mine\n"
        )
        assert line in main
        assert main.count("BALANCER.enter") == main.count("BALANCER.answered") == 2
        assert any("worker_connections" in note for note in asking_notes(config, passes, asks))
    slots = NginxOptions(late_binding=True)
    assert "holds = true" in render_snippet(tmp_path / "s.conf", found, slots, LUA, port=8090, token="t")
    assert "holds = false" in render_snippet(tmp_path / "s.conf", found, NginxOptions(), LUA, port=8090, token="t")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("access_by_lua_file /x.lua;", "'access_by_lua_file' and late binding"), ("satisfy any;", "satisfy any"),
        ("location /p { body_filter_by_lua_block { return } }", "the body filter"),
        ("lua_check_client_abort off;", "a client that goes away while it is held"),
    ],
)  # fmt: skip
def test_what_late_binding_would_break_is_named_with_its_line(tmp_path: Path, line: str, named: str) -> None:
    lines = "  server {{\n" + line.replace("{", "{{").replace("}", "}}") + "\n"
    config, found = located(tmp_path, LOCATIONS.replace("  server {{\n", lines))
    with pytest.raises(ConfigError) as error:
        asking_locations(config, found, (), Asking(slots=True))
    assert named in str(error.value)
    assert "nginx.conf:7" in str(error.value)
    if "body" in line or "abort" in line:
        assert asking_locations(config, found, (), Asking(admission=True))
