"""Dashboards: the files that Prometheus and Grafana read say what we export."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from rayjobs.dashboards import DashboardsOptions, dashboard, run
from tuning.live.metrics import COUNTERS, GAUGES, TRIAL_GAUGES


def test_every_metric_has_a_panel_of_its_own() -> None:
    panels = dashboard()["panels"]
    queries = [panel["targets"][0]["expr"] for panel in panels]
    for name in (*COUNTERS, *GAUGES, *TRIAL_GAUGES):
        assert sum(f"ray_deepsched_{name}" in query for query in queries) == 1, name
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)


def test_the_files_refer_to_each_other(tmp_path: Path) -> None:
    assert run(DashboardsOptions(out=tmp_path, ray_temp_dir=Path("/tmp/somewhere"))) == 0
    scrape = yaml.safe_load((tmp_path / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape[0]["file_sd_configs"][0]["files"] == ["/tmp/somewhere/prom_metrics_service_discovery.json"]
    provisioning = tmp_path / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "deep-scheduling.yaml").read_text())["providers"]
    (file,) = Path(provider["options"]["path"]).glob("*.json")
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    used = {panel["datasource"]["uid"] for panel in json.loads(file.read_text())["panels"]}
    assert used == {source["uid"]}
