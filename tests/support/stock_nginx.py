"""A stock NGINX that includes nothing of the project, and `deepsched weights` beside it."""

from __future__ import annotations

import subprocess
import sys

from tests.support.waiting import PATIENCE_S

MAIN = """load_module /usr/lib/nginx/modules/ndk_http_module.so;
load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  {upstreams}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://app; }} }}
}}
"""


def deepsched(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rayjobs.weights", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
