"""Another user of the machine, a real one: reads nothing of ours, and what it plants or runs is passed over."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rayjobs.cli.main import main
from rayjobs.runs.local_ray import LocalRay, running_heads, sweep_stale_folders
from rayjobs.serve.options import ServeOptions, make_settings
from tests.support.orphans import MARKER as SESSION_MARKER
from tests.support.orphans import SESSION
from tests.support.paths import ROOT
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import PATIENCE_S
from tuning.steering.audit import append_line

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("root_only")]


BECOME = """
if [ -n "$1" ]; then
  mount --bind "$2" "$3"
  mount -t tmpfs -o mode=755 deepsched-test "$1"
  mkdir -p "$2"
  mount --move "$3" "$2"
fi
umask 0
user=$4 group=$5
shift 5
exec setpriv --reuid="$user" --regid="$group" --clear-groups "$@"
"""
"""In a mount namespace of its own, where a Python below a closed folder, as /root, can be reached by others."""


class Stranger:
    """A user that the test created; `place` is a folder that it can enter."""

    def __init__(self, user: pwd.struct_passwd, place: Path) -> None:
        self.user, self.home, self._stash = user, place / "home", place / "stash"
        self.home.mkdir(mode=0o700)
        os.chown(self.home, user.pw_uid, user.pw_gid)
        self._stash.mkdir()
        assert not _closed(ROOT), "this checkout is below a folder that other users cannot enter"

    def start(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        """Python code of that user, with this checkout and the same folder for temporary files."""
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.home), "TMPDIR": tempfile.gettempdir(),
            "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", SESSION_MARKER: SESSION,
        }  # fmt: skip
        become = [_closed(Path(sys.base_prefix)), sys.base_prefix, str(self._stash)]
        who = [str(self.user.pw_uid), str(self.user.pw_gid)]
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", BECOME, "sh", *become, *who]
        return subprocess.Popen(
            [*command, sys.executable, "-c", code, *arguments], env=environment, cwd=self.home, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, code: str, *arguments: str) -> str:
        """What that code prints; it must succeed."""
        with self.start(code, *arguments) as process:
            out, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
        return out


def _closed(path: Path) -> str:
    """The folder on the way to it that other users cannot enter; empty when they can."""
    way = (*reversed(path.resolve().parents), path.resolve())
    return next((str(folder) for folder in way if not folder.stat().st_mode & 0o001), "")


ASK = """
import contextlib, io, sys
from rayjobs.cli.main import main
with contextlib.redirect_stderr(io.StringIO()) as told:
    status = main(["steer", sys.argv[2], "--folder", sys.argv[1]])
print(status, told.getvalue(), end="")
"""


@pytest.mark.parametrize("verb", ["status", "revert"])
def test_the_folder_of_another_users_controller_is_told(place: Path, stranger: Stranger, verb: str) -> None:
    """As of a service, which runs as its own user."""
    folder = place / "steer"
    folder.mkdir(mode=0o700)
    told = stranger.run(ASK, str(folder), verb)
    assert told.startswith("2 deepsched steer")
    assert told.count("\n") == 1
    assert f"sudo -u '#{os.getuid()}'" in told


@pytest.fixture
def place(short_dir: Path) -> Path:
    """A folder that every user can enter."""
    short_dir.chmod(0o755)
    return short_dir


@pytest.fixture
def stranger(place: Path, root_only: None) -> Iterator[Stranger]:
    name = f"ds-test-{os.getpid()}"
    subprocess.run(["useradd", "--no-create-home", "--no-log-init", name], check=True, timeout=60)
    try:
        yield Stranger(pwd.getpwnam(name), place)
    finally:
        subprocess.run(["userdel", name], check=True, timeout=60)


@pytest.fixture
def shared(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary folders, which every user may write."""
    folder = place / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


LOOK = """
import os, sys
for folder, folders, files in os.walk(sys.argv[1], onerror=lambda error: None):
    for name in folders + files:
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.R_OK) or os.access(path, os.W_OK):
            print(path)
"""


