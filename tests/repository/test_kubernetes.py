"""The Kubernetes files fit KubeRay's own schemas, this version, and what `deepsched serve --print-config` prints."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayjobs.cli.main import main
from tests.support.paths import ROOT
from tests.support.steering_cases import trained_bundle

FOLDER = ROOT / "docs" / "kubernetes"
CRDS = os.environ.get("DEEPSCHED_KUBERAY_CRDS", "")
"""Folder with `ray-operator/config/crd/bases` of KubeRay (docs/kubernetes/index.md)."""
STATE = "/srv/deepsched"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


FILES = ("raycluster.yaml", "rayjob.yaml", "rayservice.yaml")


@pytest.mark.skipif(not CRDS, reason="set DEEPSCHED_KUBERAY_CRDS to the folder of KubeRay's CRDs")
@pytest.mark.parametrize("name", FILES)
def test_kuberay_takes_it(name: str) -> None:
    from jsonschema import Draft7Validator

    first, *_ = documents(name)
    crd = yaml.safe_load((Path(CRDS) / f"ray.io_{first['kind'].lower()}s.yaml").read_text())
    (version,) = [v for v in crd["spec"]["versions"] if f"{crd['spec']['group']}/{v['name']}" == first["apiVersion"]]
    schema = closed(version["schema"]["openAPIV3Schema"])
    wrong = sorted(Draft7Validator(schema).iter_errors(first), key=str)
    assert [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in wrong] == []


def closed(schema: Any) -> Any:
    """The API server drops fields that a schema does not have, without a word; here they are errors."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if made.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    if made.pop("nullable", False) and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def test_they_name_this_version_and_one_image() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    (ray,) = set(re.findall(r'"ray\[[^]]*\]==([\d.]+)"', project))
    (version,) = re.findall(r'^version = "([\d.]+)"', project, re.MULTILINE)
    text = "".join((FOLDER / name).read_text() for name in FILES)
    assert set(re.findall(r'rayVersion: "([\d.]+)"', text)) == {ray}
    assert set(re.findall(r"image: (\S+)", text)) == {f"deep-scheduling:{version}"}
    assert f"-t deep-scheduling:{version} " in (FOLDER / "Dockerfile").read_text()


def test_every_volume_that_is_mounted_is_there() -> None:
    for name in FILES:
        first, *_ = documents(name)
        for pod in pods(first):
            volumes = {volume["name"] for volume in pod.get("volumes", ())}
            assert {mount["name"] for each in pod["containers"] for mount in each.get("volumeMounts", ())} <= volumes


def pods(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, list):
        return [pod for each in node for pod in pods(each)]
    if not isinstance(node, dict):
        return []
    return ([node] if "containers" in node else []) + [pod for value in node.values() for pod in pods(value)]


def test_the_service_is_what_serve_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained_bundle().save(tmp_path / "bundles" / "current")
    for role in ("admin", "order", "read"):
        path = tmp_path / "tokens" / role
        path.parent.mkdir(exist_ok=True)
        path.touch(0o600)
        path.write_text(f"a-token-for-{role}s")
    words = ["serve", f"{tmp_path}/bundles/current", "--host", "0.0.0.0", "--folder", f"{tmp_path}/serve",
             "--steer-folder", f"{tmp_path}/steer", "--max-replicas", "3", "--cpus", "1",
             "--token-file", f"{tmp_path}/tokens/admin", "--order-token-file", f"{tmp_path}/tokens/order",
             "--read-token-file", f"{tmp_path}/tokens/read", "--print-config"]  # fmt: skip
    assert main(words) == 0
    printed = yaml.safe_load(capsys.readouterr().out.replace(str(tmp_path), STATE))
    (application,) = printed["applications"]
    application["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    printed["proxy_location"] = "EveryNode"
    service, *_ = documents("rayservice.yaml")
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == printed
