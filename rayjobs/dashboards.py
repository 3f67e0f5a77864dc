"""`deepsched dashboards`: a Prometheus configuration and a Grafana dashboard for the metrics that Ray exports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from actuators.files import writable_folder, write_atomic, write_json
from actuators.options import Options
from rayjobs.cli.main import Verb, run_verb

PROMETHEUS_URL = "http://127.0.0.1:9090"


class DashboardsOptions(Options):
    """Where the files are written, and which addresses they name."""

    out: Path = Path("dashboards")
    """Folder that receives `prometheus.yml` and `grafana/`."""
    ray_temp_dir: Path = Path("/tmp/ray")
    """Temporary folder of the Ray head, with the file that lists the metrics port of every node."""
    prometheus_url: str = PROMETHEUS_URL
    """URL of Prometheus for Grafana."""
    scrape_every_s: float = 5.0
    """Time between two scrapes."""


def run(options: DashboardsOptions) -> int:
    """Writes the files; prints the commands that start both programs with them."""
    from rayjobs.cli.console import console_out

    folder = writable_folder(options.out).absolute()
    grafana = folder / "grafana"
    for path in (
        grafana / "dashboards",
        grafana / "provisioning" / "datasources",
        grafana / "provisioning" / "dashboards",
    ):
        path.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "prometheus.yml", yaml.safe_dump(prometheus(options), sort_keys=False).encode())
    write_json(grafana / "dashboards" / "deep-scheduling.json", dashboard())
    for name, content in provisioning(options, grafana).items():
        write_atomic(grafana / "provisioning" / name, yaml.safe_dump(content, sort_keys=False).encode())
    out = console_out()
    out.print(f"prometheus --config.file={folder}/prometheus.yml", markup=False, soft_wrap=True)
    out.print(f"GF_PATHS_PROVISIONING={grafana}/provisioning grafana server", markup=False, soft_wrap=True)
    return 0


def prometheus(options: DashboardsOptions) -> dict[str, Any]:
    """Prometheus' configuration: every node that Ray lists."""
    targets = str(options.ray_temp_dir / "prom_metrics_service_discovery.json")
    every = f"{options.scrape_every_s:g}s"
    return {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [{"files": [targets], "refresh_interval": "5s"}]}],
    }


def provisioning(options: DashboardsOptions, grafana: Path) -> dict[str, dict[str, Any]]:
    """Grafana's provisioning files by name."""
    source = {"name": "Prometheus", "uid": "prometheus", "type": "prometheus", "access": "proxy", "isDefault": True}
    provider = {"name": "deep-scheduling", "type": "file", "options": {"path": str(grafana / "dashboards")}}
    return {
        "datasources/prometheus.yaml": {"apiVersion": 1, "datasources": [{**source, "url": options.prometheus_url}]},
        "dashboards/deep-scheduling.yaml": {"apiVersion": 1, "providers": [provider]},
    }


def dashboard() -> dict[str, Any]:
    """The Grafana dashboard: a row of panels per testbed figure, then the trials of a sweep."""
    from tuning.live.metrics import COUNTERS, GAUGES, TRIAL_GAUGES, exported

    panels = [
        _panel(
            f"{name.replace('_', ' ')} per second", text, f"sum by (testbed) (rate({exported(name, COUNTERS)}[30s]))"
        )
        for name, text in COUNTERS.items()
    ]
    panels += [_panel(name.replace("_", " "), text, exported(name, COUNTERS)) for name, text in GAUGES.items()]
    panels += [
        _panel(name.replace("_", " "), text, exported(name, COUNTERS), label="trial")
        for name, text in TRIAL_GAUGES.items()
    ]
    for number, panel in enumerate(panels):
        panel["id"] = number + 1
        panel["gridPos"] = {"h": 8, "w": 8, "x": 8 * (number % 3), "y": 8 * (number // 3)}
    return {
        "uid": "deep-scheduling",
        "title": "Deep Scheduling",
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "panels": panels,
    }


def _panel(title: str, text: str, query: str, label: str = "testbed") -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "prometheus"}
    return {
        "type": "timeseries",
        "title": title,
        "description": text,
        "datasource": source,
        "targets": [{"refId": "A", "expr": query, "legendFormat": "{{" + label + "}}", "datasource": source}],
    }


VERB = Verb("dashboards", "deepsched dashboards --out dashboards", DashboardsOptions, run)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
