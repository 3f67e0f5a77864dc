"""`deepsched steer run`: a bundle steers an NGINX, guarded and recorded, until it is ended."""

from __future__ import annotations

from rayjobs.cli.main import Verb
from rayjobs.steer.options import SteerOptions


def run(options: SteerOptions) -> int:
    """0 when the controller has ended as asked."""
    if options.actor:
        from rayjobs.steer.actor import steer_on_proxy

        steer_on_proxy(options)
    else:
        from rayjobs.steer.controller import steer

        steer(options)
    return 0


RUN = Verb(
    name="steer run",
    example="deepsched steer run --bundle runs/demo/bundle --nginx-conf /etc/nginx/nginx.conf"
    " --status-url http://127.0.0.1:8081/status/format/json --mode shadow",
    options=SteerOptions,
    run=run,
    common=(
        "bundle", "mode", "canary_percent", "nginx_conf", "status_url", "control_url", "token_file", "folder",
        "interval_s", "duration_s", "workers", "serve_url", "metrics_port",
    ),
)  # fmt: skip
