"""`deepsched simulate`: how rules of balancing do on a simulated scenario, beside least_conn, in seconds."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from actuators.options import OnlyIf, Options
from rayjobs.cli.main import Verb, run_verb


def _of_catalogue(options: SimulateOptions) -> bool:
    return not options.scenario.endswith(".json")


class SimulateOptions(Options):
    """Which rules, where, how long."""

    scenario: str = "S3"
    """A scenario's name (`deepsched scenarios list`), a YAML file that describes one, or the `calibration.json` of a
    recorded system."""
    rules: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "round_robin", "least_conn", "inverse_latency", "expected_delay_static", "true_times", "shortest_delay",
    )  # fmt: skip
    """Rules to compare: round_robin, least_conn, random_two, inverse_latency, expected_delay (learned service times),
    unlevelled (the same by the estimator idle, docs/studies.md), expected_delay_static (nothing
    learned); and oracles: true_times (expected_delay with true service times), optimal_round_robin (best split),
    true_speeds (weights on least_conn), shortest_delay, join_shortest, central_queue; and rules of other balancers and
    of papers: least_time, least_time_shared, peak_ewma, least_request, random_choose, c3, join_idle_queue, prequal;
    and NGINX's least_conn with one upstream for all types: shared_least_conn (equal weights), shared_weights (by
    inverse latency), shared_capped (with max_conns on slow servers too)."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(101, 102, 103, 104), min_length=1)
    """Every rule meets the same arrivals and the same work for each seed."""
    duration_s: float | None = Field(default=None, gt=10, le=1e7)
    """Simulated time per seed; the scenario's own when not given. The first 10 s are not judged."""
    interval_s: float = Field(default=1.0, ge=0.001, le=1e6)
    """Control interval."""
    servers: Annotated[
        int, OnlyIf(_of_catalogue, "as the recorded system has its own", "name a scenario of the catalogue")
    ] = Field(default=3, ge=1, le=300)
    """Servers in every group; the scenario's speeds are spread over them."""


def run(options: SimulateOptions) -> int:
    """Prints the table; ratios are to least_conn on the same seeds."""
    from actuators.contract.topology import social_network
    from envs.scenarios.lookup import scenario, topology_of
    from envs.study.judge import check_windows, judge
    from envs.study.rules import RULES, rule_named
    from rayjobs.cli.console import console_err, console_out
    from rayjobs.cli.progress import Progress, Stage

    played = scenario(options.scenario, options.duration_s)
    check_windows(played.duration_s, options.interval_s)
    addresses = tuple(f"server-{number}:80" for number in range(1, options.servers + 1))
    topology = social_network(addresses) if _of_catalogue(options) else topology_of([played])
    rules = [rule_named(name) for name in options.rules]
    base, scores = RULES["least_conn"], {}
    start = time.perf_counter()
    with Progress([Stage(name, None) for name in dict.fromkeys(rule.name for rule in (base, *rules))]) as progress:
        for rule in (base, *rules):
            if rule.name not in scores:
                with progress.stage(rule.name) as stage:
                    report = partial(stage.update, "simulated")
                    scores[rule.name] = judge(rule, played, topology, options.seeds, options.interval_s, report)
    shown = {rule.name: scores[rule.name] for rule in rules}
    console_out().print(_table(f"{played.name}: {played.summary}", shown, scores[base.name]))
    requests = sum(score.requests for score in scores.values())
    took_s = time.perf_counter() - start
    console_err().print(f"{requests / 1e6:.1f} million simulated requests in {took_s:.1f} s", markup=False)
    return 0


def _table(title: str, scores: dict[str, Any], base: Any) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("rule", "mean ms", "×", "p99 ms", "×", "goodput", "ART", "×", "J ×", "errors", "requests"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for name, score in scores.items():
        ratio = score.over(base)
        table.add_row(
            name, f"{score.mean_ms:.2f}", f"{ratio.mean_ms:.2f}", f"{score.p99_ms:.1f}", f"{ratio.p99_ms:.2f}",
            f"{score.goodput:.2%}", f"{score.art:.4f}", f"{ratio.art:.2f}", f"{ratio.index:.2f}",
            f"{score.error_ratio:.2%}", f"{score.requests:,}",
        )  # fmt: skip
    return table


VERB = Verb(
    name="simulate",
    example="deepsched simulate --scenario S3 --rules least_conn,inverse_latency,true_times --duration-s 200",
    options=SimulateOptions,
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
