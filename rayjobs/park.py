"""`deepsched park`: Park's load balancing task (docs/studies.md#park), a learned scorer and four heuristics."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from actuators.errors import DataError
from actuators.options import Only, Options
from rayjobs.cli.main import Verb, run_verb


class ParkTrainOptions(Options):
    """How the scorer is learned (`envs.study.park`), and how all policies are judged."""

    seed: int = Field(default=1, ge=0)
    """Fixes the search; the judged episodes do not depend on it."""
    generations: Annotated[int, Only(scorer=None)] = Field(default=120, ge=0)
    """Steps of the evolution strategy; with 0 the scorer is its start, the least drain time including the job."""
    episodes: int = Field(default=400, ge=2)
    """Episodes of 1000 jobs to judge on; the search does not use them."""
    scorer: Path | None = None
    """`scorer.npy` of an earlier run; the scorer is searched when not given."""
    out: Path | None = None
    """Folder for the run's folder; `runs` when not given."""


def run(options: ParkTrainOptions) -> int:
    """Prints the table; writes `scorer.npy` and `park.json`."""
    import numpy as np

    from actuators.files import write_json
    from envs.study.park import POLICIES, mean_job_times
    from rayjobs.cli.console import console_out
    from rayjobs.cli.progress import Progress, Stage
    from rayjobs.runs.folder import RunFolder

    folder = RunFolder.create(options.out, "park", options.seed, options)
    with Progress([Stage("search", max(options.generations * 0.5, 0.1)), Stage("judge", 10)]) as progress:
        with progress.stage("search") as stage:
            scorer = _searched(options, stage) if options.scorer is None else _loaded(options.scorer)
            np.save(folder.path / "scorer.npy", scorer, allow_pickle=False)
        with progress.stage("judge"):
            times = {policy: mean_job_times(policy, range(options.episodes), scorer) for policy in POLICIES}
    scores = {p: (float(t.mean()), float(t.std(ddof=1) / len(t) ** 0.5)) for p, t in times.items()}
    write_json(folder.path / "park.json", {p: {"mean": m, "standard_error": e} for p, (m, e) in scores.items()})
    console_out().print(_table(scores, options.episodes))
    console_out().print(f"kept: {folder.path}", soft_wrap=True)
    return 0


def _searched(options: ParkTrainOptions, stage: Any) -> Any:
    from envs.study.park import EvolutionOptions, evolve

    def report(generation: int, time: float) -> None:
        text = f"generation {generation + 1} of {options.generations}, mean job time of the candidates {time:.0f}"
        stage.update(text, (generation + 1) / options.generations)

    return evolve(EvolutionOptions(generations=options.generations), options.seed, report=report)


def _loaded(path: Path) -> Any:
    """The scorer in a file. Raises DataError for another file."""
    import numpy as np

    from actuators.files import read_regular
    from actuators.plain_arrays import parse_array
    from envs.study.park import SCORER_SIZE

    remedy = "give the scorer.npy of a run of deepsched park"
    try:
        scorer = parse_array(read_regular(path, 2**20))
    except (OSError, ValueError) as error:
        raise DataError(f"not a scorer: {error}", where=str(path), remedy=remedy) from None
    if scorer.shape != (SCORER_SIZE,) or scorer.dtype.kind != "f" or not np.isfinite(scorer).all():
        raise DataError(f"not a scorer: shape {scorer.shape}", where=str(path), remedy=remedy)
    return scorer


def _table(scores: dict[str, tuple[float, float]], episodes: int) -> Any:
    from rich.table import Table

    from envs.study.park import STUDY_MEAN_JOB_TIME

    title = f"Park: ten servers, Pareto sizes, 1000 jobs; mean job time over the same {episodes} episodes"
    table = Table(title=title, title_justify="left")
    for column in ("policy", "mean job time", "standard error", "× least work", "published"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    least = scores["least_work"][0]
    for policy, (mean, error) in scores.items():
        published, published_error = STUDY_MEAN_JOB_TIME[policy]
        table.add_row(
            policy, f"{mean:.0f}", f"{error:.0f}", f"{mean / least:.2f}", f"{published:.0f} ± {published_error:.0f}"
        )
    return table


VERB = Verb("park", "deepsched park --seed 1", ParkTrainOptions, run)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
