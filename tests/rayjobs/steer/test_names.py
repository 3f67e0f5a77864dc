"""Host names with several addresses in front of a real NGINX; names that are not one to one stop before anything."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.contract.topology import social_network
from actuators.external.actuator import ActuatorOptions
from actuators.files import write_private
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.statistics.reader import CollectOptions
from rayjobs.cli.main import main
from rayjobs.steer.site import external_site
from tests.support.disasters import host_name
from tests.support.http_server import ScriptedServer
from tests.support.nginx_site import running_site
from tests.support.steer_scripted import Scripted, fixed_options
from tests.support.steering_cases import trained_bundle
from tuning.steering.audit import replay

pytestmark = pytest.mark.nginx

REQUESTS = 300


@pytest.mark.parametrize("actuation", ["reload", "memory"])
def test_a_name_with_two_addresses_gets_the_share_that_was_decided(
    short_dir: Path, actuation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By reload the name has one weight, which NGINX gives to each address; in memory each address has its own."""
    # An NGINX of ours has addresses only; this one stands for somebody else's.
    monkeypatch.setattr("actuators.nginx.instance.check_topology", lambda _: None)
    with ExitStack() as stack:
        stack.enter_context(host_name(short_dir, "two.test", "127.0.0.1", "127.0.0.2"))
        two, one = (stack.enter_context(ScriptedServer(host=host)) for host in ("0.0.0.0", "127.0.0.1"))
        port = two.address.rpartition(":")[2]
        options = NginxOptions.model_validate({"method": "round_robin", "actuation": actuation})
        named = social_network((f"two.test:{port}", one.address))
        nginx = stack.enter_context(Nginx(options, named, work_dir=short_dir))
        nginx.start()
        upstreams = short_dir / "nginx" / "upstreams.conf"
        before = upstreams.read_text()
        write_private(short_dir / "token", nginx.token)
        way = (
            {"reload": {"config": short_dir / "nginx" / "nginx.conf", "status_url": nginx.status_url,
                        "min_reload_interval_s": 0.0}}
            if actuation == "reload"
            else {"control_url": nginx.control_url, "token_file": short_dir / "token"}
        )  # fmt: skip
        reached = ActuatorOptions.model_validate(way)
        opened = external_site(social_network(), reached, nginx.status_url, CollectOptions())
        site = replace(stack.enter_context(opened), address=nginx.address)
        wanted = [40, 60] if actuation == "reload" else [20, 20, 60]
        policy = Weights(site.topology.plain, np.tile(wanted, (3, 1)))
        drill = Scripted(site, [two, one], policy, short_dir / "steer", fixed_options("shadow"))
        assert drill.shares(REQUESTS) == pytest.approx([2 / 3, 1 / 3], abs=2 / REQUESTS)
        step = drill.step()
        assert step.line["window"]["weight"][1] == ([100, 50] if actuation == "reload" else [1, 1, 1]), "as shares"
        drill.folder.order(mode="active")
        drill.until(lambda step: step.applied and step.decision.source == "policy")
        status = drill.folder.status()
        assert status["weights"][1] == ([33, 100] if actuation == "reload" else [33, 33, 100])
        assert status["shares"][1] == pytest.approx(np.array(wanted) / 100, abs=0.005)
        assert drill.shares(REQUESTS) == pytest.approx([0.4, 0.6], abs=0.005 + 2 / REQUESTS)
        assert not drill.step().applied, "what was decided is in force"
        assert site.changed() == ""
        drill.folder.order(override="reverted")
        drill.until(lambda step: step.applied)
        assert upstreams.read_text() == before
        assert drill.shares(REQUESTS) == pytest.approx([2 / 3, 1 / 3], abs=2 / REQUESTS)
    assert [one.line["reason"] for one in replay(drill.folder.audit) if not one.same] == []


def test_names_that_are_not_one_to_one_stop_everything_before_it_starts(
    short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_bundle().save(short_dir / "bundle")
    with running_site(short_dir, NginxOptions(method="round_robin", actuation="reload")) as site:
        theirs, config = site.servers[0].address, short_dir / "theirs.conf"
        port = theirs.rpartition(":")[2]
        upstreams = " ".join(
            f"upstream {group.name} {{ server {theirs}; server localhost:{port}; }}" for group in site.topology.groups
        )
        config.write_text(f"events {{}} http {{ {upstreams} }}")
        before, status = config.read_bytes(), site.nginx.status_url
        run = ["run", "--bundle", f"{short_dir}/bundle", "--nginx-conf", str(config), "--status-url", status,
               "--folder", f"{short_dir}/steer", "--mode", "active"]  # fmt: skip
        change = ["set", f"{theirs}=7", "--set", f"reload.config={config}", "--set", f"reload.status_url={status}"]
        for words in (["steer", *run], ["weights", *change]):
            assert main(words) == 2
            told = capsys.readouterr().err
            assert f"the statistics of compose_backend show no entry that is localhost:{port} (and 2 more)" in told
            assert told.count("\n") == 1
        assert config.read_bytes() == before
        assert not (short_dir / "steer" / "original.json").exists()
