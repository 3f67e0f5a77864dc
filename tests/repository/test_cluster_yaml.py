"""cluster.yaml: what Ray itself checks offline, and what its check lets through."""

import copy
import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

FILE = ROOT / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def ray_accepts(config: dict[str, Any]) -> None:
    """Ray's own validation; private API, pinned with ray in pyproject.toml."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def local_variant() -> dict[str, Any]:
    """The commented blocks for machines of one's own, uncommented."""
    commented = [line.removeprefix("#     ") for line in FILE.read_text().splitlines() if line.startswith("#     ")]
    return yaml.safe_load("\n".join(commented))


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    ray_accepts(cluster)


def test_the_validation_is_not_blind(cluster: dict[str, Any]) -> None:
    broken = copy.deepcopy(cluster) | {"head_node_type": "haed"}
    with pytest.raises(ValueError, match="head_node_type"):
        ray_accepts(broken)


@pytest.mark.parametrize("key", ["cluster_name", "auth", "provider", "head_node_type", "setup_commands"])
def test_says_what_ray_would_silently_default(cluster: dict[str, Any], key: str) -> None:
    assert cluster[key]


def test_node_types_offer_what_testbeds_claim(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert set(types) == {"head", "proxy", "client", "server"}
    for role in ("proxy", "client", "server"):
        assert types[role]["resources"][role] == 1
        others = {"proxy", "client", "server"} - {role}
        assert not others & set(types[role]["resources"]), "a testbed's parts must land on different nodes"
    assert not {"proxy", "client", "server"} & set(types["head"]["resources"])


def test_worker_counts_hold_one_whole_testbed(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    workers = [node for name, node in types.items() if name != "head"]
    assert all(0 < node["min_workers"] <= node["max_workers"] for node in workers)
    assert types["server"]["min_workers"] >= 3
    assert types["head"]["max_workers"] == 0
    assert sum(node["max_workers"] for node in workers) <= cluster["max_workers"]


def test_every_start_command_demands_the_token(cluster: dict[str, Any]) -> None:
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    starts += local_variant()["worker_start_ray_commands"]
    starting = [command for command in starts if "ray start" in command]
    assert len(starting) == 3
    assert all("RAY_AUTH_MODE=token" in command for command in starting)
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_dashboard_stays_on_loopback(cluster: dict[str, Any]) -> None:
    heads = [command for command in cluster["head_start_ray_commands"] if "--head" in command]
    assert heads
    assert all("--dashboard-host=127.0.0.1" in command for command in heads)


def test_local_variant_in_the_comments_is_valid_too(cluster: dict[str, Any]) -> None:
    dropped = ("provider", "head_node_type", "available_node_types")
    config = {key: value for key, value in cluster.items() if key not in dropped} | local_variant()
    assert config["provider"]["type"] == "local"
    ray_accepts(config)


def test_setup_uses_files_and_extras_that_exist(cluster: dict[str, Any]) -> None:
    commands = " ".join([*cluster["setup_commands"], *cluster["head_setup_commands"]])
    root = FILE.parent
    assert all((root / script).is_file() for script in re.findall(r"\./([\w.]+\.sh)", commands))
    for extra in re.findall(r"\.\[(\w+)\]", commands):
        assert f"\n{extra} = [" in (root / "pyproject.toml").read_text()


def test_what_is_not_copied_is_at_the_top_and_no_code(cluster: dict[str, Any]) -> None:
    """rsync leaves out a name without a slash in every folder, as in rayjobs/runs."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for pattern in cluster["rsync_exclude"]:
        assert pattern.startswith("/"), pattern
        assert not [name for name in tracked if f"/{name}".startswith(f"{pattern}/")]


def test_root_leaves_no_file_that_the_user_cannot_write(cluster: dict[str, Any]) -> None:
    """`setup.sh system` runs as root before `setup.sh`; the lock of the second one must be the user's."""
    assert "sudo ./rayjobs/setup.sh system && ./rayjobs/setup.sh" in " ".join(cluster["setup_commands"])
    text = (ROOT / "rayjobs" / "setup.sh").read_text()
    assert text.index('[ "$part" != system ]; then') < text.index("exec 9>.setup.lock")
