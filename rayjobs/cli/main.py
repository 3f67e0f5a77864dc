"""The `deepsched` command: finds a verb by name, fills its options, runs it, turns errors into one line."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from actuators.errors import DeepSchedError
from actuators.files import REMEDIES
from actuators.options import Options
from rayjobs.cli.config import dump_yaml, load_options
from rayjobs.cli.extras import missing_extra
from rayjobs.cli.flags import Parser
from rayjobs.cli.interrupts import claim_signals, follow_parent, release_signals, terminated
from rayjobs.cli.spellings import current_spelling
from rayjobs.cli.verbs import SUBCOMMANDS, VERBS, entry

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM
_HELP = ("-h", "--help", "help")
_RIGHTS = dict.fromkeys((errno.EACCES, errno.EPERM), "run this as a user who may, or name another place")


@dataclass(frozen=True)
class Verb:
    """One command, `deepsched train` or `deepsched steer run`; heavy imports belong inside `run`: help must be fast.

    Attributes:
        name: as it is typed after `deepsched`.
        example: a command line that works, the first thing that `--help` shows.
        options: its Options; plain fields become flags, nested Options are reached by `--set`.
        run: receives the filled options; returns the exit status.
        positional: names of option fields that may be given without a flag.
        common: dotted paths of the options that `--help` shows, `--help-all` shows all; all when empty.
        render: what `--print-config` prints instead of the options, for another program.
        summary: one line for help; that of the table of verbs when empty.
        shares: other programs may read its files, as the user's umask says; all others are private.
    """

    name: str
    example: str
    options: type[Options]
    run: Callable[[Any], int]
    positional: tuple[str, ...] = ()
    common: tuple[str, ...] = ()
    render: Callable[[Any], str] | None = None
    summary: str = ""
    shares: bool = False

    def __post_init__(self) -> None:
        if not self.summary:
            object.__setattr__(self, "summary", entry(self.name)[1])

    def parser(self) -> Parser:
        """The parser of its command line."""
        prog = f"deepsched {self.name}"
        return Parser(prog, self.summary, self.example, self.options, self.positional, self.common)


def main(argv: Sequence[str] | None = None) -> int:
    """`deepsched VERB …`; the exit status."""
    words = current_spelling(list(sys.argv[1:] if argv is None else argv))
    if not words or words[0] in _HELP:
        print(overview())
        return 0 if words else EXIT_USER_ERROR
    name, rest = words[0], words[1:]
    if name in SUBCOMMANDS:
        if not rest or rest[0] in _HELP:
            print(overview(name))
            return 0 if rest else EXIT_USER_ERROR
        name, rest = f"{name} {rest[0]}", rest[1:]
    return _guarded(name, lambda: _run(load_verb(name), rest))


def run_verb(verb: Verb, argv: Sequence[str] | None = None) -> int:
    """What `python -m rayjobs.VERB` does; the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return _guarded(verb.name, lambda: _run(verb, words))


def load_verb(name: str) -> Verb:
    """The verb of that name (`train`, `steer run`). Raises ConfigError with the closest match for an unknown one."""
    module, _, attribute = entry(name)[0].partition(":")
    verb = getattr(importlib.import_module(module), attribute or "VERB")
    assert isinstance(verb, Verb)
    return verb


def overview(verb: str = "") -> str:
    """The text of `deepsched --help`, or of `deepsched VERB --help` for a verb with subcommands."""
    table, kind = (SUBCOMMANDS[verb], "COMMAND") if verb else (VERBS, "VERB")
    program = f"deepsched {verb}".rstrip()
    width = max(map(len, table))
    lines = [f"usage: {program} {kind} [options]     ({program} {kind} --help explains one)", ""]
    lines += [VERBS[verb][1], ""] if verb else []
    lines += [f"  {name:<{width}}  {summary}" for name, (_, summary) in table.items()]
    return "\n".join([*lines, "", f"The same as `python -m rayjobs.{verb or 'VERB'}`, which `ray job submit` needs."])


def _run(verb: Verb, words: Sequence[str]) -> int:
    given = verb.parser().parse(words)
    file, assignments, only_print = given.pop("config", None), given.pop("set", ()), given.pop("print_config", False)
    flags = {name: value for name, value in given.items() if not (name in verb.positional and value in (None, []))}
    options = load_options(verb.options, file=file, assignments=assignments, flags=flags)
    if only_print:
        print(verb.render(options) if verb.render else dump_yaml(options), end="")
        return 0
    # Also for what our processes create: NGINX, Ray, the stand-in servers.
    with _file_rights(0o022 if verb.shares else 0o077):
        return verb.run(options)


@contextlib.contextmanager
def _file_rights(taken: int) -> Iterator[None]:
    """New files lack these rights, besides those that the user's umask takes."""
    usual = os.umask(taken)
    os.umask(usual | taken)
    try:
        yield
    finally:
        os.umask(usual)


def _guarded(name: str, action: Callable[[], int]) -> int:
    """Runs `action`; what the user caused becomes one line and an exit status, a bug keeps its traceback."""
    follow_parent()
    claim_signals()
    try:
        return action()
    except DeepSchedError as error:
        return _exit_with(f"deepsched {name}: {error}", EXIT_USER_ERROR)
    except BrokenPipeError:
        # The reader of our output has gone (`deepsched … | head`); keep the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (MemoryError, ModuleNotFoundError, OSError) as error:
        of_the_machine = _of_the_machine(error)
        if of_the_machine is None:
            raise
        return _exit_with(f"deepsched {name}: {of_the_machine}", EXIT_USER_ERROR)
    except KeyboardInterrupt:
        if ended_by := terminated():
            return _exit_with(f"deepsched {name}: ended by {ended_by}", 128 + signal.Signals[ended_by])
        return _exit_with(f"deepsched {name}: interrupted", EXIT_INTERRUPTED)
    except SystemExit as end:
        # While `ray.init` runs, SIGTERM goes to Ray's own handler, which exits with the signal's number.
        if end.code != signal.SIGTERM:
            raise
        return _exit_with(f"deepsched {name}: ended by SIGTERM", EXIT_TERMINATED)
    finally:
        release_signals()


def _of_the_machine(error: Exception) -> object | None:
    """What the machine lacks, in words: memory, an extra, room on a disk, rights; None for any other error."""
    if isinstance(error, MemoryError):
        return "out of memory; use smaller or fewer values, or a larger machine"
    if isinstance(error, ModuleNotFoundError):
        return missing_extra(error)
    assert isinstance(error, OSError)
    remedy = REMEDIES.get(error.errno or 0) or _RIGHTS.get(error.errno or 0)
    place = f" ({error.filename})" if error.filename else ""
    return None if remedy is None else f"{error.strerror}{place}; {remedy}"


def _exit_with(line: str, status: int) -> int:
    sys.stdout.flush()
    print(" ".join(line.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
