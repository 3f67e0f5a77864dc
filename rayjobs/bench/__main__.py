"""`deepsched bench`: runs benches by name and writes a JSON file of each and one of all."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.markup import escape
from rich.table import Table

import rayjobs.bench
from actuators.errors import ConfigError, DeepSchedError, closest
from actuators.files import writable_folder, write_json
from actuators.options import Options
from rayjobs.bench.parts.bars import Bar, BenchContext
from rayjobs.cli.console import console_err, console_out
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.progress import Progress, Stage
from rayjobs.runs.folder import commit, machine

EXIT_BAR_MISSED = 1
EXIT_NOT_MEASURED = 2
_QUICK_S = 60.0
"""Longest time of a bench that is asked to be quick."""


class BenchOptions(Options):
    """Which benches run, and for how long."""

    names: tuple[str, ...] = ()
    """Benches to run (docs/results.md#bars); all when none is given."""
    seed: int = Field(1, ge=0)
    """Fixes everything random in a bench."""
    part: str = ""
    """Part of a bench that is measured alone, into NAME-PART.json (`admission`: simulated, cpu, live, flash, envoy;
    `simulator`: agreement, replay, late_binding, request_cost, late_binding_live, late_binding_chaos,
    late_binding_crash, late_binding_soak; `actuation`: memory, reload, slow_reload, cost; `peers`: simulated, copies,
    live, live_slow, live_others; `learner`: pace, learners; `scaling`: waiting, many, runners, live, steps,
    env_runners); all when not given, but `learners`, which takes about an hour, and `env_runners`, which starts 64
    processes."""
    quick: bool = False
    """Fewer repeats: each bench ends within 60 s, with less precise figures."""
    out: Path = Path("runs/bench")
    """Folder that receives NAME.json; OUT.json beside it holds all benches of a run with several."""


def names() -> tuple[str, ...]:
    """The names of all benches: the modules and packages of rayjobs/bench/."""
    modules = pkgutil.iter_modules(rayjobs.bench.__path__)
    return tuple(sorted(module.name for module in modules if module.name not in ("__main__", "parts")))


def run_bench(name: str, options: BenchOptions, log: Callable[[str], None]) -> tuple[Bar, ...]:
    """Measures one bench, or a part of it, and writes its JSON; its bars.

    Raises:
        ConfigError: unknown bench or part, or a folder that cannot be written.
        DeepSchedError: the bench could not be measured.
    """
    if name not in names():
        raise ConfigError(f"unknown bench '{name}'", remedy=closest(name, names()) if names() else "")
    measure = _measure_of(name, options.part)
    folder = writable_folder(options.out)
    with tempfile.TemporaryDirectory(prefix=f"deepsched-bench-{name}-") as work_dir:
        kept = folder / f"{name}-{options.seed}"
        bars = tuple(measure(BenchContext(options.seed, options.quick, Path(work_dir), log, kept)))
    write_json(_written(name, options), document(name, options.seed, bars))
    return bars


def _measure_of(name: str, part: str) -> Callable[[BenchContext], Sequence[Bar]]:
    """What measures the bench, or that part of it. Raises ConfigError for a part that it does not have."""
    bench = importlib.import_module(f"rayjobs.bench.{name}")
    parts: Mapping[str, Callable[[BenchContext], Sequence[Bar]]] = getattr(bench, "PARTS", {})
    if part and part not in parts:
        remedy = closest(part, tuple(parts)) if parts else "leave part out"
        raise ConfigError(f"bench {name} has no part '{part}'", where="part", remedy=remedy)
    whole: Callable[[BenchContext], Sequence[Bar]] = bench.measure
    return parts[part] if part else whole


def _written(name: str, options: BenchOptions) -> Path:
    return options.out / (f"{name}-{options.part}.json" if options.part else f"{name}.json")


def document(name: str, seed: int, bars: Sequence[Bar]) -> dict[str, Any]:
    """The content of NAME.json."""
    return {
        "bench": name,
        "commit": commit(),
        "machine": machine(),
        "seed": seed,
        "bars": [asdict(bar) for bar in bars],
    }


def table(title: str, measured: Mapping[str, tuple[Bar, ...] | str]) -> Table:
    """The bars of benches as a table; a text in place of bars tells why they were not measured."""
    drawn = Table(title=f"bench {title}", title_justify="left")
    for column, justify in (("bench", "left"), ("bar", "left"), ("value", "right"), ("limit", "right")):
        drawn.add_column(column, justify=justify)  # type: ignore[arg-type]
    drawn.add_column("holds")
    drawn.add_column("reference", justify="right")
    drawn.add_column("how", style="dim")
    for name, found in measured.items():
        if isinstance(found, str):
            drawn.add_row(name, "[bold red]not measured[/]", "", "", "", "", escape(found))
            continue
        for bar in found:
            verdict = "" if bar.limit is None else "yes" if bar.holds else "[bold red]NO[/]"
            value = f"{_short(bar.value)} {bar.unit}"
            drawn.add_row(name, escape(bar.bar), value, _limit(bar), verdict, _short(bar.reference), escape(bar.how))
    return drawn


def run(options: BenchOptions) -> int:
    """Runs the benches; 0 when all bars hold, 1 when one does not, 2 when one could not be measured."""
    wanted = options.names or names()
    unknown = [name for name in wanted if name not in names()]
    if unknown:
        raise ConfigError(f"unknown bench '{unknown[0]}'", remedy=closest(unknown[0], names()))
    if options.part:
        for name in wanted:
            _measure_of(name, options.part)
    measured: dict[str, tuple[Bar, ...] | str] = {}
    with Progress([Stage(name, _QUICK_S if options.quick else None) for name in wanted], drawn=False) as progress:
        for name in wanted:
            measured[name] = _run_one(name, options, progress)
            if len(wanted) > 1:
                write_json(options.out.with_suffix(".json"), together(measured, options.seed))
    if len(wanted) > 1:
        console_out().print(table("all", measured))
        console_out().print(f"written: {options.out.with_suffix('.json')}", markup=False)
    return max((_code(found) for found in measured.values()), default=0)


def together(measured: Mapping[str, tuple[Bar, ...] | str], seed: int) -> dict[str, Any]:
    """Several benches in one document: the bars of each, or why they were not measured."""
    return {
        "commit": commit(),
        "machine": machine(),
        "seed": seed,
        "benches": {
            name: {"not_measured": found} if isinstance(found, str) else {"bars": [asdict(bar) for bar in found]}
            for name, found in measured.items()
        },
    }


def _run_one(name: str, options: BenchOptions, progress: Progress) -> tuple[Bar, ...] | str:
    """The bars, or why they were not measured."""
    try:
        with progress.stage(name) as stage:
            bars = run_bench(name, options, stage.say)
    except DeepSchedError as error:
        console_err().print(f"deepsched bench: {name} was not measured: {error}", markup=False)
        return str(error)
    out = console_out()
    out.print(table(name, {name: bars}))
    out.print(f"written: {_written(name, options)}", markup=False)
    return bars


def _code(found: tuple[Bar, ...] | str) -> int:
    if isinstance(found, str):
        return EXIT_NOT_MEASURED
    return 0 if all(bar.holds for bar in found) else EXIT_BAR_MISSED


def _limit(bar: Bar) -> str:
    if bar.limit is None:
        return ""
    # Whether the limit is an upper or a lower one follows from the value and whether the bar holds.
    below = bar.value <= bar.limit
    return f"{'≤' if below == bar.holds else '≥'} {_short(bar.limit)}"


def _short(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}" if value % 1 else f"{value:.0f}"


VERB = Verb("bench", "deepsched bench load --quick", BenchOptions, run, ("names",))


if __name__ == "__main__":
    sys.exit(run_verb(VERB))
