"""A test that starts NGINX, Ray, a browser or a namespace without the marker fails, wherever it does so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from actuators.errors import ProcessError
from actuators.processes.process import ManagedProcess
from tests.support.needs import take_refusals


@pytest.fixture
def nginx(tmp_path: Path) -> str:
    """Not the real one, but of its name."""
    path = tmp_path / "nginx"
    path.symlink_to("/bin/true")
    return str(path)


def test_without_a_marker_it_is_refused(nginx: str, tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="without the marker 'nginx'"):
        subprocess.run([nginx], check=True)
    assert "test_without_a_marker_it_is_refused" in take_refusals()
    with pytest.raises(ProcessError, match="without the marker 'nginx'"):
        ManagedProcess([nginx, "-c", "x"], name="nginx", log_path=tmp_path / "log")
    assert take_refusals()


def test_without_a_marker_a_child_is_refused_it_and_the_refusal_is_kept(nginx: str) -> None:
    program = f"import subprocess\ntry:\n    subprocess.run([{nginx!r}])\nexcept PermissionError:\n    print('refused')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    assert "test_without_a_marker_a_child" in take_refusals()


def test_to_ask_for_the_version_needs_no_marker(nginx: str) -> None:
    subprocess.run([nginx, "-V"], check=True)
    assert not take_refusals()


@pytest.mark.nginx
def test_with_the_marker_it_starts(nginx: str) -> None:
    subprocess.run([nginx], check=True)
    subprocess.run([sys.executable, "-c", f"import subprocess; subprocess.run([{nginx!r}])"], check=True)
    assert not take_refusals()
