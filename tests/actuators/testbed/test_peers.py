"""Other balancers: what their configs say, what is said when one is not installed; CPU time of a process family."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from actuators.contract.topology import social_network
from actuators.errors import ConfigError
from actuators.processes.system import busiest_share, family_cpu_s, spent_s
from actuators.testbed.envoy import render_endpoints, render_envoy
from actuators.testbed.peer_configs import fill_in, render_caddy, render_haproxy, render_nginx, render_traefik
from actuators.testbed.peers import ENVOY, PEERS, NoStatistics, why_missing
from actuators.testbed.programs import PeerPrograms

TOPOLOGY = social_network(("127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003"))


def test_one_upstream_is_shared_by_all_types_or_each_has_its_own(tmp_path: Path) -> None:
    shared = render_nginx(TOPOLOGY, "127.0.0.1:80", tmp_path, shared=True)
    assert (shared.count("  upstream "), shared.count("proxy_pass http://all_types;")) == (1, 3)
    own = render_nginx(TOPOLOGY, "127.0.0.1:80", tmp_path, fair_module="/x/fair.so")
    assert (own.count("  upstream "), own.count("    fair;"), own.count("least_conn")) == (3, 3, 0)
    assert own.startswith("load_module /x/fair.so;")


def test_weights_and_sockets_stand_in_the_configurations_only_when_there_are_some(tmp_path: Path) -> None:
    assert " weight=" not in render_nginx(TOPOLOGY, "127.0.0.1:80", tmp_path)
    weighted = render_nginx(TOPOLOGY, "127.0.0.1:80", tmp_path, weights=[10, 1, 2])
    assert weighted.count("server 127.0.0.1:1001 weight=10 max_fails=1") == 3
    assert "stats socket" not in render_haproxy(TOPOLOGY, "127.0.0.1:80", "leastconn")
    haproxy = render_haproxy(TOPOLOGY, "127.0.0.1:80", "leastconn", tmp_path / "s")
    assert f"  stats socket {tmp_path}/s mode 600 level admin\n" in haproxy
    services = json.loads(render_traefik(TOPOLOGY, "leasttime", [10, 1, 2]))["http"]["services"]
    assert [each["weight"] for each in services["servers"]["loadBalancer"]["servers"]] == [10, 1, 2]
    assert render_traefik(TOPOLOGY, "p2c") != render_traefik(TOPOLOGY, "p2c", generation=1)
    assert json.loads(render_caddy(TOPOLOGY, "127.0.0.1:80", "least_conn"))["admin"]["disabled"] is True
    caddy = json.loads(render_caddy(TOPOLOGY, "127.0.0.1:80", "least_conn", tmp_path / "s"))
    assert caddy["admin"]["listen"] == f"unix/{tmp_path}/s|0600"
    config = json.loads(render_envoy(TOPOLOGY, "127.0.0.1:80", limits=False, shared=True, endpoints=tmp_path / "e"))
    assert config["static_resources"]["clusters"][0]["type"] == "EDS"
    (resource,) = json.loads(render_endpoints(TOPOLOGY, [10, 1, 2]))["resources"]
    assert [each["load_balancing_weight"] for each in resource["endpoints"][0]["lb_endpoints"]] == [10, 1, 2]


def test_haproxy_gets_the_algorithm_and_every_server() -> None:
    text = render_haproxy(TOPOLOGY, "127.0.0.1:80", "random(2)")
    assert "balance random(2)" in text
    assert all(f" {server} weight 100 check " in text for server in TOPOLOGY.servers)


def test_envoy_gets_a_limit_on_requests_in_flight_and_every_server_of_a_group() -> None:
    config = json.loads(render_envoy(TOPOLOGY, "127.0.0.1:80", limits=True, shared=False))["static_resources"]
    chain = config["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    assert [each["name"].rpartition(".")[2] for each in chain["http_filters"]] == ["adaptive_concurrency", "router"]
    routes = chain["route_config"]["virtual_hosts"][0]["routes"]
    served = {each["match"]["path"]: each["route"]["cluster"] for each in routes}
    assert served == {group.path: group.name for group in TOPOLOGY.groups}
    for cluster in config["clusters"]:
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        ports = [each["endpoint"]["address"]["socket_address"]["port_value"] for each in endpoints["lb_endpoints"]]
        assert ports == [1001, 1002, 1003]


def test_envoy_without_a_limit_has_one_cluster_for_all_groups() -> None:
    config = json.loads(render_envoy(TOPOLOGY, "127.0.0.1:80", limits=False, shared=True))["static_resources"]
    chain = config["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    assert [each["name"].rpartition(".")[2] for each in chain["http_filters"]] == ["router"]
    routes = chain["route_config"]["virtual_hosts"][0]["routes"]
    (cluster,) = config["clusters"]
    assert {each["route"]["cluster"] for each in routes} == {cluster["name"]}
    assert cluster["lb_policy"] == "LEAST_REQUEST"


def test_answers_of_500_and_above_count_as_failures_of_every_program() -> None:
    assert "observe layer7 error-limit 10 on-error mark-down" in render_haproxy(TOPOLOGY, "127.0.0.1:80", "leastconn")
    assert "proxy_next_upstream error timeout http_500 " in render_nginx(TOPOLOGY, "127.0.0.1:80", Path("/p"))
    (cluster,) = json.loads(render_envoy(TOPOLOGY, "127.0.0.1:80", limits=False, shared=True))["static_resources"][
        "clusters"
    ]
    assert cluster["outlier_detection"]["consecutive_5xx"] == 5
    traefik = json.loads(render_traefik(TOPOLOGY, "p2c"))["http"]["services"]["servers"]["loadBalancer"]
    assert traefik["passiveHealthCheck"]["maxFailedAttempts"] == 1
    front = json.loads(render_caddy(TOPOLOGY, "127.0.0.1:80", "least_conn"))["apps"]["http"]["servers"]["front"]
    assert front["routes"][0]["handle"][0]["health_checks"]["passive"]["unhealthy_status"] == [5]


def test_nginx_of_1_31_gets_its_method_before_its_servers() -> None:
    text = render_nginx(TOPOLOGY, "127.0.0.1:80", Path("/p"), method="least_time last_byte inflight")
    assert text.count("    least_time last_byte inflight;\n    server 127.0.0.1:1001 ") == 3
    assert "least_conn" not in text


def test_traefik_and_caddy_get_the_method_and_every_server() -> None:
    service = json.loads(render_traefik(TOPOLOGY, "leasttime"))["http"]["services"]["servers"]["loadBalancer"]
    assert service["strategy"] == "leasttime"
    assert [each["url"] for each in service["servers"]] == [f"http://{server}" for server in TOPOLOGY.servers]
    front = json.loads(render_caddy(TOPOLOGY, "127.0.0.1:80", "least_conn"))["apps"]["http"]["servers"]["front"]
    (proxy,) = front["routes"][0]["handle"]
    assert front["listen"] == ["127.0.0.1:80"]
    assert proxy["load_balancing"]["selection_policy"] == {"policy": "least_conn"}
    assert [each["dial"] for each in proxy["upstreams"]] == list(TOPOLOGY.servers)


def test_a_users_config_is_filled_in_and_a_missing_placeholder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.conf"
    path.write_text("upstream u { ip_hash; {servers} }\nserver { listen {listen}; }")
    filled = fill_in(path, TOPOLOGY, "127.0.0.1:81", tmp_path)
    assert "server 127.0.0.1:1002 " in filled
    assert "listen 127.0.0.1:81;" in filled
    path.write_text("server { listen {listen}; }")
    with pytest.raises(ConfigError, match=r"no \{servers\}"):
        why_missing(f"nginx:{path}")


def test_what_is_not_installed_is_said_with_its_package() -> None:
    missing = "no-such-program"
    programs = PeerPrograms(haproxy=missing, envoy=missing, traefik=missing, caddy=missing, nginx131=missing)
    assert "apt-get install haproxy" in why_missing("haproxy_random", programs)
    for name in (*(name for name in PEERS if name not in ("shared_least_conn", "nginx_fair")), ENVOY):
        line = why_missing(name, programs)
        assert "pip install 'deep-scheduling[peers]'" in line, name
        assert "\n" not in line
    assert why_missing("shared_least_conn", programs) == ""


def test_an_nginx_without_least_time_is_named_with_its_version(tmp_path: Path) -> None:
    old = tmp_path / "nginx"
    old.write_text("#!/bin/sh\necho 'nginx version: nginx/1.29.4' >&2\n")
    old.chmod(0o755)
    programs = PeerPrograms(nginx131=str(old))
    line = why_missing("nginx131_least_time", programs)
    assert "NGINX 1.29.4 has no least_time" in line
    assert "make setup-peers" in line
    old.write_text("#!/bin/sh\necho 'nginx version: nginx/1.31.0' >&2\n")
    assert why_missing("nginx131_least_time", programs) == ""


def test_windows_without_statistics_have_a_clock_and_no_counts() -> None:
    collector = NoStatistics(TOPOLOGY)
    first, second = collector.window(), collector.window()
    assert first.end_s == second.start_s <= second.end_s
    assert first.requests.sum() == 0
    assert first.usable


def test_the_cpu_time_of_this_process_grows_and_a_dead_one_has_none() -> None:
    before = family_cpu_s(os.getpid())
    total = sum(number * number for number in range(2_000_000))
    now = family_cpu_s(os.getpid())
    assert total > 0
    assert now[os.getpid()] > before[os.getpid()]
    assert family_cpu_s(2**22 + 1) == {}


def test_cpu_time_is_that_of_all_processes_that_are_there() -> None:
    assert spent_s({1: 1.0, 2: 4.0}, {1: 1.5, 3: 0.25}) == pytest.approx(0.75)
    assert spent_s({}, {}) == 0.0


def test_the_busiest_process_counts_and_one_that_came_in_between_does_not() -> None:
    assert busiest_share({1: 0.0, 2: 1.0}, {1: 0.2, 2: 1.9, 3: 50.0}, 1.0) == pytest.approx(0.9)
    assert busiest_share({}, {1: 5.0}, 1.0) == 0.0
