"""The cheapest server there is, to measure clients against: one NGINX process that answers 200 and nothing else."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from actuators.files import writable_folder
from actuators.nginx_detect import detect
from actuators.process import ManagedProcess

_CONFIG = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port} backlog=8192; location / {{ return 200 "ok\\n"; }} }}
}}
"""


class TrivialServer:
    """A context manager. Raises MissingToolError without an NGINX, ProcessError when it does not start."""

    def __init__(self, folder: Path) -> None:
        self._folder = writable_folder(folder)
        self.port = _free_port()
        config = self._folder / "trivial.conf"
        config.write_text(_CONFIG.format(folder=self._folder, port=self.port), encoding="utf-8")
        command = [
            str(detect().binary),
            "-p",
            str(self._folder),
            "-e",
            str(self._folder / "error.log"),
            "-c",
            str(config),
        ]
        self._process = ManagedProcess(command, name="the trivial server", log_path=self._folder / "trivial.log")
        self._process.wait_ready(self._answers)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def pause(self) -> None:
        """Stops it from answering; the kernel still accepts connections and bytes."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.resume()
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
