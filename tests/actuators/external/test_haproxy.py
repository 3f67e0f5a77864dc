"""Weights of an HAProxy over its runtime API: answers read; weights set and put back by a real HAProxy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import ServiceTimes, Weights
from actuators.contract.topology import social_network
from actuators.errors import ActuationError, ConfigError
from actuators.external.actuator import ActuatorOptions
from actuators.external.checks import Check
from actuators.external.haproxy import HaproxyActuator, read_states
from actuators.external.preflight import PreflightOptions, preflight
from actuators.haproxy_api import SCHEME, RuntimeApi
from actuators.processes.process import ManagedProcess
from actuators.statistics.reader import CollectOptions
from actuators.testbed.peers import Peer, why_missing
from actuators.testbed.programs import PeerPrograms, program_of
from rayjobs.cli.main import main
from rayjobs.steer.site import external_site
from tests.support.round_trip import check_round_trip

HEAD = (
    "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight"
    " srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state"
    " bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord\n"
)
LINE = "3 servers 1 s1 127.0.0.1 2 {admin} {weight} 1 41 1 0 0 0 0 0 0 - 9001 -\n"
MIXED = """global
  stats socket {socket} mode 600 level admin
defaults
  mode http
  timeout connect 1s
  timeout client 1s
  timeout server 1s
frontend front
  bind {folder}/front
  use_backend fixed if {{ path /fixed }}
  default_backend free
backend free
  balance leastconn
  server s1 127.0.0.1:9001 weight 10
  server s2 127.0.0.1:9002 weight 0
backend fixed
  balance static-rr
  server s1 127.0.0.1:9001 weight 10
  server s2 127.0.0.1:9002 weight 10
backend twice
  server s1 127.0.0.1:9001
  server s2 127.0.0.1:9001
backend gone
  server s1 127.0.0.1:9001 disabled
  server s2 127.0.0.1:9002 weight 0
