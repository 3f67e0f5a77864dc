"""Credentials in URLs are in no message, file or log."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from actuators.credentials import without_credentials
from actuators.errors import StatusError
from actuators.options import Options
from rayjobs.cli.config import dump_yaml
from rayjobs.runs.folder import RunFolder, command_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@host:1/x", "http://host:1/x"),
        ("at https://me:s@cr@et@[::1]/a@b and http://host/c@d", "at https://[::1]/a@b and http://host/c@d"),
        ("'me:secret@host/status' is not a URL", "'host/status' is not a URL"),
        ("http://token@host", "http://host"),
        ("http://me:secret#1@host:1/x", "http://host:1/x"),
        ("http://me:secret/a?b@host/x", "http://host/x"),
        ("http://host:8081/a@b http://[::1]:80/a@b", "http://host:8081/a@b http://[::1]:80/a@b"),
        ("http://[::1]/a@b", "http://[::1]/a@b"),
        ("group/10.0.0.1:80 upstream@group user@host", "group/10.0.0.1:80 upstream@group user@host"),
    ],
)
def test_they_are_taken_out_of_every_url(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
    error = StatusError(text, where=text, remedy=text, evidence=text)
    assert "secret" not in str(error)
    assert "secret" not in repr(error)


def test_a_run_does_not_record_them(tmp_path: Path) -> None:
    class Reading(Options):
        status_url: str = ""

    url = "http://me:secret@host/status"
    options = Reading(status_url=url)
    assert yaml.safe_load(dump_yaml(options)) == {"status_url": "http://host/status"}
    folder = RunFolder.create(tmp_path, "collect", 1, options, ["--status-url", url, f"--set=a={url}"])
    assert "secret" not in "".join(path.read_text() for path in folder.path.iterdir())
    assert command_line("collect", ["--status-url", url]) == "deepsched collect --status-url http://host/status"
