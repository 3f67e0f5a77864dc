"""The `deepsched` command: finds a verb by name, fills its options, runs it, turns errors into one line."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from actuators.errors import ConfigError, DeepSchedError, closest
from actuators.options import Options
from rayjobs.cli.config import dump_yaml, load_options
from rayjobs.cli.flags import build_parser
from rayjobs.cli.interrupts import Terminated, claim_signals, follow_parent, release_signals
from rayjobs.cli.verbs import VERBS

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Verb:
    """One command, the `VERB` of rayjobs/NAME.py; heavy imports belong inside `run`, help must be fast.

    Attributes:
        example: a command line that works, shown by `--help`.
        options: its Options; plain fields become flags, nested Options are reached by `--set`.
        run: gets the filled options; returns the exit code.
        positional: names of option fields that may be given without a flag.
        render: what `--print-config` shows instead of the options, for a tool of somebody else's.
        summary: one line for help; that of the verbs' table when empty.
    """

    name: str
    example: str
    options: type[Options]
    run: Callable[[Any], int]
    positional: tuple[str, ...] = ()
    render: Callable[[Any], str] | None = None
    summary: str = ""

    def __post_init__(self) -> None:
        if not self.summary:
            object.__setattr__(self, "summary", VERBS[self.name][1])


def main(argv: Sequence[str] | None = None) -> int:
    """`deepsched VERB …`; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else EXIT_USER_ERROR
    return _guarded("deepsched", lambda: _run(load_verb(words[0]), words[1:]), label=words[0])


def run_verb(verb: Verb, argv: Sequence[str] | None = None) -> int:
    """What `python -m rayjobs.VERB` does; the exit code."""
    words = sys.argv[1:] if argv is None else argv
    return _guarded("deepsched", lambda: _run(verb, words), label=verb.name)


def load_verb(name: str) -> Verb:
    """The verb of that name. Raises ConfigError with the closest match when there is none."""
    if name not in VERBS:
        raise ConfigError(f"unknown verb '{name}'", remedy=closest(name, VERBS))
    verb = importlib.import_module(VERBS[name][0]).VERB
    assert isinstance(verb, Verb)
    return verb


def overview() -> str:
    """The text of `deepsched --help`."""
    width = max(map(len, VERBS))
    lines = ["usage: deepsched VERB [options]     (deepsched VERB --help explains one)", ""]
    lines += [f"  {name:<{width}}  {summary}" for name, (_, summary) in VERBS.items()]
    return "\n".join([*lines, "", "Each is also `python -m rayjobs.VERB`, as in `ray job submit`."])


def _run(verb: Verb, words: Sequence[str]) -> int:
    parser = build_parser(f"deepsched {verb.name}", verb.summary, verb.example, verb.options, verb.positional)
    given = parser.parse(words)
    file, assignments, only_print = given.pop("config", None), given.pop("set", ()), given.pop("print_config", False)
    flags = {name: value for name, value in given.items() if not (name in verb.positional and value in (None, []))}
    options = load_options(verb.options, file=file, assignments=assignments, flags=flags)
    if only_print:
        print(verb.render(options) if verb.render else dump_yaml(options), end="")
        return 0
    return verb.run(options)


def _guarded(program: str, action: Callable[[], int], *, label: str) -> int:
    """Runs `action`; what the user caused becomes one line and an exit code, a bug keeps its traceback."""
    follow_parent()
    claim_signals()
    try:
        return action()
    except DeepSchedError as error:
        return _say(f"{program} {label}: {error}", EXIT_USER_ERROR)
    except Terminated:
        return _say(f"{program} {label}: ended by SIGTERM", EXIT_TERMINATED)
    except KeyboardInterrupt:
        return _say(f"{program} {label}: interrupted", EXIT_INTERRUPTED)
    except SystemExit as end:
        # While `ray.init` runs, SIGTERM goes to Ray's own handler, which exits with the signal's number.
        if end.code != signal.SIGTERM:
            raise
        return _say(f"{program} {label}: ended by SIGTERM", EXIT_TERMINATED)
    except BrokenPipeError:
        # The reader of our output has gone (`deepsched … | head`); keep the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    finally:
        release_signals()


def _say(line: str, code: int) -> int:
    sys.stdout.flush()
    print(" ".join(line.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
