"""Runs in every Python of a test session: refuses to start a program that the running test has no marker for.

`tests/conftest.py` puts this folder on PYTHONPATH, so that Pythons which a test starts load it by themselves.
The file that DEEPSCHED_TEST_NEEDS names holds the markers of the running test; refusals are appended to
its neighbour with the suffix ``.refused``, because the code under test may handle the exception.
"""

import os
import sys

NEEDS = "DEEPSCHED_TEST_NEEDS"
PROGRAMS = {
    "nginx": "nginx",
    "openresty": "nginx",
    "gcs_server": "ray",
    "raylet": "ray",
    "chromium": "browser",
    "ip": "root",
    "mount": "root",
    "unshare": "root",
    "useradd": "root",
    "userdel": "root",
}
"""Program → the marker of a test that may start it."""
VERSIONS = {"-v", "-V"}
"""`nginx -V` only asks what is installed, and the answer "nothing" is handled."""


def check(event: str, values: tuple[object, ...]) -> None:
    """An audit hook (https://docs.python.org/3/library/audit_events.html)."""
    if event not in ("subprocess.Popen", "os.posix_spawn", "os.exec") or NEEDS not in os.environ:
        return
    words = values[1]
    words = [words] if isinstance(words, (str, bytes)) else list(words)  # type: ignore[call-overload]
    texts = [os.fsdecode(word) if isinstance(word, (str, bytes, os.PathLike)) else "" for word in words]
    if VERSIONS & set(texts):
        return
    for index, text in enumerate(texts):
        folder, _, name = text.rpartition("/")
        if name in PROGRAMS and (is_program(text) if folder else index == 0):
            refuse_unless_marked(PROGRAMS[name], text)


def is_program(path: str) -> bool:
    """Whether it is executable and not a script, with which tests replace programs."""
    if os.path.isdir(path) or not os.access(path, os.X_OK):
        return False
    with open(path, "rb") as file:
        return file.read(2) != b"#!"


def refuse_unless_marked(marker: str, program: str) -> None:
    """Raises PermissionError, and leaves a line, when the running test lacks the marker."""
    path = os.environ[NEEDS]
    with open(path) as file:
        test, *markers = file.read().split()
    if marker in markers:
        return
    message = f"{test} starts {program} without the marker '{marker}'"
    with open(f"{path}.refused", "a") as file:
        print(message, file=file)
    raise PermissionError(message)


sys.addaudithook(check)
