"""Which bundle is served: replicas follow one pointer, a start serves its own bundle, a torn pointer is recovered."""

from __future__ import annotations

from pathlib import Path

import pytest

from actuators.errors import BundleError, ConflictError
from rayjobs.serve import bundles
from rayjobs.serve.bundles import BundleStore, serve_anew
from tests.support.steering_cases import trained_bundle


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for name, seed in (("first", 0), ("second", 1), ("third", 2)):
        trained_bundle(seed=seed).save(folder / name)
    return folder


def replica(root: Path, state: Path, bundle: str = "first") -> BundleStore:
    return BundleStore((root / bundle).resolve(), root.resolve(), state)


def test_every_replica_follows_a_swap_also_one_that_starts_later(root: Path, tmp_path: Path) -> None:
    one, other = replica(root, tmp_path), replica(root, tmp_path)
    one.swap(root / "second")
    assert {each.in_use().bundle.folder.name for each in (one, other, replica(root, tmp_path))} == {"second"}
    other.rollback()
    assert one.in_use().bundle.folder.name == "first"
    assert one.in_use().served.previous == (root / "second").resolve()


def test_a_replica_that_has_not_followed_remembers_what_was_served(root: Path, tmp_path: Path) -> None:
    one, other = replica(root, tmp_path), replica(root, tmp_path)
    one.swap(root / "second")
    other.swap(root / "third")
    before = other.in_use().before
    assert before is not None
    assert {before.folder, other.in_use().served.previous} == {(root / "second").resolve()}
    one.rollback()
    assert other.in_use().bundle.folder.name == "second"


def test_another_start_serves_its_own_bundle(root: Path, tmp_path: Path) -> None:
    replica(root, tmp_path).swap(root / "second")
    assert replica(root, tmp_path, "third").in_use().bundle.folder.name == "third"
    replica(root, tmp_path, "third").swap(root / "second")
    serve_anew(tmp_path)
    again = replica(root, tmp_path, "third")
    assert again.in_use().bundle.folder.name == "third"
    with pytest.raises(BundleError, match="no previous bundle"):
        again.rollback()


@pytest.mark.parametrize("torn", [b"", b'{"version": 2, "curr', b"[]", b'{"current": 7}'])
def test_a_torn_pointer_is_recovered_from(root: Path, tmp_path: Path, torn: bytes) -> None:
    one = replica(root, tmp_path)
    one.swap(root / "second")
    (tmp_path / "served.json").write_bytes(torn)
    assert one.in_use().bundle.folder.name == "second"
    assert replica(root, tmp_path).in_use().bundle.folder.name == "second"
    for name in ("served.json", ".served.json.good"):
        (tmp_path / name).write_bytes(torn)
    assert one.in_use().bundle.folder.name == "second"
    assert replica(root, tmp_path).in_use().bundle.folder.name == "first"


def test_a_bundle_before_that_no_path_can_be_is_none(root: Path, tmp_path: Path) -> None:
    one = replica(root, tmp_path)
    one.swap(root / "second")
    pointer = tmp_path / "served.json"
    first = str((root / "first").resolve())
    pointer.write_text(pointer.read_text().replace(f'"previous": "{first}"', '"previous": "a\\u0000b"'))
    assert "u0000" in pointer.read_text()
    present = replica(root, tmp_path).in_use()
    assert (present.bundle.folder.name, present.before) == ("second", None)


def test_of_two_swaps_at_once_one_learns_that_it_lost(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = replica(root, tmp_path), replica(root, tmp_path)
    load = bundles.LoadedBundle

    def while_it_loads(folder: Path) -> bundles.LoadedBundle:
        if folder.name == "second":
            other.swap(root / "third")
        return load(folder)

    monkeypatch.setattr(bundles, "LoadedBundle", while_it_loads)
    with pytest.raises(ConflictError, match="somebody else changed it first"):
        one.swap(root / "second")
    assert one.in_use().bundle.folder.name == other.in_use().bundle.folder.name == "third"
