"""The user's proxy and its commands; which proxies there are; refusals in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from actuators.errors import ActuationError, ConfigError, MissingToolError
from actuators.testbed.peers import why_missing
from rayjobs.cli.main import main
from rayjobs.contract.options import ContractOptions
from rayjobs.contract.proxies import GivenProxy, address_of, names_of
from rayjobs.contract.suite import check_load


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://proxy.example:8080/", "proxy.example:8080"),
        ("http://[::1]:80", "[::1]:80"),
        ("http://127.0.0.1", "127.0.0.1:80"),
    ],
)
def test_the_address_of_a_proxy(url: str, address: str) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize("url", ["127.0.0.1:80", "https://127.0.0.1", "http://h/path", "http://h:x", "http://h:70000"])
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="give http://HOST:PORT"):
        address_of(url)


def test_commands_get_the_weights_and_their_failure_is_told(tmp_path: Path) -> None:
    told = tmp_path / "told"
    write = f"{sys.executable} -c \"import sys; open(sys.argv[1], 'w').write(sys.argv[2])\" {told} w={{weights}}"
    proxy = GivenProxy("http://127.0.0.1:1", write, f"{sys.executable} -c \"import sys; sys.exit('cannot')\"")
    proxy.set_weights([10, 1, 1])
    assert told.read_text() == "w=10,1,1"
    with pytest.raises(ActuationError, match=r"ended with 1.*cannot"):
        proxy.reload()
    assert not proxy.without_weights
    assert not proxy.without_reload


def test_without_commands_there_is_a_reason() -> None:
    proxy = GivenProxy("http://127.0.0.1:1", "", "")
    assert "--weights-command" in proxy.without_weights
    assert "--reload-command" in proxy.without_reload


def test_names_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert names_of(["expected_delay", "least_conn"]) == ("expected_delay", "least_conn")
    assert names_of([])[0] == "expected_delay"
    assert not any(why_missing(name) for name in names_of([])[1:])
    with pytest.raises(ConfigError, match="did you mean 'expected_delay'"):
        names_of(["expected_dealy"])
    monkeypatch.setattr("rayjobs.contract.proxies.why_missing", lambda name: "not there")
    with pytest.raises(MissingToolError, match="not there"):
        names_of(["caddy_least_conn"])


FOUR = "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3,127.0.0.1:4"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--proxy", "https://h"], "give http://HOST:PORT"),
        (["--proxy", "http://127.0.0.1:1", "--servers", "10.0.0.1:1,127.0.0.1:2,127.0.0.1:3,127.0.0.1:4"], "loopback"),
        (["--proxy", "http://127.0.0.1:1", "--servers", "127.0.0.1:1,127.0.0.1:1,127.0.0.1:3,127.0.0.1:4"], "twice"),
        (["--proxy", "http://127.0.0.1:1", "--servers", "127.0.0.1:1"], "servers"),
        (["--proxy", "http://127.0.0.1:1", "--weights-command", "set 1"], "{weights}"),
        (["--proxy", "http://127.0.0.1:1", "--reload-command", "'"], "not a command"),
        (["--reload-command", "true"], "no effect without proxy"),
        (["--proxies", "nginx131"], "unknown proxy"),
        (["--proxy", "http://127.0.0.1:1", "--servers", FOUR], "give --rate-rps 400 or less, or --workers 10 or more"),
        (
            ["--proxy", "http://127.0.0.1:1", "--servers", FOUR, "--workers", "1", "--rate-rps", "200"],
            "are 140% of what 3 of the 4 servers can do, more than 70% (rate_rps); give --workers 2 or more",
        ),
        (["--workers", "1"], "give --rate-rps 300 or less, or --workers 4 or more"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["contract", *words, "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("deepsched contract: ")
    assert told in line


def test_the_stand_carries_what_is_sent_by_default_and_what_the_refusal_says_would_fit() -> None:
    chosen = ContractOptions()
    check_load(len(chosen.servers), chosen.workers, chosen.rate_rps)
    check_load(4, 4, 400.0)
    check_load(4, 10, 1000.0)
    with pytest.raises(ConfigError):
        check_load(4, 4, 401.0)
