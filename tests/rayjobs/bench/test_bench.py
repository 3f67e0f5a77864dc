"""The bench contract: what a bench gets, what its JSON holds, and what the exit code says."""

import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actuators.errors import ConfigError, DataError, ServiceError
from rayjobs.bench import __main__ as bench
from rayjobs.bench.__main__ import BenchOptions
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least, at_most, figure
from tests.support.paths import ROOT

Measure = Callable[[BenchContext], list[Bar]]
KEYS = {
    "bar": str,
    "value": float,
    "unit": str,
    "limit": (float, type(None)),
    "holds": bool,
    "reference": (float, str, type(None)),
    "how": str,
}


def check_document(document: dict[str, Any]) -> None:
    """The schema of issue 2, exactly."""
    assert set(document) == {"bench", "commit", "machine", "seed", "bars"}
    assert isinstance(document["seed"], int)
    assert all(isinstance(document[key], str) and document[key] for key in ("bench", "commit", "machine"))
    for bar in document["bars"]:
        assert set(bar) == set(KEYS)
        assert all(isinstance(bar[key], kind) for key, kind in KEYS.items()), bar


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts benches under names of their own, as if rayjobs/benches/NAME.py held them."""

    def put(**measures: Measure) -> None:
        monkeypatch.setattr(bench, "names", lambda: tuple(sorted(measures)))
        for name, measure in measures.items():
            module = types.ModuleType(name)
            module.measure = measure  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, f"rayjobs.bench.{name}", module)

    return put


def two_bars(context: BenchContext) -> list[Bar]:
    context.log(f"seed {context.seed}")
    return [
        at_most("delay", 0.8, 1, "ms", how="p99 of 1000 sends", reference=2.5),
        at_least("rate", 2600, 2500, "requests/s", how="one core", reference="wrk 4.1"),
        figure("memory", 61.25, "MB", how="peak"),
    ]


def test_writes_what_the_contract_says(install: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(mine=two_bars)
    assert bench.run(BenchOptions(names=("mine",), seed=7, out=tmp_path)) == 0
    document = json.loads((tmp_path / "mine.json").read_text())
    check_document(document)
    assert (document["bench"], document["seed"]) == ("mine", 7)
    assert document["bars"][0] == {
        "bar": "delay", "value": 0.8, "unit": "ms", "limit": 1.0, "holds": True, "reference": 2.5,
        "how": "p99 of 1000 sends",
    }  # fmt: skip
    captured = capsys.readouterr()
    assert "≤ 1 " in captured.out
    assert "≥ 2500" in captured.out
    assert re.search(r"\[1/1\] mine: started; next: nothing, then done$", captured.err, re.MULTILINE)
    assert re.search(r"\[1/1\] mine: \d\.\d s: seed 7$", captured.err, re.MULTILINE)


def test_gets_an_empty_folder_that_is_removed(install: Any, tmp_path: Path) -> None:
    seen: list[BenchContext] = []

    def measure(context: BenchContext) -> list[Bar]:
        assert list(context.work_dir.iterdir()) == []
        (context.work_dir / "log").write_text("x")
        seen.append(context)
        return []

    install(mine=measure)
    bench.run(BenchOptions(names=("mine",), quick=True, out=tmp_path))
    assert seen[0].quick
    assert not seen[0].work_dir.exists()


def test_a_missed_bar_is_shown_and_is_the_exit_code(
    install: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(mine=lambda _: [at_most("delay", 1.5, 1, "ms", how="p99")])
    assert bench.run(BenchOptions(out=tmp_path)) == bench.EXIT_BAR_MISSED
    assert json.loads((tmp_path / "mine.json").read_text())["bars"][0]["holds"] is False
    line = next(line for line in capsys.readouterr().out.splitlines() if "delay" in line)
    assert "NO" in line
    assert "≤ 1" in line


def test_all_run_when_none_is_named_and_one_that_fails_stops_no_other(
    install: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(context: BenchContext) -> list[Bar]:
        raise ServiceError("no answer", where="127.0.0.1:1")

    install(alpha=broken, beta=two_bars)
    assert bench.run(BenchOptions(out=tmp_path / "bench")) == bench.EXIT_NOT_MEASURED
    said = capsys.readouterr()
    assert "alpha was not measured: no answer (127.0.0.1:1)" in said.err
    assert [path.name for path in (tmp_path / "bench").iterdir()] == ["beta.json"]
    together = json.loads((tmp_path / "bench.json").read_text())
    assert together["benches"]["alpha"] == {"not_measured": "no answer (127.0.0.1:1)"}
    assert together["benches"]["beta"]["bars"] == json.loads((tmp_path / "bench" / "beta.json").read_text())["bars"]
    table = said.out[said.out.index("bench all") :]
    assert all(text in table for text in ("not measured", "delay", "memory", "wrk 4.1"))


def test_an_earlier_result_survives_a_failed_run(install: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("old")
    install(mine=lambda _: [figure("nothing", float("nan"), "ms", how="no samples")])
    assert bench.run(BenchOptions(out=tmp_path)) == bench.EXIT_NOT_MEASURED
    assert (tmp_path / "mine.json").read_text() == "old"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_without_a_value_is_refused(value: float) -> None:
    with pytest.raises(DataError, match="was measured as"):
        at_most("delay", value, 1, "ms", how="p99")


def test_bars_hold_on_their_limit() -> None:
    assert at_most("a", 1, 1, "ms", how="x").holds
    assert at_least("a", 1, 1, "ms", how="x").holds
    assert not at_least("a", 0.99, 1, "ms", how="x").holds


def test_an_unknown_bench_gets_the_closest_and_starts_nothing(install: Any, tmp_path: Path) -> None:
    install(load=two_bars, service=two_bars)
    with pytest.raises(ConfigError, match="unknown bench 'laod'; did you mean 'load'"):
        bench.run(BenchOptions(names=("service", "laod"), out=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_measured_alone_into_a_file_of_its_own(install: Any, tmp_path: Path) -> None:
    install(mine=two_bars)
    sys.modules["rayjobs.bench.mine"].PARTS = {"cpu": lambda context: two_bars(context)[:1]}  # type: ignore[attr-defined]
    assert bench.run(BenchOptions(names=("mine",), part="cpu", out=tmp_path)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine-cpu.json"]
    document = json.loads((tmp_path / "mine-cpu.json").read_text())
    check_document(document)
    assert [bar["bar"] for bar in document["bars"]] == ["delay"]


@pytest.mark.parametrize("names", [("mine", "load"), ()])
def test_a_part_that_a_bench_does_not_have_starts_nothing(names: tuple[str, ...], install: Any, tmp_path: Path) -> None:
    install(mine=two_bars, load=two_bars)
    sys.modules["rayjobs.bench.mine"].PARTS = {"cpu": two_bars}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"bench mine has no part 'cpus' \(part\); did you mean 'cpu'"):
        bench.run(BenchOptions(names=("mine",), part="cpus", out=tmp_path))
    with pytest.raises(ConfigError, match=r"bench load has no part 'cpu' \(part\); leave part out"):
        bench.run(BenchOptions(names=names, part="cpu", out=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(
    install: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    install(mine=two_bars)
    assert bench.run(BenchOptions(out=tmp_path / "file" / "bench")) == bench.EXIT_NOT_MEASURED
    assert "cannot write in this folder" in capsys.readouterr().err


def test_every_bench_there_is_has_measure() -> None:
    for name in bench.names():
        place = Path(bench.__file__).parent / name
        source = (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text()
        assert re.search(r"^def measure\(context: BenchContext\) -> (list|Sequence)\[Bar\]:", source, re.MULTILINE), (
            name
        )


def test_results_in_this_checkout_keep_the_contract() -> None:
    for path in ROOT.glob("runs/bench/*.json"):
        check_document(json.loads(path.read_text()))
