"""Files that are whole or absent."""

import os
import stat
from pathlib import Path

import pytest

from actuators.errors import ConfigError
from actuators.files import read_token, replacing, writable_folder, write_atomic, write_json, write_private


def test_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old and longer")
    write_atomic(path, "new")
    assert path.read_text() == "new"
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            assert temporary.suffix == ".parquet"
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_is_as_readable_as_other_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "x", "y")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_secret_is_private_from_its_first_byte(tmp_path: Path) -> None:
    path, other = tmp_path / "token", tmp_path / "other"
    other.write_text("of somebody")
    other.chmod(0o644)
    path.symlink_to(other)
    before = os.umask(0)
    try:
        with replacing(path, private=True) as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        write_private(path, "secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert path.read_text() == "secret"
    assert other.read_text() == "of somebody"
    assert stat.S_IMODE(other.stat().st_mode) == 0o644


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "no" / "x", "y")


def test_json_without_words_for_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, None]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'


def test_a_folder_is_made_and_proved(tmp_path: Path) -> None:
    folder = writable_folder(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write in this folder"):
        writable_folder(tmp_path / place)


def test_files_that_are_no_secret_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"

    def refusal() -> str:
        with pytest.raises(ConfigError) as error:
            read_token(path)
        assert str(path) in error.value.where
        return f"{error.value.what}; {error.value.remedy}"

    assert refusal() == (
        f"cannot read the token: No such file or directory; make it: (umask 077; openssl rand -base64 24 > {path})"
    )
    path.touch(0o600)
    assert "not one word of 16 characters" in refusal()
    path.write_text("two words of more than 16 characters\n")
    assert "not one word of 16 characters" in refusal()
    path.write_text("ä" * 20)
    assert "beyond ASCII" in refusal()
    path.write_text("x" * 10_000)
    assert "cannot read the token: larger than 4096 bytes" in refusal()
    path.write_text("a-token-of-this-length\n")
    for mode in (0o644, 0o604, 0o660, 0o602):
        path.chmod(mode)
        assert refusal() == f"others may read or change the token (mode {mode:04o}); chmod 600 {path}"
    for mode in (0o600, 0o400, 0o640):
        path.chmod(mode)
        assert read_token(path) == "a-token-of-this-length"
    path.unlink()
    path.mkdir()
    assert "cannot read the token: Is a directory" in refusal()
    path.rmdir()
    os.mkfifo(path, 0o600)
    assert "cannot read the token: not a regular file" in refusal()


@pytest.mark.usefixtures("root_only")
def test_the_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text("a-token-of-this-length\n")
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to another user"):
        read_token(path)
