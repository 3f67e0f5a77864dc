"""One stand-in server: `python -m actuators.social_network --database FILE --index N --ready-file FILE`.

The public listener has the three wrk2-api endpoints; the admin listener, on loopback, has POST /play, POST /behaviours
and GET /counters. Ends on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import signal
import sys
from pathlib import Path

import uvloop

from actuators.errors import DeepSchedError
from actuators.files import write_json
from actuators.social_network.admin import Admin
from actuators.social_network.http_protocol import Listener
from actuators.social_network.service import SocialService
from actuators.social_network.store import SocialStore


def main() -> int:
    """Serves until SIGTERM; 2 with one line on stderr when it cannot start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--index", type=int, required=True, help="0…1023, unique among the database's servers")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one")
    parser.add_argument("--ready-file", type=Path, required=True, help="receives both addresses as JSON")
    arguments = parser.parse_args()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    try:
        uvloop.run(_serve(arguments))
    except DeepSchedError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    store = SocialStore(arguments.database, arguments.index)
    service = SocialService(loop, store, arguments.index)
    public = Listener(service.handle, arguments.host, arguments.port)
    admin = Admin(service, public)
    private = Listener(admin.handle, "127.0.0.1", 0)
    await public.open()
    await private.open()
    write_json(arguments.ready_file, {"address": public.address, "admin": private.address})
    # Collections that visit these permanent objects would stop the loop for milliseconds.
    gc.collect()
    gc.freeze()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
    admin.close()
    public.close()
    private.close()
    service.close()
    store.close()


if __name__ == "__main__":
    sys.exit(main())