"""
SERVERS = ("127.0.0.1:9001", "127.0.0.1:9002", "[::1]:9003")


@pytest.mark.parametrize(("admin", "out"), [(0, False), (1, True), (4, False), (5, True), (8, True), (64, False)])
def test_a_line_tells_weight_and_whether_a_server_is_out(admin: int, out: bool) -> None:
    (state,) = read_states(HEAD + LINE.format(admin=admin, weight=7))
    assert (state.backend, state.name, state.address, state.weight, state.out) == (
        "servers", "s1", "127.0.0.1:9001", 7, out,
    )  # fmt: skip


@pytest.mark.parametrize("text", ["", "2\n# be_id\n", "Unknown command", HEAD + "3 servers 1\n", HEAD.replace("#", "")])
def test_another_answer_is_refused(text: str) -> None:
    with pytest.raises(ActuationError, match=r"another format|cannot be read") as caught:
        read_states(text)
    assert "\n" not in str(caught.value)


def test_an_address_of_version_6_has_brackets() -> None:
    (state,) = read_states(HEAD + LINE.format(admin=0, weight=1).replace("127.0.0.1", "::1"))
    assert state.address == "[::1]:9001"


def test_no_socket_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "get", "--haproxy-socket", str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "runtime API does not answer" in line
    assert main(["weights", "get", "--haproxy-socket", "x", "--control-url", "http://127.0.0.1:1/control"]) == 2


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    if why_missing("haproxy_leastconn"):
        pytest.skip(why_missing("haproxy_leastconn"))
    with Peer("haproxy_leastconn", social_network(SERVERS), tmp_path_factory.mktemp("haproxy")) as peer:
        yield peer


@pytest.fixture
def actuator(peer: Peer) -> Iterator[HaproxyActuator]:
    found = HaproxyActuator(peer.control_socket)
    first = found.control()
    yield found
    found.restore(first)


def test_backends_are_groups_and_weights_are_set_and_read_back(actuator: HaproxyActuator) -> None:
    assert [group.name for group in actuator.topology.groups] == ["servers"]
    assert actuator.topology.servers == SERVERS
    check_round_trip(actuator, SERVERS)


def test_what_haproxy_cannot_take_changes_nothing(actuator: HaproxyActuator, peer: Peer) -> None:
    first = actuator.control()
    with pytest.raises(ActuationError, match="not service times"):
        actuator.apply(ServiceTimes(actuator.topology, np.full((1, 3), 0.1), np.ones(3)))
    other = social_network(SERVERS)
    with pytest.raises(ActuationError, match="another topology"):
        actuator.apply(Weights.equal(other))
    with pytest.raises(ActuationError, match="refused 'set server servers/none weight 3'"):
        RuntimeApi(peer.control_socket).order("set server servers/none weight 3")
    with pytest.raises(ConfigError, match="did you mean 'servers'"):
        HaproxyActuator(peer.control_socket, ["server"])
    assert actuator.control() == first


def test_weights_of_another_program_are_scaled_to_ours(actuator: HaproxyActuator, peer: Peer) -> None:
    api = RuntimeApi(peer.control_socket)
    api.order("set server servers/s1 weight 256", "set server servers/s2 weight 128", "set server servers/s3 weight 0")
    shown = actuator.control()
    assert shown.values.tolist() == [[100, 50, 1]]
    assert shown.down.tolist() == [[False, False, True]]
    assert actuator.apply(Weights(actuator.topology, np.array([[1, 2, 3]]), shown.down)).changed
    assert actuator.restore(shown).changed
    assert weights_of(peer) == [256, 128, 0]
    assert not actuator.apply(actuator.control()).changed
    api.order("set server servers/s1 weight 100", "set server servers/s2 weight 50")
    actuator.restore(actuator.control())
    assert weights_of(peer) == [100, 50, 0], "somebody has set these"


def weights_of(peer: Peer) -> list[int]:
    return [state.weight for state in read_states(RuntimeApi(peer.control_socket).ask("show servers state"))]


def test_servers_that_came_or_went_are_named_and_the_others_restored(actuator: HaproxyActuator, peer: Peer) -> None:
    first, api = Weights(actuator.topology, np.array([[5, 3, 2]])), RuntimeApi(peer.control_socket)
    api.ask("set server servers/s3 addr ::1 port 9009")
    try:
        back = actuator.restore(first)
    finally:
        api.ask("set server servers/s3 addr ::1 port 9003")
    assert back.changed
    assert back.restored == tuple(f"servers/{server}" for server in SERVERS[:2])
    assert (back.missing, back.added) == (("servers/[::1]:9003",), ("servers/[::1]:9009",))
    assert weights_of(peer) == [5, 3, 1]


def test_a_backend_without_a_server_in_rotation_stays_so(actuator: HaproxyActuator, peer: Peer) -> None:
    first, api = actuator.control(), RuntimeApi(peer.control_socket)
    api.order(*(f"set server servers/s{index} state maint" for index in (1, 2, 3)))
    try:
        with pytest.raises(ConfigError, match="every server is down"):
            actuator.control()
        back = actuator.restore(first)
        assert (back.changed, back.missing) == (False, tuple(f"servers/{server}" for server in SERVERS))
        assert all(out for _, out in shown(api.ask("show servers state")))
    finally:
        api.order(*(f"set server servers/s{index} state ready" for index in (1, 2, 3)))


def test_the_verb_reads_and_sets_them(
    actuator: HaproxyActuator, peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    del actuator
    where = ["--haproxy-socket", str(peer.control_socket)]
    assert main(["weights", "set", f"servers/{SERVERS[0]}=5", *where]) == 0
    assert main(["weights", "get", *where]) == 0
    assert f"servers/{SERVERS[0]}=5" in capsys.readouterr().out


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of an HAProxy with a backend whose weights cannot be set, after one whose weights can."""
    if why_missing("haproxy_leastconn"):
        pytest.skip(why_missing("haproxy_leastconn"))
    folder = Path(tempfile.mkdtemp(prefix="ds-"))
    socket, config = folder / "control", folder / "haproxy.cfg"
    config.write_text(MIXED.format(folder=folder, socket=socket))
    command = [program_of("haproxy_leastconn", PeerPrograms()), "-db", "-f", str(config)]
    log = tmp_path_factory.mktemp("mixed") / "log"
    with ManagedProcess(command, name="haproxy", log_path=log, remove=folder) as process:
        process.wait_ready(lambda: answers(socket))
        yield socket


def answers(socket: Path) -> bool:
    try:
        return bool(RuntimeApi(socket).ask("show info"))
    except ActuationError:
        return False


def test_a_refused_change_leaves_no_other_behind(mixed: Path) -> None:
    actuator = HaproxyActuator(mixed)
    first, before = actuator.control(), RuntimeApi(mixed).ask("show servers state")
    values = [[3, 1], [5, 7]]
    with pytest.raises(ActuationError, match="refused 'set server fixed/s1 weight 5'"):
        actuator.apply(Weights(actuator.topology, np.array(values), np.array([[True, False], [False, False]])))
    assert actuator.control() == first
    assert shown(RuntimeApi(mixed).ask("show servers state")) == shown(before)


def test_a_refused_change_leaves_a_server_drained_that_its_operator_drains(mixed: Path) -> None:
    api = RuntimeApi(mixed)
    api.order("set server free/s2 weight 10", "set server free/s1 state drain")
    try:
        actuator = HaproxyActuator(mixed)
        with pytest.raises(ActuationError, match="refused 'set server fixed/s1 weight 5'"):
            actuator.apply(Weights(actuator.topology, np.array([[3, 1], [5, 7]]), np.zeros((2, 2), bool)))
        (state,) = (each for each in read_states(api.ask("show servers state")) if (each.backend, each.name) == FIRST)
        assert (state.weight, state.out, state.drained) == (10, True, True)
    finally:
        api.order("set server free/s1 state ready", "set server free/s2 weight 0")


