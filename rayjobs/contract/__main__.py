"""`deepsched contract`: judges proxies by what every proxy should do, before test servers, and writes the matrix."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from actuators.errors import ConfigError
from rayjobs.cli.console import console_out, log_line
from rayjobs.cli.main import Verb, run_verb
from rayjobs.contract.options import ContractOptions

if TYPE_CHECKING:
    from rayjobs.contract.checks import Judged
    from rayjobs.contract.suite import Suite
    from rayjobs.runs.folder import RunFolder

EXIT_FAILED = 1
PAGE, TABLE, CONTENT = "contract.html", "contract.md", "contract.json"
_SERVERS = 10

_log = partial(log_line, "contract")


def run(options: ContractOptions) -> int:
    """Prints and writes the matrix; 1 when a proxy that was named, or else `expected_delay`, fails a check."""
    from rayjobs.contract.proxies import GivenProxy, names_of
    from rayjobs.contract.stand import Stand
    from rayjobs.contract.suite import Suite
    from rayjobs.runs.folder import RunFolder

    given = GivenProxy(options.proxy, options.weights_command, options.reload_command) if options.proxy else None
    names = () if given else names_of(options.proxies)
    addresses = _loopback(options.servers) if given else ("127.0.0.1:0",) * _SERVERS
    folder = RunFolder.create(options.out, "contract", options.seed, options)
    judged: list[Judged] = []
    with Stand(addresses, folder.path / "servers", workers=options.workers, seed=options.seed) as stand:
        suite = Suite(stand, options.rate_rps, _log)
        if given:
            judged.append(suite.judge(given, required=True))
            _write(folder, options, judged, len(addresses))
        for each in _started(names, suite, folder, options):
            judged.append(each)
            _write(folder, options, judged, len(addresses))
            _log(f"{each.name}: {', '.join(each.failed) or 'nothing'} failed, {each.seconds:.0f} s")
    console_out().print(_table(judged))
    console_out().print(f"page: {folder.path / PAGE}", markup=False, soft_wrap=True)
    return EXIT_FAILED if any(each.failed for each in judged if each.required) else 0


def _started(names: Sequence[str], suite: Suite, folder: RunFolder, options: ContractOptions) -> Iterator[Judged]:
    """Each of the proxies judged in turn; one at a time runs."""
    from rayjobs.contract.proxies import LEARNED, started

    for name in names:
        with started(name, suite.stand.topology, options.workers, folder.path / "proxies") as proxy:
            yield suite.judge(proxy, required=bool(options.proxies) or name == LEARNED)


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
