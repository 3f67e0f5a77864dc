"""Weights of an Envoy: files of endpoints edited; weights and health put in force and back by a real Envoy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from actuators.contract.control import ServiceTimes, Weights
from actuators.contract.topology import social_network
from actuators.envoy_admin import admin_of
from actuators.errors import ActuationError, ConfigError
from actuators.external.actuator import parse_weights
from actuators.external.envoy import EnvoyActuator
from actuators.external.preflight import PreflightOptions, preflight
from actuators.testbed.peers import ENVOY, Peer, why_missing
from rayjobs.cli.main import main
from tests.support.json_endpoint import serving
from tests.support.round_trip import check_round_trip

SERVERS = ("127.0.0.1:9001", "127.0.0.1:9002", "[::1]:9003", "127.0.0.1:9004")


def endpoint(server: str, **more: object) -> dict[str, object]:
    host, _, port = server.rpartition(":")
    address = {"socketAddress": {"address": host.strip("[]"), "portValue": int(port)}}
    return {"endpoint": {"address": address}, **more}


def shown(weights: dict[str, int], out: Sequence[str] | str = "", name: str = "app") -> dict[str, Any]:
    """A document of /clusters with one cluster."""
    hosts = [
        {
            **endpoint(server)["endpoint"],  # type: ignore[dict-item]
            "stats": [],
            "weight": weight,
            "health_status": {"eds_health_status": "UNHEALTHY" if server in (out, *out) else "HEALTHY"},
        }
        for server, weight in weights.items()
    ]
    return {"cluster_statuses": [{"name": name, "host_statuses": hosts}]}


def dump(path: Path | None, panic: float | None = None) -> dict[str, object]:
    config = {"eds_config": {"path_config_source": {"path": str(path)}}, "service_name": "service"}
    cluster: dict[str, object] = {"name": "app", "type": "EDS", "eds_cluster_config": config}
    if path is None:
        cluster = {"name": "app", "type": "STRICT_DNS", "lb_policy": "LEAST_REQUEST"}
    if panic is not None:
        cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": panic} if panic else {}}
    return {"configs": [{"cluster": cluster}]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "endpoints.yaml"
    members = [endpoint(server, healthStatus="HEALTHY") for server in SERVERS]
    resource = {"@type": "type.googleapis.com/…ClusterLoadAssignment", "clusterName": "service"}
    path.write_text(yaml.safe_dump({"resources": [{**resource, "endpoints": [{"lbEndpoints": members}]}]}))
    return path


def documents(file: Path | None, weights: dict[str, int], **more: float) -> dict[str, object]:
    return {
        "/clusters": shown(weights), "/config_dump?resource=static_clusters": dump(file, **more),
        "/config_dump?resource=dynamic_active_clusters": {},
    }  # fmt: skip


def test_a_change_in_a_file_leaves_everything_else_and_is_put_back_when_it_is_not_taken_up(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actuators.external.envoy._IN_FORCE_S", 0.1)
    equal, before = dict.fromkeys(SERVERS, 1), file.read_text()
    with serving(documents(file, equal)) as (url, answers):
        actuator = EnvoyActuator(url)
        wanted = parse_weights([f"{SERVERS[2]}=7", f"{SERVERS[0]}=down"], Weights.equal(actuator.topology))
        with pytest.raises(ActuationError, match="has not taken up the weight of app/127"):
            actuator.apply(wanted)
        assert file.read_text() == before
        # An Envoy that shows the new weights at the next question.
        answers["/clusters"] = [shown(equal), shown({**equal, SERVERS[2]: 7}, out=SERVERS[0])]
        assert actuator.apply(wanted).changed
    (resource,) = yaml.safe_load(file.read_text())["resources"]
    members = resource["endpoints"][0]["lbEndpoints"]
    assert members[2] == endpoint(SERVERS[2], healthStatus="HEALTHY", load_balancing_weight=7)
    assert members[0] == endpoint(SERVERS[0], healthStatus="UNHEALTHY")
    assert members[1] == endpoint(SERVERS[1], healthStatus="HEALTHY")


def test_what_envoy_would_not_obey_is_refused(file: Path) -> None:
    equal = dict.fromkeys(SERVERS, 1)
    most_down = [f"{server}=down" for server in SERVERS[:3]]
    for panic, refused in ((None, True), (20.0, False), (0.0, False)):
        more = {} if panic is None else {"panic": panic}
        with serving(documents(file, equal, **more)) as (url, _):
            actuator = EnvoyActuator(url)
            source = actuator.sources()["app"]
            assert source.panic_percent == (50.0 if panic is None else panic)
            if refused:
                with pytest.raises(ActuationError, match="25 % of the servers of app left"):
                    actuator.apply(parse_weights(most_down, Weights.equal(actuator.topology)))
    with serving(documents(None, equal)) as (url, _):
        actuator = EnvoyActuator(url)
        assert actuator.balance == "LEAST_REQUEST"
        with pytest.raises(ActuationError, match=r"do not come from a file \(STRICT_DNS\)"):
            actuator.apply(Weights.equal(actuator.topology, 3))
        checks = {each.name: each for each in preflight(PreflightOptions(control_url=f"envoy:{url}").resolved())}
        assert (checks["control"].level, checks["files"].level) == ("ok", "fail")


def test_what_is_out_already_keeps_no_weight_and_no_revert_from_being_set(file: Path) -> None:
    """Half of the servers are out, by another word than ours, and Envoy sends to all of them."""
    text = file.read_text().replace("healthStatus: HEALTHY", "healthStatus: DRAINING", 2)
    file.write_text(text)
    out, equal = SERVERS[:2], dict.fromkeys(SERVERS, 1)
    with serving(documents(file, equal, panic=60.0)) as (url, answers):
        answers["/clusters"] = shown(equal, out=out)
        actuator = EnvoyActuator(url)
        first = actuator.control()
        assert first.down.tolist() == [[True, True, False, False]]
        heavier = {**equal, SERVERS[0]: 7}
        answers["/clusters"] = [shown(equal, out=out), shown(heavier, out=out)]
        assert actuator.apply(Weights(actuator.topology, np.array([[7, 1, 1, 1]]), first.down)).changed
        (resource,) = yaml.safe_load(file.read_text())["resources"]
        members = resource["endpoints"][0]["lbEndpoints"]
        assert members[0] == endpoint(SERVERS[0], healthStatus="DRAINING", load_balancing_weight=7)
        answers["/clusters"] = shown(heavier, out=out)
        less = np.array([[True, True, True, False]])
        with pytest.raises(ActuationError, match="25 % of the servers of app left"):
            actuator.apply(Weights(actuator.topology, np.array([[7, 1, 1, 1]]), less))


def test_a_symbolic_link_is_told_and_not_replaced(file: Path) -> None:
    """A move over it would part it from the file that it names, for ever."""
    link = file.with_name("link.yaml")
    link.symlink_to(file)
    with serving(documents(link, dict.fromkeys(SERVERS, 1))) as (url, _):
        actuator = EnvoyActuator(url)
        assert actuator.without_weights() == {"app": f"{link} is a symbolic link"}
        with pytest.raises(ActuationError, match=r"app: .*link.yaml is a symbolic link"):
            actuator.apply(Weights.equal(actuator.topology, 2))
        (found,) = (
            each for each in preflight(PreflightOptions(control_url=f"envoy:{url}").resolved()) if each.name == "files"
        )
        assert (found.level, "link.yaml is a symbolic link" in found.what) == ("fail", True)
    assert link.is_symlink()


def test_servers_that_came_or_went_are_named_and_the_others_restored(file: Path) -> None:
    equal = dict.fromkeys(SERVERS, 1)
    now = dict.fromkeys((*SERVERS[:3], "127.0.0.1:9005"), 1)
    with serving(documents(file, equal)) as (url, answers):
        actuator = EnvoyActuator(url)
        first = parse_weights([f"{SERVERS[0]}=5"], Weights.equal(actuator.topology))
        # Envoy shows the restored weight when it is asked whether it has taken it up.
        answers["/clusters"] = [*[shown(now)] * 4, shown({**now, SERVERS[0]: 5})]
        back = actuator.restore(first)
    assert (back.changed, back.missing, back.added) == (True, ("app/127.0.0.1:9004",), ("app/127.0.0.1:9005",))
    assert back.restored == tuple(f"app/{server}" for server in SERVERS[:3])


def test_weights_above_100_come_back_as_they_were(file: Path) -> None:
    equal = dict.fromkeys(SERVERS, 1)
    large = {**equal, SERVERS[0]: 999}
    with serving(documents(file, large)) as (url, answers):
        actuator = EnvoyActuator(url)
        first = actuator.control()
        assert first.values.tolist() == [[100, 1, 1, 1]]
        assert not actuator.apply(first).changed
        answers["/clusters"] = [*[shown(equal)] * 4, shown(large)]
        assert actuator.restore(first).changed
    (resource,) = yaml.safe_load(file.read_text())["resources"]
    assert resource["endpoints"][0]["lbEndpoints"][0]["load_balancing_weight"] == 999


def test_a_cluster_without_a_server_in_rotation_disturbs_no_other(file: Path) -> None:
    equal = dict.fromkeys(SERVERS, 1)
    out = shown({SERVERS[0]: 1}, out=SERVERS[0], name="old")["cluster_statuses"]
    with serving(documents(file, equal)) as (url, answers):
        answers["/clusters"]["cluster_statuses"] += out
        actuator = EnvoyActuator(url)
        assert [group.name for group in actuator.topology.groups] == ["app"]
        assert list(actuator.left_out) == ["old"]
        with pytest.raises(ConfigError, match="every server of old is out of rotation"):
            EnvoyActuator(url, ["app", "old"])
        first = actuator.control()
        answers["/clusters"] = {"cluster_statuses": out}
        assert actuator.restore(first).missing == tuple(f"app/{server}" for server in SERVERS)


@pytest.mark.parametrize("text", ["{}", "resources: 3", "a: [", "resources:\n- {cluster_name: service}\n", "\xff"])
def test_a_file_of_another_form_is_one_line(file: Path, text: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with serving(documents(file, dict.fromkeys(SERVERS, 1))) as (url, _):
        actuator = EnvoyActuator(url)
        with pytest.raises(ActuationError, match=r"cannot be read|has no server") as caught:
            actuator.apply(Weights.equal(actuator.topology, 2))
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == text.encode("latin-1")


@pytest.mark.parametrize("document", [[], {"cluster_statuses": 3}, {"cluster_statuses": [{"host_statuses": []}]}])
def test_another_document_is_one_line(document: object) -> None:
    with serving({"/clusters": document}) as (url, _), pytest.raises(ActuationError, match="of another format"):
        EnvoyActuator(url)


def test_no_envoy_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "get", "--control-url", "envoy:http://127.0.0.1:1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "admin endpoint does not answer" in line
    assert main(["weights", "get", "--control-url", "envoy:127.0.0.1"]) == 2
    assert "is not an HTTP address" in capsys.readouterr().err


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    if why_missing(ENVOY):
        pytest.skip(why_missing(ENVOY))
    with Peer("envoy_least_request", social_network(SERVERS), tmp_path_factory.mktemp("envoy")) as peer:
        yield peer


@pytest.fixture
def actuator(peer: Peer) -> Iterator[EnvoyActuator]:
    url = admin_of(peer.control_url)
    assert url is not None
    found = EnvoyActuator(url)
    first = found.control()
    yield found
    found.restore(first)


def test_clusters_are_groups_and_weights_are_set_and_read_back(actuator: EnvoyActuator) -> None:
    assert [group.name for group in actuator.topology.groups] == ["servers"]
    assert set(actuator.topology.servers) == set(SERVERS)
    assert (actuator.balance, actuator.without_weights()) == ("LEAST_REQUEST", {})
    check_round_trip(actuator, SERVERS)


def test_what_envoy_cannot_take_changes_nothing(actuator: EnvoyActuator, peer: Peer) -> None:
    first = actuator.control()
    with pytest.raises(ActuationError, match="not service times"):
        actuator.apply(ServiceTimes(actuator.topology, np.full((1, 4), 0.1), np.ones(4)))
    with pytest.raises(ActuationError, match="another topology"):
        actuator.apply(Weights.equal(social_network(SERVERS)))
    with pytest.raises(ActuationError, match="send requests to all of them"):
        actuator.apply(parse_weights([f"{server}=down" for server in SERVERS[:3]], first))
    with pytest.raises(ConfigError, match="did you mean 'servers'"):
        EnvoyActuator(admin_of(peer.control_url) or "", ["server"])
    assert actuator.control() == first


def test_the_verbs_read_set_and_check_them(
    actuator: EnvoyActuator, peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    del actuator
    assert main(["weights", "set", f"servers/{SERVERS[0]}=5", "--control-url", peer.control_url]) == 0
    assert main(["weights", "get", "--control-url", peer.control_url]) == 0
    assert f"servers/{SERVERS[0]}=5" in capsys.readouterr().out
    checks = {each.name: each for each in preflight(PreflightOptions(control_url=peer.control_url).resolved())}
    assert (checks["statistics"].level, checks["control"].level, checks["files"].level) == ("ok", "ok", "ok")
    assert json.dumps(checks["source"].what).count("response times per server") == 1
