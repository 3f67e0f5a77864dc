"""Dashboards and alerts: the files fit each other, Grafana and Prometheus, and name only metrics that are exported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from rayjobs.dashboards.__main__ import DashboardsOptions, run
from rayjobs.dashboards.alerts import JOB, alert_rules
from rayjobs.serve import metric_names
from rayjobs.steer.metrics import PREFIX, SteerMetrics, exported
from tests.support.steering_cases import recorded
from tuning.live.metric_names import COUNTERS, GAUGES, TRIAL_GAUGES
from tuning.steering.audit import read_lines

BOARDS = ("steering", "serving", "deep-scheduling")
METRIC = re.compile(r"\b(?:ray_)?deepsched_\w+")
KEYWORDS = re.compile(r"\b(?:by|on) \([^)]*\)|\b(?:rate|sum|max|time|increase|histogram_quantile|absent)\b")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dashboards")
    assert run(DashboardsOptions(out=folder, ray_temp_dir=Path("/tmp/somewhere"), controllers=("a:1", "b:2"))) == 0
    return folder


def board(files: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((files / "grafana" / "dashboards" / f"{name}.json").read_text())
    return content


def expressions(files: Path) -> Iterator[str]:
    """Every PromQL expression of both dashboards and of the alerts."""
    for name in BOARDS:
        content = board(files, name)
        yield from (target["expr"] for panel in content["panels"] for target in panel.get("targets", ()))
        yield from (one["definition"] for one in content["templating"]["list"] if "definition" in one)
    for group in yaml.safe_load((files / "alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def test_what_they_ask_for_is_exported(files: Path) -> None:
    of_ray = {f"ray_deepsched_{name}_total" for name in COUNTERS}
    of_ray |= {f"ray_deepsched_{name}" for name in (*GAUGES, *TRIAL_GAUGES)}
    asked = {name for expression in expressions(files) for name in METRIC.findall(expression)}
    served = metric_names.exported(ray=False)
    assert asked - of_ray - served - exported() == set()
    # And nothing that a testbed, a trial or a controller exports is forgotten.
    assert of_ray - asked == set()
    assert served - asked == {"deepsched_answer_seconds_sum", "deepsched_answer_seconds_count"} | {
        "deepsched_batch_requests_bucket"
    }
    buckets = {name for name in exported() if name.endswith(("_sum", "_count"))}
    assert exported() - buckets - asked == set()


def test_the_controller_exports_what_it_says(tmp_path: Path) -> None:
    recorded(tmp_path / "audit.jsonl")
    header, *lines = read_lines(tmp_path / "audit.jsonl")
    metrics, registry = SteerMetrics(), CollectorRegistry()
    metrics.begin(header)
    for line in lines:
        holding = {"state": "holding", "slots": [4, 4, 4]}
        more = {"latency_ms": {"total": 3.0}, "admission": {"percent": 0.0}, "holding": holding}
        metrics.see({**line, "in_force": line["weights"], "applied": line["change"], **more})
    registry.register(metrics)
    text = "\n".join(line for line in generate_latest(registry).decode().splitlines() if line[0] != "#")
    # Service times are exported only where they are in force.
    assert exported() - set(METRIC.findall(text)) == {f"{PREFIX}service_time_seconds"}


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_as_grafana_wants_it(files: Path, name: str) -> None:
    """The rules of Grafana's dashboard JSON (https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/)."""
    content = board(files, name)
    panels, variables = content["panels"], {one["name"] for one in content["templating"]["list"]}
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            assert "repeat" not in panel or panel["repeat"] in variables
            continue
        assert panel["type"] in ("timeseries", "stat")
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", ()):
            assert step.keys() == {"color", "value"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) - {"__rate_interval", "__all"}
    assert used <= variables
    current = next(one for one in content["templating"]["list"] if one["type"] == "datasource")["current"]["value"]
    (source,) = yaml.safe_load((files / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert current == source["uid"]


def test_the_files_refer_to_each_other(files: Path) -> None:
    prometheus = yaml.safe_load((files / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in prometheus["scrape_configs"]}
    assert jobs["ray"]["file_sd_configs"][0]["files"] == ["/tmp/somewhere/prom_metrics_service_discovery.json"]
    assert jobs[JOB]["static_configs"] == [{"targets": ["a:1", "b:2"]}]
    assert [(files / name).exists() for name in prometheus["rule_files"]] == [True]
    provisioning = files / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "deep-scheduling.yaml").read_text())["providers"]
    assert sorted(path.name for path in Path(provider["options"]["path"]).glob("*.json")) == [
        "deep-scheduling.json", "serving.json", "steering.json",
    ]  # fmt: skip


def test_every_alert_says_what_to_do() -> None:
    ((group,),) = [alert_rules(0.05, 30.0)["groups"]]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert all(rule["annotations"][part] for part in ("summary", "description", "command")), rule["alert"]
        assert re.fullmatch(r"\d+[sm]", rule["for"])
        assert KEYWORDS.sub("", rule["expr"]).count("(") == KEYWORDS.sub("", rule["expr"]).count(")")


CASES: list[tuple[str, list[tuple[str, str]], str]] = [
    ("DeepschedDown", [('up{job="deepsched", instance="a:1"}', "0x20")], "5m"),
    ("DeepschedDown", [], "5m"),
    ("DeepschedSilent", [("deepsched_steer_last_decision_timestamp_seconds", "0x20")], "2m"),
    ("DeepschedDataStale", [("deepsched_steer_last_data_timestamp_seconds", "0x20")], "2m"),
    ("DeepschedReverted", [('deepsched_steer_override{override="reverted"}', "0 0 1x20")], "4m"),
    ("DeepschedReverted", [('deepsched_steer_guard_decisions_total{guard="art"}', "0 0 0 1x20")], "4m"),
    ("DeepschedNovelty", [
        ('deepsched_steer_guard_decisions_total{guard="novel", instance="a:1"}', "0+60x30"),
        ('deepsched_steer_decisions_total{source="baseline", instance="a:1"}', "0+60x30"),
    ], "15m"),
    ("DeepschedLate", [
        ('deepsched_steer_late_requests_total{group="g", server="s", instance="a:1"}', "0+10x30"),
        ('deepsched_steer_requests_total{group="g", server="s", instance="a:1"}', "0+100x30"),
    ], "15m"),
    ("DeepschedRefusing", [
        ('deepsched_steer_admission_refused_total{group="g", instance="a:1"}', "0+10x30"),
        ('deepsched_steer_admission_offered_total{group="g", instance="a:1"}', "0+100x30"),
    ], "15m"),
    ("DeepschedLate", [
        ('deepsched_steer_late_requests_total{group="g", server="s", instance="a:1"}', "0+0x30"),
        ('deepsched_steer_requests_total{group="g", server="s", instance="a:1"}', "0+100x30"),
        ('deepsched_steer_holding_late_total{group="g", instance="a:1"}', "0+10x30"),
        ('deepsched_steer_holding_answered_total{group="g", instance="a:1"}', "0+100x30"),
    ], "15m"),
    ("DeepschedHoldRefusing", [
        ('deepsched_steer_holding_refused_total{group="g", instance="a:1"}', "0+2x30"),
        ('deepsched_steer_holding_asked_total{group="g", instance="a:1"}', "0+100x30"),
    ], "15m"),
    ("DeepschedNotApplied", [('deepsched_steer_guard_decisions_total{guard="actuation"}', "0+1x20")], "8m"),
]  # fmt: skip


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
def test_prometheus_takes_the_files_and_every_alert_fires(files: Path, tmp_path: Path) -> None:
    config = subprocess.run(
        ["promtool", "check", "config", str(files / "prometheus.yml")], capture_output=True, text=True, check=False
    )
    assert config.returncode == 0, config.stdout + config.stderr
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in (*given, *_alive(alert))],
            "promql_expr_test": [{
                "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})', "eval_time": at,
                "exp_samples": [{"labels": "{}", "value": 1}],
            }],
        }
        for alert, given, at in CASES
    ]  # fmt: skip
    calm = {
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in CALM],
        "promql_expr_test": [{"expr": "count(ALERTS)", "eval_time": "15m", "exp_samples": []}],
    }
    document = {"rule_files": [str(files / "alerts.yml")], "evaluation_interval": "1m", "tests": [*tests, calm]}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "tests.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rules = alert_rules(0.05, 30.0)["groups"][0]["rules"]
    assert {alert for alert, _, _ in CASES} == {rule["alert"] for rule in rules}


CALM = [
    ('up{job="deepsched", instance="a:1"}', "1x30"),
    ("deepsched_steer_last_decision_timestamp_seconds", "0+60x30"),
    ("deepsched_steer_last_data_timestamp_seconds", "0+60x30"),
    ('deepsched_steer_override{override="reverted"}', "0x30"),
    ('deepsched_steer_guard_decisions_total{guard="novel", instance="a:1"}', "0x30"),
    ('deepsched_steer_guard_decisions_total{guard="rate", instance="a:1"}', "0+10x30"),
    ('deepsched_steer_decisions_total{source="policy", instance="a:1"}', "0+60x30"),
    ('deepsched_steer_late_requests_total{group="g", server="s", instance="a:1"}', "0+1x30"),
    ('deepsched_steer_requests_total{group="g", server="s", instance="a:1"}', "0+100x30"),
]
"""A controller at work, about which no alert may fire."""


def _alive(alert: str) -> list[tuple[str, str]]:
    return [] if alert == "DeepschedDown" else [('up{job="deepsched", instance="a:1"}', "1x30")]
