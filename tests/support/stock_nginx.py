"""A stock NGINX that includes nothing of the project, and `deepsched weights` beside it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from actuators.http_client import http_session
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
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


class StockSite:
    """A foreign NGINX before three servers."""

    def __init__(self, folder: Path, servers: list[str]) -> None:
        self.folder, self.port, self.servers = folder, free_port("127.0.0.1"), servers
        self.write("upstream app { " + " ".join(f"server {server};" for server in servers) + " }")

    def write(self, upstreams: str) -> None:
        text = MAIN.format(folder=self.folder, port=self.port, upstreams=upstreams)
        (self.folder / "nginx.conf").write_text(text)

    def include_snippet(self, *arguments: str) -> int:
        """Writes the snippet and applies the printed change: the port of statistics and control."""
        port = free_port("127.0.0.1")
        out = ["--out", f"{self.folder}/deepsched.conf", "--port", str(port)]
        result = deepsched("snippet", *out, "--set", f"reload.config={self.folder}/nginx.conf", *arguments)
        assert result.returncode == 0, result.stderr
        subprocess.run(["patch", "-s", "-d", "/", "-p1"], input=result.stdout, text=True, check=True)
        return port

    def start(self) -> ManagedProcess:
        pid = self.folder / "nginx.pid"
        pid.unlink(missing_ok=True)
        command = ["/usr/sbin/nginx", "-e", str(self.folder / "error.log"), "-c", str(self.folder / "nginx.conf")]
        process = ManagedProcess(command, name="nginx", log_path=self.folder / "error.log")
        process.wait_ready(lambda: pid.exists() and pid.read_text() != "")
        return process

    def who(self, count: int) -> Counter[str]:
        seen: Counter[str] = Counter()
        for _ in range(count):
            with http_session(10.0) as session:
                seen[session.get(f"http://127.0.0.1:{self.port}/x").text] += 1
        return seen
