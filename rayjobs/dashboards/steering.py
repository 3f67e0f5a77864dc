"""The dashboard of steering: what a controller sees and does, per group and server (`rayjobs.steer.metrics`)."""

from __future__ import annotations

from collections.abc import Iterator

from rayjobs.dashboards.panels import RED, YELLOW, Json, dashboard, lines, row, stat, steps, variable
from rayjobs.steer.metrics import PREFIX

_OF = 'instance=~"$instance"'
_GROUP = f'{_OF},group=~"$group"'
_SERVER = f'{_GROUP},server=~"$server"'
_CANARY = f'{_OF},mode="canary"'
_BY_SERVER = "by (instance, server)"


def steering_dashboard(late_share: float, stale_after_s: float) -> Json:
    """The whole dashboard; the limits are those of the alerts."""
    items = [
        *_now(late_share, stale_after_s),
        *_all_groups(late_share),
        *_one_group(late_share),
        *_admission(),
        *_holding(),
        *_controller(stale_after_s),
    ]
    variables = [
        variable("instance", "Controller", f"label_values({PREFIX}mode, instance)"),
        variable("group", "Group", f'label_values({PREFIX}weight{{instance=~"$instance"}}, group)'),
        variable("server", "Server", f"label_values({PREFIX}weight{{{_GROUP}}}, server)"),
    ]
    about = (
        "Figures of `deepsched steer run --metrics-port`. Shares and response times are those of NGINX's statistics; "
        "late is what was answered after its group's deadline. Only the row of late binding contains the time in NGINX."
    )
    return dashboard("deepsched-steering", "Deep Scheduling: steering", items, variables, about)


def _now(late_share: float, stale_after_s: float) -> Iterator[Json]:
    yield row("Now")
    yield stat(
        "Mode", "shadow changes nothing; canary goes part of the way; active all of it",
        (f"{_gauge('mode')} == 1", "{{mode}}"), "short", steps(),
    ) | {"options": _names()}  # fmt: skip
    yield stat(
        "Operator's order", "paused keeps the weights, reverted has put the first ones back",
        (f"{_gauge('override')} == 1", "{{override}}"), "short", steps((1, YELLOW)), noValue="none",
    ) | {"options": _names()}  # fmt: skip
    yield stat(
        "Age of the data", "Seconds since the last window with usable statistics",
        (f"time() - {_gauge('last_data_timestamp_seconds')}", "{{instance}}"), "s",
        steps((stale_after_s / 3, YELLOW), (stale_after_s, RED)),
    )  # fmt: skip
    yield stat(
        "Late requests", "Share of the requests that were answered after their deadline",
        (f"sum({_rate('late_requests')}) / sum({_rate('requests')})", "late"), "percentunit",
        steps((late_share / 2, YELLOW), (late_share, RED)),
    )  # fmt: skip
    yield stat(
        "Highest novelty", "Above 1 a server is in a state that was never observed",
        (f"max({_gauge('novelty')})", "novelty"), "short", steps((0.8, YELLOW), (1, RED)),
    )  # fmt: skip
    yield stat(
        "Decision time, p99", "99 % of the decisions took no longer than this",
        (_quantile(0.99, "decision_seconds", f'{_OF},part="total"', "by (le)"), "p99"), "s",
        steps((0.1, YELLOW), (0.5, RED)),
    )  # fmt: skip


def _all_groups(late_share: float) -> Iterator[Json]:
    by = "by (instance, group)"
    yield row("Groups")
    yield lines(
        "Requests per second", "Requests that NGINX counted, per group",
        [(f"sum {by} ({_rate('requests', _GROUP)})", "{{group}}")], "reqps",
    )  # fmt: skip
    yield lines(
        "Response time", "Median and 99th percentile as NGINX measured them, and the deadline of each group",
        [
            (_quantile(0.5, "response_seconds", _GROUP, "by (instance, group, le)"), "{{group}} p50"),
            (_quantile(0.99, "response_seconds", _GROUP, "by (instance, group, le)"), "{{group}} p99"),
            (_gauge("deadline_seconds", _GROUP), "{{group}} deadline"),
        ], "s",
    )  # fmt: skip
    yield lines(
        "Late and failed", "Share of the requests that were answered after their deadline, and that failed with 5xx",
        [
            (f"sum {by} ({_rate('late_requests', _GROUP)}) / sum {by} ({_rate('requests', _GROUP)})", "{{group}} late"),
            (f"sum {by} ({_rate('errors', _GROUP)}) / sum {by} ({_rate('requests', _GROUP)})", "{{group}} failed"),
        ], "percentunit", limit=late_share,
    )  # fmt: skip


