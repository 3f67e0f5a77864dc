"""A value that was given is in force or refused; what is printed and saved is what is in force."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import pytest

from actuators.errors import ConfigError
from actuators.options import GIVEN, NOT_GIVEN, Moved, Never, Only, Options, idle_options
from rayjobs.cli.config import dump_yaml, fields_of, load_options


class EngineOptions(Options):
    """Of the engine."""

    kind: Literal["steam", "diesel"] = "steam"
    """Which."""
    coal_kg: Annotated[int, Only(kind="steam")] = 50
    """Coal."""
    oil_l: Annotated[int, Only(kind="diesel")] = 20
    """Oil."""
    colour: str = "black"
    """Colour."""


class TrackOptions(Options):
    """Of the track."""

    moved: ClassVar = {"width_mm": Moved("gauge_mm")}

    gauge_mm: int = 1435
    """Width."""


class RideOptions(Options):
    """One ride."""

    only: ClassVar = {"engine.colour": Never("set --livery"), "track.gauge_mm": (Only(where="rail"), Only(test=GIVEN))}
    moved: ClassVar = {"engine.seed": Moved("seed", obeyed=False), "engine.pace": Moved("pace_s")}

    seed: int = 1
    """Seed."""
    pace_s: float = 1.0
    """Pace."""
    where: tuple[Literal["rail", "road"], ...] = ("rail",)
    """Where."""
    test: str = ""
    """What for."""
    quick: bool = False
    """Short."""
    livery: Annotated[str, Only(test=NOT_GIVEN)] = "green"
    """Paint."""
    engine: Annotated[EngineOptions, Only(where="rail")] = EngineOptions(coal_kg=80)
    """Of the engine."""
    track: TrackOptions = TrackOptions()
    """Of the track."""

    def resolved(self) -> Self:
        short = {"pace_s": 0.5, "engine.coal_kg": 5}
        return self.changed({path: value for path, value in short.items() if self.quick and not self.given(path)})


def given(*assignments: str, **flags: Any) -> RideOptions:
    return load_options(RideOptions, assignments=assignments, flags=flags)


def file(folder: Path, text: str, *, saved: bool) -> Path:
    if saved:
        (folder / "command.txt").write_text("deepsched ride\n")
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("assignments", "line"),
    [
        (["engine.oil_l=20"],
         "option 'engine.oil_l' has no effect with engine.kind=steam (--set engine.oil_l=20); set engine.kind=diesel, "
         "or leave it out"),
        (["where=road", "engine.kind=diesel"],
         "option 'engine.kind' has no effect with where=road (--set engine.kind=diesel); set where=rail"),
        (["where=road", "track.gauge_mm=1000"], "option 'track.gauge_mm' has no effect with where=road"),
        (["test=brakes", "livery=red"], "option 'livery' has no effect with test"),
        (["engine.colour=red"], "option 'engine.colour' has no effect here (--set engine.colour=red); set --livery"),
        (["engine.seed=5"], "there is no option 'engine.seed' (--set engine.seed=5); set seed instead"),
    ],
)  # fmt: skip
def test_a_value_without_effect_is_refused_in_one_line(assignments: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        given(*assignments)
    assert str(caught.value).startswith(line)


def test_an_earlier_name_keeps_its_place_in_the_order() -> None:
    assert given("engine.pace=2", "pace_s=3").pace_s == 3
    assert given("pace_s=3", "engine.pace=2").pace_s == 2


def test_conditions_are_alternatives_and_a_list_needs_one_of_its_elements() -> None:
    assert given("where=road", "test=brakes", "track.gauge_mm=1000").track.gauge_mm == 1000
    assert given("where=road,rail", "engine.coal_kg=1").engine.coal_kg == 1


def test_what_is_printed_is_what_has_an_effect() -> None:
    text = dump_yaml(given("where=road"))
    assert "engine" not in text
    assert "gauge" not in text
    assert "track: {}" in text
    assert "coal_kg: 80" in dump_yaml(given())
    assert "colour" not in dump_yaml(given())


def test_a_group_given_in_part_keeps_the_defaults_that_the_outer_class_has() -> None:
    assert given("engine.kind=steam").engine.coal_kg == 80
    assert {field.path: field.default for field in fields_of(RideOptions)} == {
        "seed": 1, "pace_s": 1.0, "where": ("rail",), "test": "", "quick": False, "livery": "green",
        "engine.kind": "steam", "engine.coal_kg": 80, "engine.oil_l": 20, "track.gauge_mm": 1435,
    }  # fmt: skip


def test_a_shortcut_is_resolved_and_a_given_value_wins_over_it(tmp_path: Path) -> None:
    assert given("quick=yes") == RideOptions(quick=True).resolved()
    assert (given("quick=yes").pace_s, given("quick=yes").engine.coal_kg) == (0.5, 5)
    long = given("quick=yes", "engine.coal_kg=80", pace_s=1.0)
    assert (long.pace_s, long.engine.coal_kg) == (1.0, 80)
    for options in (given("quick=yes"), long, given("where=road", "quick=yes")):
        assert load_options(RideOptions, file=file(tmp_path, dump_yaml(options), saved=False)) == options


def test_a_saved_run_may_hold_what_earlier_versions_saved_without_effect(tmp_path: Path) -> None:
    old = file(tmp_path, "seed: 3\nwhere: [road]\nengine: {oil_l: 20, seed: 1, pace: 1.0}\npace_s: 1.0\n", saved=True)
    assert load_options(RideOptions, file=old) == RideOptions(seed=3, where=("road",))
    other = file(tmp_path, "where: [road]\nengine: {oil_l: 30}\n", saved=True)
    with pytest.raises(ConfigError, match=r"'engine\.oil_l' has no effect with where=road"):
        load_options(RideOptions, file=other)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("engine: {oil_l: 20}", "option 'engine.oil_l' has no effect with engine.kind=steam"),
        ("engine: {seed: 5}", "there is no option 'engine.seed'"),
        ("seed: 1\nengine: {seed: 5}", "there is no option 'engine.seed'"),
        ("pace_s: 2.0\nengine: {pace: 1.0}", "'engine.pace' and 'pace_s' are one option now, and here they differ"),
    ],
)
def test_a_written_file_may_not(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_options(RideOptions, file=file(tmp_path, text, saved=False))
    assert line in str(caught.value)
    assert "config.yaml" in str(caught.value)


def test_an_earlier_name_is_read_and_remarked_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file(tmp_path, "seed: 5\nengine: {seed: 5, pace: 2.0}\ntrack: {width_mm: 1000}\n", saved=False)
    options = load_options(RideOptions, file=path)
    assert (options.seed, options.pace_s, options.track.gauge_mm) == (5, 2.0, 1000)
    said = capsys.readouterr().err
    assert f"'engine.pace' is now 'pace_s' ({path})" in said
    assert f"'track.width_mm' is now 'track.gauge_mm' ({path})" in said


def test_given_tells_what_was_given_and_not_what_defaults_added() -> None:
    options = given("engine.kind=steam")
    assert [options.given(path) for path in ("engine.kind", "engine.coal_kg", "seed")] == [True, False, False]


def test_a_group_without_effect_is_told_once() -> None:
    assert [idle.path for idle in idle_options(RideOptions(where=("road",)))] == ["engine", "track.gauge_mm"]


def test_a_value_of_the_file_gives_way_to_an_option_that_was_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(tmp_path, "engine: {coal_kg: 7, kind: steam}\ntrack: {gauge_mm: 1000}\n", saved=False)
    assert load_options(RideOptions, file=path).engine.coal_kg == 7
    assert load_options(RideOptions, file=path, assignments=["where=road"]) == RideOptions(where=("road",))
    said = capsys.readouterr().err
    assert "without effect beside the other options: engine.coal_kg, engine.kind, track.gauge_mm" in said
