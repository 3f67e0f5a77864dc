"""Alert rules of Prometheus for a controller. Each names the command that answers it (docs/your-nginx.md#alarms)."""

from __future__ import annotations

from typing import Any

from rayjobs.steer.metrics import PREFIX

JOB = "deepsched"
"""Name of the scrape job whose targets are controllers."""
_STATUS = "deepsched steer status --folder FOLDER"


def alert_rules(late_share: float, stale_after_s: float) -> dict[str, Any]:
    """The content of `alerts.yml`.

    Args:
        late_share: share of a group's requests after their deadline, 0 to 1, above which it is an alarm.
        stale_after_s: seconds without usable statistics, or without a decision, after which it is an alarm.
    """
    data, decided = f"{PREFIX}last_data_timestamp_seconds", f"{PREFIX}last_decision_timestamp_seconds"
    late = f"sum by (instance, group) (rate({PREFIX}late_requests_total[5m]))"
    requests = f"sum by (instance, group) (rate({PREFIX}requests_total[5m]))"
    novel = f'rate({PREFIX}guard_decisions_total{{guard="novel"}}[5m])'
    decisions = f"sum by (instance) (rate({PREFIX}decisions_total[5m]))"
    by = "sum by (instance, group)"
    refused = f"{by} (rate({PREFIX}admission_refused_total[5m])) / {by} (rate({PREFIX}admission_offered_total[5m]))"
    waited = f"{by} (rate({PREFIX}holding_late_total[5m])) / {by} (rate({PREFIX}holding_answered_total[5m]))"
    turned = " + ".join(f"{by} (rate({PREFIX}holding_{why}_total[5m]))" for why in ("refused", "hopeless"))
    turned = f"({turned}) / {by} (rate({PREFIX}holding_asked_total[5m]))"
    rules = [
        _rule(
            "DeepschedDown", f'up{{job="{JOB}"}} == 0 or absent(up{{job="{JOB}"}})', "1m", "critical",
            "The controller of {{ $labels.instance }} does not answer",
            "NGINX keeps the control in force; the watchdog puts the first weights back.",
            "systemctl status deepsched-steer deepsched-watchdog; journalctl -u deepsched-steer -n 50",
        ),
        _rule(
            "DeepschedSilent", f"time() - {decided} > {stale_after_s:g}", "0m", "critical",
            "No decision for {{ $value | humanizeDuration }}",
            "The controller answers but does not decide: it hangs.", "systemctl restart deepsched-steer",
        ),
        _rule(
            "DeepschedDataStale", f"time() - {data} > {stale_after_s:g}", "0m", "warning",
            "No usable statistics for {{ $value | humanizeDuration }}",
            "The policy is out of force until NGINX's statistics can be read again.",
            "deepsched doctor; curl -s STATUS_URL | head -c 300",
        ),
        _rule(
            "DeepschedReverted",
            f'{PREFIX}override{{override="reverted"}} == 1'
            f' or increase({PREFIX}guard_decisions_total{{guard=~"errors|art"}}[5m]) > 0', "0m", "warning",
            "The baseline is back in force", "An operator reverted, or a guard found harm (more errors or lateness).",
            f"{_STATUS}; deepsched steer resume --folder FOLDER once the cause is known",
        ),
        _rule(
            "DeepschedNovelty", f"{novel} / on (instance) group_left () {decisions} > 0.5", "5m", "warning",
            "Traffic or servers unlike anything observed for 5 minutes",
            "The baseline is in force until the traffic is familiar, or the encoder is refitted.",
            "deepsched steer recalibrate NEW --bundle BUNDLE --folder FOLDER; deepsched steer swap NEW --folder FOLDER",
        ),
        _rule(
            "DeepschedLate", f"{late} / {requests} > {late_share:g} or {waited} > {late_share:g}", "5m", "warning",
            "{{ $value | humanizePercentage }} of the requests of {{ $labels.group }} are late",
            "Answers after the group's deadline, over 5 minutes; with late binding from arrival on, hold included.",
            f"{_STATUS}; deepsched steer revert --folder FOLDER if it began with the policy",
        ),
        _rule(
            "DeepschedRefusing", f"{refused} > 0.05", "5m", "warning",
            "{{ $value | humanizePercentage }} of the requests of {{ $labels.group }} are refused",
            "Admission control protects the servers: more requests come than are answered in time.",
            f"{_STATUS}; add capacity; deepsched steer mode shadow --folder FOLDER refuses nothing",
        ),
        _rule(
            "DeepschedHoldRefusing", f"{turned} > 0.01", "5m", "warning",
            "{{ $value | humanizePercentage }} of the requests of {{ $labels.group }} are refused by late binding",
            "Late binding: more requests come than servers with these slots answer, or servers have too few slots.",
            f"{_STATUS}; add capacity or slots; deepsched steer mode shadow --folder FOLDER holds nothing",
        ),
        _rule(
            "DeepschedNotApplied", f'increase({PREFIX}guard_decisions_total{{guard="actuation"}}[5m]) > 0', "2m",
            "warning", "A change could not be put in force", "NGINX refused it; the former control is in force.",
            f"{_STATUS}; sudo -u USER nginx -t",
        ),
    ]  # fmt: skip
    return {"groups": [{"name": "deepsched", "rules": rules}]}


def _rule(name: str, expression: str, lasting: str, severity: str, summary: str, text: str, command: str) -> Any:
    return {
        "alert": name,
        "expr": expression,
        "for": lasting,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": text, "command": command},
    }
