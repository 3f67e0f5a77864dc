"""`deepsched contract`: judges proxies by what every proxy should do, before test servers, and writes the matrix."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actuators.errors import ConfigError
from rayjobs.cli.console import console_out
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.progress import Progress, Stage
from rayjobs.contract.options import ContractOptions

if TYPE_CHECKING:
    from rayjobs.contract.checks import Judged
    from rayjobs.runs.folder import RunFolder

EXIT_FAILED = 1
PAGE, TABLE, CONTENT = "contract.html", "contract.md", "contract.json"
_SERVERS = 10
_START, _START_S, _PROXY_S = "test servers", 2.0, 60.0
"""What test servers take to start, and the checks of a proxy, roughly; only for the display."""


def run(options: ContractOptions) -> int:
    """Prints and writes the matrix; 1 when a proxy that was named, or else `expected_delay`, fails a check."""
    from rayjobs.contract.proxies import LEARNED, GivenProxy, names_of, started
    from rayjobs.contract.stand import Stand
    from rayjobs.contract.suite import Suite, check_load
    from rayjobs.runs.folder import RunFolder

    given = GivenProxy(options.proxy, options.weights_command, options.reload_command) if options.proxy else None
    names = (given.name,) if given else names_of(options.proxies)
    addresses = _loopback(options.servers) if given else ("127.0.0.1:0",) * _SERVERS
    check_load(len(addresses), options.workers, options.rate_rps)
    folder = RunFolder.create(options.out, "contract", options.seed, options)
    judged: list[Judged] = []
    stages = [Stage(_START, _START_S), *(Stage(name, _PROXY_S) for name in names)]
    with Progress(stages) as progress, contextlib.ExitStack() as stack:
        with progress.stage(_START):
            servers = Stand(addresses, folder.path / "servers", workers=options.workers, seed=options.seed)
            stand = stack.enter_context(servers)
        for name in names:
            required = bool(given or options.proxies) or name == LEARNED
            work_dir = folder.path / "proxies"
            running = (
                contextlib.nullcontext(given) if given else started(name, stand.topology, options.workers, work_dir)
            )
            with progress.stage(name) as stage, running as proxy:
                judged.append(Suite(stand, options.rate_rps, stage.update).judge(proxy, required=required))
                _write(folder, options, judged, len(addresses))
                stage.say(f"failed: {', '.join(judged[-1].failed) or 'nothing'}")
    console_out().print(_table(judged))
    console_out().print(f"page: {folder.path / PAGE}", markup=False, soft_wrap=True)
    return EXIT_FAILED if any(each.failed for each in judged if each.required) else 0


def _write(folder: RunFolder, options: ContractOptions, judged: Sequence[Judged], servers: int) -> None:
    """Also while others are still to be judged: an interrupted run keeps what it has."""
    import json

    from rayjobs.cli.config import dump_yaml
    from rayjobs.contract.page import markdown, stand_in_words, write_page
    from rayjobs.runs.folder import command_line, versions

    folder.write(CONTENT, json.dumps([each.to_json() for each in judged], indent=1) + "\n")
    folder.write(TABLE, markdown(judged))
    words = stand_in_words(servers, options.workers, options.rate_rps)
    write_page(folder.path / PAGE, judged, words, command_line("contract"), dump_yaml(options), versions())


def _table(judged: Sequence[Judged]) -> object:
    from rayjobs.contract.page import table

    return table(judged)


def _loopback(servers: Sequence[str]) -> tuple[str, ...]:
    """The addresses. Raises ConfigError for one that other machines can reach, a port that is none, or one twice."""
    for address in servers:
        host, _, port = address.rpartition(":")
        if host not in ("127.0.0.1", "[::1]") or not port.isdigit() or not 0 < int(port) < 65536:
            remedy = "give 127.0.0.1:PORT; test servers listen on loopback only"
            raise ConfigError(f"'{address}' is not an address of this machine", where="servers", remedy=remedy)
    if len(set(servers)) != len(servers):
        raise ConfigError("an address is given twice", where="servers", remedy="give each server its own")
    return tuple(servers)


VERB = Verb(
    name="contract",
    example="deepsched contract --proxy http://127.0.0.1:8080 --reload-command 'systemctl reload nginx'",
    options=ContractOptions,
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
