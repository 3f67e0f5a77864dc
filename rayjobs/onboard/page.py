"""Writes `onboarding.html`, and in short for the terminal: what would be gained, what would change, how sure."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic_core import to_jsonable_python

from actuators.credentials import without_credentials
from actuators.files import write_atomic
from actuators.options import in_words, value_at
from envs.study.promise import METRICS, Comparison, Interval, LoadPromise, Metric
from rayjobs.cli.config import Field, fields_of, parse_value
from rayjobs.onboard.fit import Fit
from rayjobs.onboard.judge import Judged
from rayjobs.onboard.options import OnboardOptions
from rayjobs.onboard.system import Way

PAGE = "onboarding.html"
_NAMES: dict[Metric, str] = {"mean_ms": "mean", "p99_ms": "99th percentile", "late_per_hour": "late requests per hour"}
_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
UNKNOWN = (
    "Bottlenecks behind the servers, such as a shared database: moving requests between servers does not relieve them.",
    "Other NGINX machines that send to the same servers: these statistics show one machine's share of the load.",
    "Failures and retries: the simulated servers never fail.",
    "Traffic of another kind than was watched: other hours, other mixes, other clients.",
    "Sessions that must stay on a server, caches that warm up on one, limits on connections.",
)


@dataclass(frozen=True)
class Found:
    """Everything that the page says."""

    options: OnboardOptions
    way: Way
    fitted: Fit
    judged: Judged
    checks: Sequence[Mapping[str, str]]
    watched: Mapping[str, Any]
    proof: Mapping[str, Any] | None


def headline(found: Found) -> str:
    """The result in a sentence."""
    conclusion, mean = found.judged.promise.conclusion, found.judged.promise.loads[0].figure("mean_ms")
    if conclusion == "change":
        return f"On your traffic of today: mean {_ms(mean.today.value)} → {_ms(mean.new.value)}"
    if conclusion == "stay":
        return "Stay with what you have: no gain is predicted"
    if conclusion == "no_promise":
        return "Stay with what you have: nothing can be promised"
    return "Nothing can be promised yet: watch longer"


def lead(found: Found) -> str:
    """The promise in a paragraph."""
    promise = found.judged.promise
    if promise.conclusion == "no_promise":
        return " ".join([*promise.reasons, "What is simulated below is not a prediction for these servers."])
    texts = [_sentence(each, found.judged.busiest) for each in promise.loads]
    minutes = f"{promise.measure_s / 60:g} min"
    note = f"Intervals cover 95 % of paired measurements of {minutes} each, today and with the proposal."
    return " ".join([*promise.reasons, *texts, note])


def short(found: Found) -> Iterator[str]:
    """The lines that are printed."""
    yield headline(found)
    yield from found.judged.promise.reasons
    if found.judged.promise.conclusion != "no_promise":
        yield from (_sentence(load, found.judged.busiest) for load in found.judged.promise.loads)
        if found.judged.protection is not None:
            yield found.judged.protection.sentence()
    for verdict in found.fitted.verdicts:
        yield f"{verdict.group}: {verdict.sentence} ({verdict.detail})"
    following = next_command(found)
    yield following["text"]
    yield f"  {following['command']}"


def write_page(path: Path, found: Found) -> None:
    """Writes the page atomically. Raises OSError."""
    from tuning.report.page import render

    page = render(
        "onboarding.html.j2",
        title="Onboarding",
        headline=headline(found),
        lead=lead(found),
        facts=_facts(found),
        axis=_axis(found),
        cards=_cards(found),
        next=next_command(found),
        change=_change(found),
        sure=_sure(found),
        others=[{"name": o.name, "ratio": _ratio(o.ratio)} for o in found.judged.alternatives],
        protection=_protection(found),
        unknown=UNKNOWN,
        checks=[{**check, "class": {"ok": "good", "fail": "bad"}.get(check["level"], "")} for check in found.checks],
    )
    write_atomic(path, page)


def next_command(found: Found) -> dict[str, str]:
    """What to do now, and the command."""
    options, conclusion = found.options, found.judged.promise.conclusion
    steer = f"deepsched steer run --mode shadow --folder {shlex.quote(str(options.folder))}"
    for flag, url in (("--status-url", options.status_url), ("--control-url", options.control_url)):
        if without_credentials(url) != url:
            steer += f" {flag} {shlex.quote(_shown(url))}"
    if conclusion == "watch_longer":
        again = found_again(options, without=("watch_s", "watch.least_s", "watch.most_s"))
        longer = f"deepsched onboard {again} --watch-s {2 * found.watched['seconds']:.0f}"
        return {"text": "Watch longer; what was recorded is kept:", "command": longer}
    if not found.way.changeable:
        text = (
            "No way to change anything was given. Weights need --nginx-conf FILE, service times in memory need"
            " --control-url URL --token-file FILE (deepsched weights snippet). With one of them, in a new folder:"
        )
        return {"text": text, "command": f"deepsched onboard --status-url {shlex.quote(_shown(options.status_url))} …"}
    if conclusion == "no_promise":
        text = (
            "Shadow decides and records, and changes nothing. A watch at other hours, in a new folder, may fit better."
        )
        return {"text": text, "command": steer}
    if conclusion == "stay":
        text = "Nothing needs to be done. When traffic or servers change, onboard again in a new folder:"
        return {"text": text, "command": f"deepsched onboard {found_again(options, 'NEW')}"}
    return {"text": "Shadow first: it decides and records, and changes nothing.", "command": steer}


def found_again(options: OnboardOptions, folder: str = "", without: Collection[str] = ()) -> str:
    """All options that were given, as words of a command line; in place of credentials what they are.

    Args:
        folder: in place of the one that was given.
        without: dotted paths of options that are left out.
    """
    words = ["--status-url", _shown(options.status_url)]
    for field in fields_of(type(options)):
        if field.path in ("status_url", "folder", *without) or not options.given(field.path):
            continue
        text = _shown(_typed(field, value_at(options, field.path)))
        words += ["--set", f"{field.path}={text}"] if "." in field.path else [_flag(field.path), text]
    return shlex.join([*words, "--folder", folder or str(options.folder)])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _typed(field: Field, value: object) -> str:
    """A value as one types it on a command line."""
    plain = to_jsonable_python(value)
    text = in_words(plain)
    kind = field.info.annotation
    if not isinstance(plain, list | dict) or (isinstance(plain, list) and parse_value(kind, text) == plain):
        return text
    return yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False).strip()


def _shown(text: str) -> str:
    """Credentials are kept nowhere: who repeats the command puts them in again."""
    bare = without_credentials(text)
    return text if bare == text else bare.replace("://", "://USER:PASSWORD@", 1)


def _sentence(load: LoadPromise, busiest: tuple[float, float]) -> str:
    where = "On your traffic of today" if load.load == 1.0 else f"At {load.load:g} × your traffic"
    parts = []
    for metric in METRICS:
        row = load.figure(metric)
        parts.append(f"{_NAMES[metric]} {_value(metric, row.today)} → {_value(metric, row.new)} ({_ratio(row.ratio)})")
    return f"{where}: {', '.join(parts)}. {_overload(load, busiest)}".rstrip()


def _overload(load: LoadPromise, busiest: tuple[float, float]) -> str:
    """A sentence about servers that get more work than they can do; empty when none does."""
    today, then = (load.load * share for share in busiest)
    if max(today, then) < 1.0:
        return ""
    return (
        f"The busiest server would be at {today:.0%} of its capacity as balanced today, {then:.0%} with the proposal:"
        " above 100 % its queue grows without end."
    )


def _facts(found: Found) -> list[str]:
    observed = found.fitted.calibration.observed
    groups, servers = found.fitted.problem.topology.shape
    return [
        f"watched {found.watched['seconds'] / 60:.1f} min, {observed.requests} requests",
        f"{groups} {'group' if groups == 1 else 'groups'}, {servers} {'server' if servers == 1 else 'servers'}",
        f"balanced by {found.way.method} today ({found.way.source})",
        f"proposal: {found.judged.promise.proposal}",
    ]


def _cards(found: Found) -> list[dict[str, Any]]:
    cards = []
    for load in found.judged.promise.loads:
        title = "Today's traffic" if load.load == 1.0 else f"{load.load:g} × today's traffic"
        title += ", simulated, not promised" if found.judged.promise.conclusion == "no_promise" else ""
        rows = [_row(row, found) for row in load.all]
        note = _overload(load, found.judged.busiest)
        cards.append({"title": title, "rows": rows, "note": note})
    return cards


def _row(row: Comparison, found: Found) -> dict[str, Any]:
    ratio = row.ratio
    silent = ratio is None or found.judged.promise.conclusion == "no_promise"
    verdict = "" if silent or ratio is None else "better" if ratio.high < 1 else "worse" if ratio.low > 1 else ""
    place = None
    if ratio is not None:
        reach = _reach(found)
        low, value, high = (_place(each, reach) for each in (ratio.low, ratio.value, ratio.high))
        place = {"low": round(low, 2), "width": round(max(high - low, 0.8), 2), "value": round(value, 2)}
    values = f"{_value(row.metric, row.today)} → {_value(row.metric, row.new)}"
    return {"name": _NAMES[row.metric], "figures": values, "ratio": _ratio(ratio), "class": verdict, "place": place}


def _reach(found: Found) -> tuple[float, float]:
    """The ends of the axis."""
    ratios = [row.ratio for load in found.judged.promise.loads for row in load.all if row.ratio is not None]
    low = min([0.7, *(ratio.low for ratio in ratios)])
    high = max([1.2, *(ratio.high for ratio in ratios)])
    return max(0.9 * low, 0.05), min(1.1 * high, 20.0)


def _place(ratio: float, reach: tuple[float, float]) -> float:
    """Position on a logarithmic axis, 0 to 100."""
    low, high = np.log(reach)
    return float(100 * np.clip((np.log(max(ratio, 1e-6)) - low) / (high - low), 0, 1))


def _axis(found: Found) -> dict[str, Any]:
    reach = _reach(found)
    inside = [tick for tick in _TICKS if reach[0] <= tick <= reach[1]]
    ticks = [{"place": round(_place(tick, reach), 2), "text": f"{tick:g}×"} for tick in inside]
    return {"one": round(_place(1.0, reach), 2), "ticks": ticks}


def _change(found: Found) -> dict[str, Any]:
    in_memory = found.way.in_memory
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in found.judged.changes:
        groups.setdefault(row.group, []).append(
            {
                "server": row.server, "weight": row.weight,
                "value": f"{row.value:.1f} ms" if in_memory else f"{row.value:.0f}",
                "share": f"{row.share:.0%}", "new_share": f"{row.new_share:.0%}",
                "bar": round(100 * row.share, 1), "new_bar": round(100 * row.new_share, 1),
            }
        )  # fmt: skip
    what = (
        "NGINX would balance by expected_delay: a request goes where it is expected to finish first, with these service"
        " times, which are learned continuously. Simulated after three minutes."
        if in_memory
        else f"NGINX would keep {found.way.method}, with these weights, which follow the response times."
        " Simulated after three minutes."
    )
    return {"text": what, "column": "service time" if in_memory else "weight then", "groups": groups}


def _sure(found: Found) -> dict[str, Any]:
    fitted, promise = found.fitted, found.judged.promise
    deadlines = dict(zip(fitted.calibration.groups, fitted.problem.deadlines_s, strict=True))
    rows = []
    for verdict in fitted.verdicts:
        mean, p99, *_ = promise.loads[0].groups.get(verdict.group, (None, None))
        rows.append(
            {
                "group": verdict.group, "verdict": verdict.sentence, "detail": verdict.detail,
                "class": "good" if verdict.judgement == "good" else "bad",
                "mean": _arrow(mean), "p99": _arrow(p99),
                "deadline": _ms(1e3 * deadlines[verdict.group]) if verdict.group in deadlines else "–",
            }
        )  # fmt: skip
    low, high = fitted.calibration.interval()
    best = fitted.calibration.parameters.workers
    mean_off, p99_off = f"{promise.errors['mean_ms']:.1%}", f"{promise.errors['p99_ms']:.1%}"
    off = f"On windows that were not fitted to, the simulated mean is off by {mean_off}, the 99th percentile by"
    off += f" {p99_off}"
    if not fitted.calibration.compared:
        off = (
            f"The other windows have too few requests to compare: the mean may be off by {mean_off} and the 99th"
            f" percentile by {p99_off}"
        )
    lines = [
        f"Requests that a server serves at once: {best} fits best, {low['workers']:.0f} to {high['workers']:.0f} fit as"
        f" well; {fitted.problem.believed_workers[0]:.0f} is used.",
        f"{off}; the intervals include this error.",
        f"{promise.pairs} simulated pairs of {promise.measure_s / 60:g} min, {len(fitted.calibration.ensemble)} fits.",
        f"The busiest server is at {found.judged.busiest[0]:.0%} of its capacity today,"
        f" {found.judged.busiest[1]:.0%} with the proposal.",
        _learned(found),
        _machines(found.options),
    ]
    text = "Per group: what the recording supports, and the prediction at today's traffic."
    return {"text": text, "groups": rows, "lines": lines}


def _protection(found: Found) -> list[str]:
    """What admission would do, and how it is tried; empty in what earlier versions kept."""
    protection = found.judged.protection
    if protection is None:
        return []
    deadlines = zip(found.fitted.calibration.groups, protection.deadlines_ms, strict=True)
    return [
        protection.sentence(),
        f"In time: {', '.join(f'{group} within {_ms(deadline)}' for group, deadline in deadlines)}.",
        "To try it without refusing anything: deepsched weights snippet --set memory.admission=true, then deepsched"
        " admission set --percent 0.",
    ]


def _learned(found: Found) -> str:
    if found.judged.learned:
        return f"The learned residual proved better than {found.judged.heuristic} and is part of the proposal."
    if found.proof is None:
        return f"Nothing was trained: the proposal is {found.judged.heuristic}."
    return f"The learned residual did not prove better than {found.judged.heuristic}, so it is 0 in the bundle."


def _machines(options: OnboardOptions) -> str:
    count = options.load_balancers
    if count == 0:
        return "Whether other NGINX machines send to these servers is unknown; give --load-balancers N."
    if count == 1:
        return "Only this NGINX sends to these servers, as given."
    return f"{count} NGINX machines send to these servers, as given; this one saw its own share only."


def _arrow(row: Comparison | None) -> str:
    return "–" if row is None else f"{_value(row.metric, row.today)} → {_value(row.metric, row.new)}"


def _ratio(ratio: Interval | None) -> str:
    return "no ratio" if ratio is None else f"{ratio.value:.2f}×, {ratio.low:.2f} to {ratio.high:.2f}"


def _value(metric: Metric, interval: Interval) -> str:
    return f"{interval.value:,.0f}" if metric == "late_per_hour" else _ms(interval.value)


def _ms(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} ms"