def _one_group(late_share: float) -> Iterator[Json]:
    late = f"sum {_BY_SERVER} ({_rate('late_requests', _SERVER)}) / sum {_BY_SERVER} ({_rate('requests', _SERVER)})"
    quantiles = [
        (_quantile(q, "response_seconds", _SERVER, "by (instance, server, le)"), f"{{{{server}}}} p{q * 100:.0f}")
        for q in (0.5, 0.99)
    ]
    yield row("Servers of $group", repeat="group")
    yield lines(
        "Share in force", "Share of the group's weight that each server has now",
        [(_gauge("share", f'{_SERVER},of="in_force"'), "{{server}}")], "percentunit", highest=1, stacked=True,
    )  # fmt: skip
    yield lines(
        "Wanted and baseline", "Share that the policy would give each server, and that it has without the policy",
        [
            (_gauge("share", f'{_SERVER},of="policy"'), "{{server}} policy"),
            (_gauge("share", f'{_SERVER},of="baseline"'), "{{server}} baseline"),
        ], "percentunit", highest=1,
    )  # fmt: skip
    yield lines(
        "Requests per second", "Requests that NGINX sent to each server",
        [(f"sum {_BY_SERVER} ({_rate('requests', _SERVER)})", "{{server}}")], "reqps",
    )  # fmt: skip
    yield lines("Response time", "Median and 99th percentile per server", quantiles, "s")
    yield lines(
        "Late requests", "Share of each server's requests that were answered after the deadline",
        [(late, "{{server}}")], "percentunit", limit=late_share,
    )  # fmt: skip
    yield lines(
        "Control", "Weight in force, and the service time τ in seconds where NGINX balances by service times",
        [
            (_gauge("weight", _SERVER), "{{server}} weight"),
            (_gauge("service_time_seconds", _SERVER), "{{server}} τ"),
            (_gauge("down", _SERVER) + " == 1", "{{server}} down"),
        ], "short",
    )  # fmt: skip


def _admission() -> Iterator[Json]:
    by = "by (instance, group)"
    offered = f"sum {by} ({_rate('admission_offered', _GROUP)})"
    yield row("Admission")
    yield lines(
        "Refused", "Share of the requests that were refused, and that entered beyond the limit of their group; in"
        " shadow the latter would have been refused",
        [
            (f"sum {by} ({_rate('admission_refused', _GROUP)}) / {offered}", "{{group}} refused"),
            (f"sum {by} ({_rate('admission_spared', _GROUP)}) / {offered}", "{{group}} beyond"),
        ], "percentunit",
    )  # fmt: skip
    yield lines(
        "In flight", "Requests of each group inside, and the limit on all groups' requests from which it is refused",
        [
            (_gauge("admission_in_flight", _GROUP), "{{group}} inside"),
            (_gauge("admission_limit", _GROUP), "{{group}} limit"),
        ], "short",
    )  # fmt: skip
    yield lines(
        "Late among those that entered", "Requests per second that were answered after their deadline, or failed; and"
        " how many percent of those beyond their limit are refused",
        [
            (f"sum {by} ({_rate('admission_late', _GROUP)})", "{{group}} late"),
            (_gauge("admission_percent"), "% refused"),
        ], "short",
    )  # fmt: skip


