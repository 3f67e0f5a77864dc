"""`deepsched dashboards`: files for Prometheus and Grafana that show and watch what the commands export."""