@pytest.mark.nginx
def test_state_and_tokens_are_for_their_user_only(place: Path, stranger: Stranger) -> None:
    made = place / "made"
    before = os.umask(0)
    try:
        made.mkdir()
        trained_bundle().save(place / "bundle")
        words = ["--bundle", str(place / "bundle"), "--folder", str(made / "steer"), "--duration-s", "2"]
        assert main(["steer", "run", *words]) == 0
        make_settings(ServeOptions(bundle=place / "bundle", folder=made / "serve"))
        words = ["--out", str(made / "runs"), "--set", "observe.duration_s=40", "--set", "observe.explore_s=20"]
        assert main(["observe", *words, "--testbed", "simulated"]) == 0
    finally:
        os.umask(before)
    made.chmod(0o755)
    names = {path.name for path in made.rglob("*")}
    assert {"token", "audit.jsonl", "original.json", "access.json", "encoder.npz"} <= names
    assert stranger.run(LOOK, str(made)) == ""
    (made / "open").touch(mode=0o666)
    assert stranger.run(LOOK, str(made)) == f"{made / 'open'}\n", "the look sees what is open"


PLANT = """
import os, sys
shared, own = sys.argv[1:]
def planted(name, owner):
    folder = os.path.join(shared, "deepsched-ray-" + name)
    os.makedirs(os.path.join(folder, "ray"), mode=0o777)
    open(os.path.join(folder, "owner"), "w").write(owner)
    return os.path.join(folder, "ray", "ray_current_cluster")
open(planted("live", str(os.getppid())), "w").write("127.0.0.1:9")
open(planted("dead", "4194303"), "w").write("127.0.0.1:9")
os.mkfifo(planted("fifo", str(os.getppid())))
os.symlink(own, os.path.join(shared, "deepsched-ray-link"))
open(os.path.join(shared, "deepsched-ray-file"), "w").write("not a folder")
"""


@pytest.fixture
def no_controllers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other tests that run at the same time are not listed."""
    monkeypatch.setattr("rayjobs.testbeds.controllers", list)


@pytest.mark.usefixtures("no_controllers")
def test_what_it_planted_is_passed_over_in_silence(
    place: Path, shared: Path, stranger: Stranger, capfd: pytest.CaptureFixture[str]
) -> None:
    ours = place / "ours"
    ours.mkdir()
    append_line(ours / "audit.jsonl", {"kind": "decision"})
    (ours / "owner").write_text("4194303")
    stranger.run(PLANT, str(shared), str(ours))
    before = sorted(path.relative_to(shared) for path in shared.rglob("*"))
    assert len(before) == 14
    capfd.readouterr()
    assert main(["testbeds"]) == 0
    sweep_stale_folders()
    assert running_heads() == []
    said = capfd.readouterr()
    assert (said.out.strip(), said.err.strip()) == ("no testbed is running", "")
    assert sorted(path.relative_to(shared) for path in shared.rglob("*")) == before
    assert (ours / "audit.jsonl").exists()


HEAD = """
import sys
from rayjobs.runs.local_ray import local_ray
with local_ray(cpus=1) as ray:
    print(ray.folder, flush=True)
    sys.stdin.read()
"""
HEADS = "from rayjobs.runs.local_ray import running_heads; print(running_heads())"


@contextmanager
def head_of(stranger: Stranger) -> Iterator[Path]:
    with stranger.start(HEAD) as process:
        assert process.stdout is not None
        folder = process.stdout.readline().strip()
        try:
            assert folder, process.communicate(timeout=PATIENCE_S)[1]
            yield Path(folder)
        finally:
            _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors


@pytest.mark.ray
@pytest.mark.usefixtures("no_controllers")
def test_neither_user_joins_the_others_ray(shared: Path, stranger: Stranger, capfd: pytest.CaptureFixture[str]) -> None:
    with head_of(stranger) as theirs:
        assert theirs.stat().st_uid == stranger.user.pw_uid
        assert (theirs / "ray" / "ray_current_cluster").read_text(), "root could join it"
        assert running_heads() == []
        capfd.readouterr()
        assert main(["testbeds"]) == 0
        assert capfd.readouterr().out.strip() == "no testbed is running"
    assert not theirs.exists()
    ours = LocalRay(cpus=1)
    try:
        ours.wait_ready(lambda: ours.folder in running_heads())
        assert stranger.run(HEADS).strip() == "[]"
        with stranger.start("import sys; open(sys.argv[1])", str(ours.folder / "token")) as reading:
            _, errors = reading.communicate(timeout=PATIENCE_S)
        assert "PermissionError" in errors
    finally:
        ours.close()