def test_a_server_that_the_configuration_disables_can_be_enabled_and_weighted(mixed: Path) -> None:
    api = RuntimeApi(mixed)
    api.order("set server gone/s1 state ready")
    try:
        actuator = HaproxyActuator(mixed, ["gone"])
        first = actuator.control()
        assert first.down.tolist() == [[False, True]]
        assert actuator.apply(Weights(actuator.topology, np.array([[5, 1]]), first.down)).changed
        states = [state for state in read_states(api.ask("show servers state")) if state.backend == "gone"]
        assert [(state.weight, state.out) for state in states] == [(5, False), (0, False)]
    finally:
        api.order("set server gone/s1 weight 1", "set server gone/s1 state maint")


FIRST = ("free", "s1")


def shown(states: str) -> list[tuple[int, bool]]:
    return [(state.weight, state.out) for state in read_states(states)]


def test_a_server_that_its_operator_drains_by_weight_stays_so(mixed: Path) -> None:
    """`maint` in its place would end sessions that stick to it, and a later weight would not bring it back."""
    actuator = HaproxyActuator(mixed, ["free"])
    first = actuator.control()
    assert first.down.tolist() == [[False, True]]
    assert actuator.apply(Weights(actuator.topology, np.array([[4, 1]]), first.down)).changed
    assert shown(RuntimeApi(mixed).ask("show servers state"))[:2] == [(4, False), (0, False)]
    assert not actuator.apply(Weights(actuator.topology, np.array([[4, 9]]), first.down)).changed
    assert actuator.apply(Weights(actuator.topology, np.array([[4, 9]]), np.zeros((1, 2), bool))).changed
    assert shown(RuntimeApi(mixed).ask("show servers state"))[:2] == [(4, False), (9, False)]
    RuntimeApi(mixed).order("set server free/s1 weight 10", "set server free/s2 weight 0")


def test_odd_backends_disturb_no_other(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = HaproxyActuator(mixed)
    assert [group.name for group in found.topology.groups] == ["free", "fixed"]
    assert list(found.left_out) == ["twice", "gone"]
    assert HaproxyActuator(mixed, ["free"]).left_out == {}
    for name, words in (("twice", "is listed twice in twice"), ("gone", "every server of gone is out of rotation")):
        with pytest.raises(ConfigError, match=words):
            HaproxyActuator(mixed, ["free", name])
    where = ["--haproxy-socket", str(mixed)]
    assert main(["weights", "get", *where]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "free/127.0.0.1:9001=10"
    assert printed.err.count("left out: 127.0.0.1:9001 is listed twice in twice") == 1
    assert printed.err.count("left out: every server of gone is out of rotation") == 1
    assert main(["weights", "set", "gone/127.0.0.1:9001=up", *where]) == 2
    assert "every server of gone is out of rotation" in capsys.readouterr().err


def test_a_site_depends_on_no_other_backend(mixed: Path) -> None:
    url, api = f"{SCHEME}{mixed}", RuntimeApi(mixed)
    model = HaproxyActuator(mixed, ["free"]).topology
    with external_site(model, ActuatorOptions(control_url=url), url, CollectOptions()) as site:
        first = site.control()
        api.order("set server fixed/s1 state maint", "set server fixed/s2 state maint")
        try:
            assert site.control() == first
            api.order("set server free/s1 state maint")
            with pytest.raises(ConfigError, match="every server is down"):
                site.control()
            assert not site.apply(first, restoring=True).changed, "a revert leaves it as it is"
        finally:
            api.order(*(f"set server {name} state ready" for name in ("fixed/s1", "fixed/s2", "free/s1")))


def test_methods_that_weights_cannot_steer_are_told_beforehand(mixed: Path) -> None:
    found = checks_of(mixed)
    assert [each.what for each in found if each.name == "control" and each.level == "warn"] == [
        f"127.0.0.1:9001 is listed twice in twice ({mixed})", f"every server of gone is out of rotation ({mixed})",
    ]  # fmt: skip
    for groups, level in (((), "warn"), (("fixed",), "fail"), (("free", "fixed"), "fail")):
        (methods,) = (each for each in checks_of(mixed, *groups) if each.name == "methods")
        assert methods.level == level
        assert methods.what.startswith("weights cannot steer fixed (static-rr)")
    found = checks_of(mixed, "free")
    assert [each.level for each in found if each.name in ("control", "level", "methods")] == ["ok"] * 3


def checks_of(socket: Path, *groups: str) -> list[Check]:
    return preflight(PreflightOptions(control_url=f"{SCHEME}{socket}", groups=groups).resolved())
