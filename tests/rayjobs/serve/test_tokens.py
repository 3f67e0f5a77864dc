"""Whose token allows what: read, order and admin are different, on both fronts and in the printed file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rayjobs.cli.main import main
from rayjobs.serve.gate import GateRules, route_path
from rayjobs.serve.options import ServeOptions, make_settings
from rayjobs.serve.ray_app import settings_args, settings_of
from rayjobs.serve.tokens import ROLES, Tokens
from rayjobs.steer.advisers import http_post
from tests.support.served import TOKENS, Served, role_files, served_bundles
from tests.support.steering_cases import trained_bundle
from tests.support.windows import window
from tuning.steering import window_json

BODY = {"windows": [window_json.to_json(window())]}
READS = ("/v1/policy", "/v1/live", "/v1/history", "/metrics", "/openapi.json")
PAGES = ("/", "/page.js", "/docs", "/healthz")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tokens")
    yield from served_bundles(folder, "uvicorn", **role_files(folder, "order", "read"))


def statuses(served: Served, token: str | None) -> dict[str, int]:
    """What each kind of request is answered with this token."""
    return {
        "page": max(served.get(path, token).status_code for path in PAGES),
        "read": max(served.get(path, token).status_code for path in READS),
        "decide": served.post("/v1/weights", BODY, token).status_code,
        # 422: allowed, but no controller has run there.
        "order": served.post("/v1/orders", {"override": "paused"}, token).status_code,
        "swap": served.post("/v1/bundles", {"path": "first"}, token).status_code,
    }


@pytest.mark.parametrize("token", [None, "", "wrong", "the-token-for-order", "the-token-for-orders2", "é" * 20])
def test_nobody_gets_pages_only(served: Served, token: str | None) -> None:
    if token is not None:
        token = token.encode().decode("latin-1")
    assert statuses(served, token) == {"page": 200, "read": 401, "decide": 401, "order": 401, "swap": 401}
    refused = served.get("/v1/policy", token)
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["detail"] == (
        "a bearer token is needed: that of --read-token-file or --order-token-file or --token-file"
    )


def test_each_role_may_what_those_below_it_may(served: Served) -> None:
    assert statuses(served, TOKENS["read"]) == {"page": 200, "read": 200, "decide": 403, "order": 403, "swap": 403}
    assert statuses(served, TOKENS["order"]) == {"page": 200, "read": 200, "decide": 200, "order": 422, "swap": 403}
    assert statuses(served, served.token) == {"page": 200, "read": 200, "decide": 200, "order": 422, "swap": 200}


def test_a_refusal_names_the_token_that_is_needed(served: Served) -> None:
    ordered = served.post("/v1/orders", {}, TOKENS["read"])
    assert ordered.json()["detail"] == (
        "the token of --read-token-file does not allow this; it needs that of --order-token-file or --token-file"
    )
    assert ordered.headers["www-authenticate"] == 'Bearer error="insufficient_scope"'
    swapped = served.post("/v1/bundles", {}, TOKENS["order"])
    assert swapped.json()["detail"] == (
        "the token of --order-token-file does not allow this; it needs that of --token-file"
    )


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_no_way_around(served: Served, method: str) -> None:
    import requests

    for path in ("/v1/bundles", "/v1/orders", "//v1/bundles", "/v1/bundles/"):
        assert requests.request(method, served.url + path, timeout=30).status_code == 401


@pytest.mark.parametrize("path", ["/v1/orders", "/v1/bundles", "/v1/weights", "/v1/policy"])
@pytest.mark.parametrize("end", ["%0A", "%0D", "%00", "%0A%0A"])
def test_a_path_that_ends_in_a_line_feed_is_no_way_around(served: Served, path: str, end: str) -> None:
    """Routes end in `$`, which also matches before one."""
    for answered in (served.post(f"{path}{end}", {"override": "paused"}, None), served.get(f"{path}{end}")):
        assert (answered.status_code, answered.json()["detail"]) == (400, "the path has a control character")


@pytest.mark.parametrize(
    ("path", "root", "route"),
    [
        ("/x/v1/orders", "/x", "/v1/orders"), ("/v1/orders", "", "/v1/orders"), ("/x", "/x", ""),
        ("/xy/v1/orders", "/x", "/xy/v1/orders"), ("/v1/orders", "/x", "/v1/orders"),
    ],
)  # fmt: skip
def test_the_prefix_under_which_it_is_served_is_no_way_around(path: str, root: str, route: str) -> None:
    assert route_path({"path": path, "root_path": root}) == route


def test_the_scheme_is_bearer(served: Served) -> None:
    for scheme, status in (("Bearer", 200), ("bearer", 200), ("Basic", 401), ("", 401)):
        headers = {"Authorization": f"{scheme} {TOKENS['read']}".strip()}
        assert served.get("/v1/policy", headers=headers).status_code == status


def test_a_controller_asks_with_the_token_for_orders(served: Served) -> None:
    assert http_post(served.url, TOKENS["order"], 30.0)(BODY)["weights"]
    with pytest.raises(ValueError, match=r"status 403: .*it needs that of --order-token-file"):
        http_post(served.url, TOKENS["read"], 30.0)(BODY)


def test_the_description_names_the_tokens(served: Served) -> None:
    document = served.get("/openapi.json", served.token).json()
    assert set(document["components"]["securitySchemes"]) == set(ROLES)
    needed = {path: methods[next(iter(methods))]["security"] for path, methods in document["paths"].items()}
    assert needed["/healthz"] == []
    assert needed["/v1/live"] == [{"read": []}, {"order": []}, {"admin": []}]
    assert needed["/v1/weights"] == needed["/v1/orders"] == [{"order": []}, {"admin": []}]
    assert needed["/v1/bundles"] == [{"admin": []}]


def test_on_loopback_data_and_decisions_are_open_without_a_token_for_reading(tmp_path: Path) -> None:
    for served in served_bundles(tmp_path, "uvicorn", **role_files(tmp_path, "order")):
        assert statuses(served, None) == {"page": 200, "read": 200, "decide": 200, "order": 401, "swap": 401}
        assert served.post("/v1/bundles", {"path": "first"}, TOKENS["order"]).status_code == 403
        document = served.get("/openapi.json").json()
        assert document["paths"]["/v1/weights"]["post"]["security"] == []
        assert document["paths"]["/v1/orders"]["post"]["security"] == [{"order": []}, {"admin": []}]


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray_the_same_tokens_allow_the_same(short_dir: Path) -> None:
    for served in served_bundles(short_dir, "ray", **role_files(short_dir, "order", "read")):
        test_nobody_gets_pages_only(served, "wrong")
        test_each_role_may_what_those_below_it_may(served)


def test_the_printed_file_names_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained_bundle().save(tmp_path / "bundle")
    given = role_files(tmp_path, "order", "read")
    words = [f"--{name.replace('_', '-')}={path}" for name, path in given.items()]
    assert main(["serve", str(tmp_path / "bundle"), "--folder", str(tmp_path / "state"), *words, "--print-config"]) == 0
    text = capsys.readouterr().out
    assert not [token for token in TOKENS.values() if token in text]
    args = yaml.safe_load(text)["applications"][0]["args"]
    settings = make_settings(ServeOptions(bundle=tmp_path / "bundle", folder=tmp_path / "state", **given))
    assert settings_of(args).rules == settings.rules == settings_of(settings_args(settings)).rules
    assert (settings.rules.tokens.order, settings.rules.tokens.read) == (TOKENS["order"], TOKENS["read"])
    # Files that 0.1.0 printed name one token only.
    del args["rules"]["order_token_file"], args["rules"]["read_token_file"]
    assert settings_of(args).rules.tokens == Tokens(settings.rules.tokens.admin)


def test_two_roles_with_one_token_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained_bundle().save(tmp_path / "bundle")
    same = role_files(tmp_path, "order")["order_token_file"]
    words = ["serve", str(tmp_path / "bundle"), "--folder", str(tmp_path / "state"), "--order-token-file", str(same)]
    assert main([*words, "--read-token-file", str(same)]) == 2
    error = capsys.readouterr().err
    assert "the same token as that of --read-token-file (--order-token-file); give each its own" in error
    assert error.count("\n") == 1


def test_no_token_is_nobodys() -> None:
    assert Tokens("admin-token").role_of(b"") is None
    rules = GateRules(Tokens("admin-token", read="read-token"), False, 1024)
    assert json.dumps([rules.needed("/v1/orders", method) for method in ("POST", "GET")]) == '["order", "read"]'
