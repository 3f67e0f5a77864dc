"""`deepsched dashboards`: Grafana dashboards, Prometheus' configuration and alert rules for what we export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from actuators.files import writable_folder, write_atomic, write_json
from actuators.options import GIVEN, Only, Options
from rayjobs.cli.main import Verb, run_verb

PROMETHEUS_URL = "http://127.0.0.1:9090"
UID = "prometheus"
"""Of the data source that the provisioning makes; the dashboards' variable `datasource` starts with it."""


class DashboardsOptions(Options):
    """Where the files are written, and which addresses and limits they name."""

    out: Path = Path("dashboards")
    """Folder that receives `prometheus.yml`, `alerts.yml` and `grafana/`."""
    controllers: tuple[str, ...] = Field(("127.0.0.1:9109",), min_length=1)
    """HOST:PORT of every `deepsched steer run --metrics-port`."""
    served: tuple[str, ...] = ()
    """HOST:PORT of every `deepsched serve --front uvicorn`, none when not given; those on Ray Serve are among what Ray
    lists."""
    served_token_file: Annotated[Path | None, Only(served=GIVEN)] = None
    """File with the token for reading, as Prometheus finds it; no token is sent when not given."""
    late_share: float = Field(0.05, gt=0, le=1)
    """Share of a group's requests after their deadline above which it is an alarm."""
    stale_after_s: float = Field(30.0, gt=0)
    """Time without usable statistics, or without a decision, above which it is an alarm."""
    ray_temp_dir: Path = Path("/tmp/ray")
    """Temporary folder of the Ray head, with the file that lists the metrics port of every node."""
    prometheus_url: str = PROMETHEUS_URL
    """URL of Prometheus for Grafana."""
    scrape_every_s: float = Field(5.0, ge=0.1)
    """Time between two scrapes."""


def run(options: DashboardsOptions) -> int:
    """Writes the files; prints the commands that start both programs with them."""
    from rayjobs.cli.console import console_out
    from rayjobs.dashboards.alerts import alert_rules
    from rayjobs.dashboards.serving import serving_dashboard
    from rayjobs.dashboards.steering import steering_dashboard
    from rayjobs.dashboards.training import training_dashboard

    folder = writable_folder(options.out).absolute()
    grafana = folder / "grafana"
    for path in (
        grafana / "dashboards",
        grafana / "provisioning" / "datasources",
        grafana / "provisioning" / "dashboards",
    ):
        path.mkdir(parents=True, exist_ok=True)
    _write_yaml(folder / "prometheus.yml", prometheus(options))
    _write_yaml(folder / "alerts.yml", alert_rules(options.late_share, options.stale_after_s))
    steering = steering_dashboard(options.late_share, options.stale_after_s)
    boards = {"steering": steering, "serving": serving_dashboard(), "deep-scheduling": training_dashboard()}
    for name, content in boards.items():
        write_json(grafana / "dashboards" / f"{name}.json", content)
    for name, provisioned in provisioning(options, grafana).items():
        _write_yaml(grafana / "provisioning" / name, provisioned)
    out = console_out()
    for line in (
        f"prometheus --config.file={folder}/prometheus.yml",
        f"GF_PATHS_PROVISIONING={grafana}/provisioning grafana server",
    ):
        out.print(line, markup=False, soft_wrap=True)
    return 0


def prometheus(options: DashboardsOptions) -> dict[str, Any]:
    """Prometheus' configuration: the controllers, every node that Ray lists, and policies served without Ray."""
    from rayjobs.dashboards.alerts import JOB

    targets = str(options.ray_temp_dir / "prom_metrics_service_discovery.json")
    every = f"{options.scrape_every_s:g}s"
    served: dict[str, Any] = {"job_name": "deepsched-serve", "static_configs": [{"targets": list(options.served)}]}
    if options.served_token_file is not None:
        served["authorization"] = {"type": "Bearer", "credentials_file": str(options.served_token_file.absolute())}
    return {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [
            {"job_name": JOB, "static_configs": [{"targets": list(options.controllers)}]},
            {"job_name": "ray", "file_sd_configs": [{"files": [targets], "refresh_interval": "5s"}]},
            *([served] if options.served else ()),
        ],
    }


def provisioning(options: DashboardsOptions, grafana: Path) -> dict[str, dict[str, Any]]:
    """Grafana's provisioning files by name."""
    source = {"name": "Prometheus", "uid": UID, "type": "prometheus", "access": "proxy", "isDefault": True}
    provider = {"name": "deep-scheduling", "type": "file", "options": {"path": str(grafana / "dashboards")}}
    return {
        "datasources/prometheus.yaml": {"apiVersion": 1, "datasources": [{**source, "url": options.prometheus_url}]},
        "dashboards/deep-scheduling.yaml": {"apiVersion": 1, "providers": [provider]},
    }


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000).encode())


VERB = Verb(
    name="dashboards",
    example="deepsched dashboards --out dashboards --controllers proxy-1:9109,proxy-2:9109",
    options=DashboardsOptions,
    run=run,
    shares=True,
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