def _holding() -> Iterator[Json]:
    by, le = "by (instance, group)", "by (instance, group, le)"
    asked, answered = (f"sum {by} ({_rate(f'holding_{name}', _GROUP)})" for name in ("asked", "answered"))
    yield row("Late binding")
    yield lines(
        "Held", "Share of the requests that waited for a slot, and that would have, where that is only counted",
        [
            (f"sum {by} ({_rate('holding_held', _GROUP)}) / {asked}", "{{group}} held"),
            (f"sum {by} ({_rate('holding_would', _GROUP)}) / {asked}", "{{group}} would be held"),
        ], "percentunit",
    )  # fmt: skip
    yield lines(
        "Time held", "Median and 99th percentile of those that were held; no server has them meanwhile",
        [
            (_quantile(0.5, "holding_seconds", _GROUP, le), "{{group}} p50"),
            (_quantile(0.99, "holding_seconds", _GROUP, le), "{{group}} p99"),
        ], "s",
    )  # fmt: skip
    yield lines(
        "From arrival to answer", "Median and 99th percentile with the time held, which the response times above lack",
        [
            (_quantile(0.5, "answer_seconds", _GROUP, le), "{{group}} p50"),
            (_quantile(0.99, "answer_seconds", _GROUP, le), "{{group}} p99"),
            (_gauge("deadline_seconds", _GROUP), "{{group}} deadline"),
        ], "s",
    )  # fmt: skip
    yield lines(
        "Held now", "Requests that wait in NGINX, the slots of each server, and 1 while requests are held",
        [
            (_gauge("holding_in_line", _GROUP), "{{group}} held"),
            (_gauge("holding_slots", f'{_OF},server=~"$server"'), "{{server}} slots"),
            (_gauge("holding_active"), "holds"),
        ], "short",
    )  # fmt: skip
    yield lines(
        "Refused, gone and late", "Share of the requests that were refused because too many were held or for too long,"
        " whose client left meanwhile, and of the answers after the deadline, from arrival on",
        [
            (f"sum {by} ({_rate('holding_refused', _GROUP)}) / {asked}", "{{group}} refused"),
            (f"sum {by} ({_rate('holding_hopeless', _GROUP)}) / {asked}", "{{group}} refused, too late"),
            (f"sum {by} ({_rate('holding_gone', _GROUP)}) / {asked}", "{{group}} gone"),
            (f"sum {by} ({_rate('holding_late', _GROUP)}) / {answered}", "{{group}} late"),
        ], "percentunit",
    )  # fmt: skip


def _controller(stale_after_s: float) -> Iterator[Json]:
    yield row("Controller")
    yield lines(
        "Whose control", "Decisions per second: the policy's, the baseline's, or nothing changed (hold)",
        [(f"sum by (source) ({_rate('decisions')})", "{{source}}")], "ops", stacked=True,
    )  # fmt: skip
    yield lines(
        "Guards that acted", "Decisions per second in which a guard limited, held or reverted",
        [(f"sum by (guard) ({_rate('guard_decisions')}) > 0", "{{guard}}")], "ops", stacked=True,
    )  # fmt: skip
    yield lines(
        "Changes and alarms", "Changes of the control per minute, and decisions with an alarm per minute",
        [(f"60 * sum({_rate('changes')})", "changes"), (f"60 * sum({_rate('alarms')})", "alarms")], "short",
    )  # fmt: skip
    yield lines(
        "Lateness against the baseline",
        "Relative lateness per request (ART): time over the deadline divided by the deadline; now, and while the"
        " baseline was measured",
        [(_gauge("art"), "now"), (_gauge("baseline_art"), "baseline")], "short",
    )  # fmt: skip
    yield lines(
        "Novelty", "Distance of each server's state from every observed one; above 1 it is novel",
        [(_gauge("novelty", f'{_OF},server=~"$server"'), "{{server}}")], "short", limit=1,
    )  # fmt: skip
    yield lines(
        "Canary", "How far canary goes from the baseline to the policy",
        [(f'{_gauge("canary_ratio")} and on (instance) {_gauge("mode", _CANARY)} == 1', "{{instance}}")],
        "percentunit", highest=1,
    )  # fmt: skip
    yield lines(
        "Decision time", "99th percentile: reading the statistics, asking the policy, applying, and all of it",
        [(_quantile(0.99, "decision_seconds", _OF, "by (part, le)"), "{{part}}")], "s",
    )  # fmt: skip
    yield lines(
        "Age of the data", "Seconds since the last usable statistics and since the last decision",
        [
            (f"time() - {_gauge('last_data_timestamp_seconds')}", "statistics"),
            (f"time() - {_gauge('last_decision_timestamp_seconds')}", "decision"),
        ], "s", limit=stale_after_s,
    )  # fmt: skip
    yield lines(
        "Failed requests", "Failed requests per request of the last window",
        [(_gauge("error_ratio"), "{{instance}}")], "percentunit",
    )  # fmt: skip


def _names() -> Json:
    """A stat that shows the name of its series: a mode or an order."""
    return {
        "colorMode": "value", "graphMode": "none", "textMode": "name", "justifyMode": "auto", "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }  # fmt: skip


def _gauge(name: str, matchers: str = _OF) -> str:
    return f"{PREFIX}{name}{{{matchers}}}"


def _rate(name: str, matchers: str = _OF) -> str:
    return f"rate({PREFIX}{name}_total{{{matchers}}}[$__rate_interval])"


def _quantile(quantile: float, name: str, matchers: str, by: str) -> str:
    return f"histogram_quantile({quantile}, sum {by} (rate({PREFIX}{name}_bucket{{{matchers}}}[$__rate_interval])))"
