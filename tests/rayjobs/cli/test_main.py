"""The command line: verbs by name, flags from options, one line per user error, signals as interrupts."""

import errno
import gc
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actuators.errors import MissingToolError
from actuators.options import Options
from rayjobs.cli import interrupts
from rayjobs.cli import main as cli
from rayjobs.cli.main import Verb, run_verb
from rayjobs.cli.spellings import current_spelling
from rayjobs.cli.verbs import SUBCOMMANDS
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S


class GreetOptions(Options):
    """Of the verb below."""

    who: str
    """Whom to greet."""
    times: int = 1
    """How often."""
    pause_s: float = 0.5
    """Between two greetings, 100 % of it."""
    loud: bool = False
    """Shout."""


seen: list[GreetOptions] = []


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Pytest's handlers are back after each test, and no signal arrives inside the garbage collector.

    Python discards an exception that a handler raises in a callback of the collector, and hypothesis has one there:
    the test would wait for ever for a signal that has come.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    gc.disable()
    yield
    gc.enable()
    for number, handler in before.items():
        signal.signal(number, handler)


def greet(options: GreetOptions) -> int:
    seen.append(options)
    return 0


GREET = Verb("greet", "deepsched greet Ada --times 2", GreetOptions, greet, ("who",), summary="greet someone")


def verb_that(run: object) -> Verb:
    return Verb("greet", "deepsched greet Ada", GreetOptions, run, ("who",), summary="greet someone")  # type: ignore[arg-type]


def test_flags_positionals_and_assignments_fill_the_options() -> None:
    seen.clear()
    assert run_verb(GREET, ["Ada", "--times", "2", "--no-loud", "--set", "pause_s=0.25"]) == 0
    assert seen == [GreetOptions(who="Ada", times=2, pause_s=0.25)]


def test_help_shows_docstring_unit_default_and_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_verb(GREET, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "Between two greetings, 100 % of it. [seconds] [default: 0.5]" in text
    assert "Whom to greet. [required]" in text
    assert "deepsched greet Ada --times 2" in text


def test_the_options_in_force_can_be_kept_as_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen.clear()
    assert run_verb(GREET, ["Ada", "--times", "2", "--print-config"]) == 0
    file = tmp_path / "greet.yaml"
    file.write_text(capsys.readouterr().out)
    assert seen == [], "it only prints"
    assert run_verb(GREET, ["--config", str(file)]) == 0
    assert seen == [GreetOptions(who="Ada", times=2)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["Ada", "--time", "2"], "unexpected argument '--time'; did you mean '--times'?"),
        (["Ada", "Bob"], "unexpected argument 'Bob'"),
        (["Ada", "--times"], "--times: expected one argument"),
        (["Ada", "--times", "x"], "option 'times' is 'x', must be a valid integer"),
        ([], "option 'who' is missing"),
        (["Ada", "--config", "/nowhere/x.yaml"], "cannot read the config file"),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert run_verb(GREET, words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("deepsched greet: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_error_of_the_family_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def run(options: GreetOptions) -> int:
        raise MissingToolError("nginx is not installed", remedy="run: apt-get install nginx", evidence="line 1\nline 2")

    assert run_verb(verb_that(run), ["Ada"]) == 2
    assert capsys.readouterr().err == (
        "deepsched greet: nginx is not installed; run: apt-get install nginx [line 1 line 2]\n"
    )


def test_a_bug_keeps_its_traceback() -> None:
    def run(options: GreetOptions) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_verb(verb_that(run), ["Ada"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_run_the_clean_up_once_and_set_the_code(
    capfd: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    cleaned: list[str] = []

    def run(options: GreetOptions) -> int:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            # A second signal during the clean-up (make passes one on) must not cut it short.
            os.kill(os.getpid(), number)
            cleaned.append("all of it")
        return 0

    assert run_verb(verb_that(run), ["Ada"]) == code
    assert cleaned == ["all of it"]
    assert "deepsched greet: " in capfd.readouterr().err
    if number == signal.SIGTERM:
        os.kill(os.getpid(), number)  # one more, while the interpreter ends


def test_signals_are_given_back_when_all_went_well() -> None:
    assert run_verb(GREET, ["Ada"]) == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_while_ray_holds_the_handler_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(verb_that(lambda options: sys.exit(int(signal.SIGTERM))), ["Ada"]) == 143
    assert "ended by SIGTERM" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [(OSError(errno.ENOSPC, "No space left on device", "/runs/a"), "No space left on device (/runs/a); make room"),
     (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room"),
     (OSError(errno.EROFS, "Read-only file system", "/runs"), "Read-only file system (/runs); mount"),
     (OSError(errno.EACCES, "Permission denied", "/etc/x"), "Permission denied (/etc/x); run this as a user who may")],
)  # fmt: skip
def test_what_a_disk_or_rights_do_not_allow_is_one_line(
    error: OSError, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: GreetOptions) -> int:
        raise error

    assert run_verb(verb_that(run), ["Ada"]) == 2
    assert f"deepsched greet: {line}" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1


def test_signals_can_be_claimed_back() -> None:
    def run(options: GreetOptions) -> int:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # what ray.init does
        interrupts.claim_signals()
        with pytest.raises(interrupts.Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert run_verb(verb_that(run), ["Ada"]) == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_signal_counts_where_a_library_raises_its_own_interrupt(
    number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ray.wait` turns what our handler raises into a plain KeyboardInterrupt."""

    def run(options: GreetOptions) -> int:
        with interrupts.kept(lambda: "all is kept"):
            try:
                os.kill(os.getpid(), number)
            except KeyboardInterrupt:
                raise KeyboardInterrupt from None
        return 0

    assert run_verb(verb_that(run), ["Ada"]) == status
    assert capsys.readouterr().err.startswith("all is kept\n")


def test_a_program_that_follows_its_parent_ends_with_it() -> None:
    """The Makefile asks for it: `kill -9` of make must not leave the demo running."""
    child = (
        "import signal, sys; from rayjobs.cli.interrupts import follow_parent; "
        "follow_parent(); print('up', flush=True); signal.pause()"
    )
    parent = f"import subprocess, sys, signal; subprocess.Popen([sys.executable, '-c', {child!r}]); signal.pause()"
    with subprocess.Popen(
        [sys.executable, "-c", parent],
        stdout=subprocess.PIPE,
        env=os.environ | {"DEEPSCHED_FOLLOWS_PARENT": "1"},
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
        assert process.stdout.read() == b"", "stdout closes only when the child has ended, too"


def test_main_without_a_verb_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out.count("bench  ") == 2


def test_an_unknown_verb_gets_the_closest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bensh"]) == 2
    assert "unknown verb 'bensh'; did you mean 'bench'?" in capsys.readouterr().err


def test_the_module_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rayjobs.bench", "--sed", "3"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "deepsched bench: unexpected argument '--sed'; did you mean '--seed'?\n"


def test_a_reader_that_stops_reading_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -c 'import sys; from actuators.options import Options; from rayjobs.cli.main import *; "
        'verb = Verb("say", "", Options, lambda o: print("x" * 10**6) or 0, summary="says much"); '
        "sys.exit(run_verb(verb, []))' | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert (done.stdout, done.stderr) == ("x", "")


def test_a_name_cannot_be_a_flag_and_a_general_flag() -> None:
    class Clashing(Options):
        config: int = 1

    with pytest.raises(Exception, match="conflicting option string"):
        Verb("x", "", Clashing, lambda _: 0, summary="clashes").parser()


def test_a_clean_up_that_hangs_is_cut_short() -> None:
    program = (
        "import signal, time; from rayjobs.cli.interrupts import claim_signals, kept\n"
        "claim_signals()\n"
        "with kept(lambda: 'kept all', clean_up_s=0.2):\n"
        "    try:\n        print('up', flush=True); signal.pause()\n"
        "    finally:\n        time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert b"took too long" in said
    assert b"kept all" in said


def test_a_clean_up_that_copies_results_may_take_longer() -> None:
    program = (
        "import signal, time; from rayjobs.cli.interrupts import claim_signals, kept, reserved\n"
        "claim_signals()\n"
        "with reserved(60.0), kept(str, clean_up_s=0.2):\n"
        "    try:\n        signal.raise_signal(signal.SIGINT)\n"
        "    finally:\n        time.sleep(0.6); print('copied', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "copied\n"
    assert "took too long" not in done.stderr


@pytest.mark.parametrize(("before", "status"), [("SIG_DFL", 129), ("SIG_IGN", 0)], ids=["terminal", "nohup"])
def test_a_closed_terminal_runs_the_clean_up_and_leaves_nohup_alone(before: str, status: int) -> None:
    program = (
        "import signal, sys; from rayjobs.cli import main\n"
        f"signal.signal(signal.SIGHUP, signal.{before})\n"
        "def work():\n"
        "    try:\n        signal.raise_signal(signal.SIGHUP)\n"
        "    finally:\n        print('restored', flush=True)\n"
        "    return 0\n"
        "sys.exit(main._guarded('demo', work))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (status, "restored\n"), done.stderr
    assert ("ended by SIGHUP" in done.stderr) == (status == 129)


def test_a_verb_that_has_cleaned_up_in_time_is_not_cut_short_later() -> None:
    program = (
        "import os, signal, threading; from rayjobs.cli.interrupts import claim_signals, kept, release_signals\n"
        "claim_signals()\n"
        "try:\n"
        "    with kept(str, clean_up_s=0.3):\n        os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
        "except KeyboardInterrupt:\n    release_signals()\n"
        "for thread in threading.enumerate():\n"
        "    if thread is not threading.main_thread():\n        thread.join()\n"
        "print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize("verb", sorted(SUBCOMMANDS))
def test_a_verb_with_subcommands_lists_them(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert all(
        re.search(rf"^  {name} +{re.escape(summary)}$", text, re.M) for name, (_, summary) in SUBCOMMANDS[verb].items()
    )


def test_steer_alone_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["steer"]) == 2
    assert "usage: deepsched steer COMMAND [options]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["steer", "revrt"], "deepsched steer revrt: unknown subcommand 'revrt'; did you mean 'revert'?\n"),
        (["steer", "mode", "actve"],
         "deepsched steer mode: option 'mode' is 'actve', must be 'shadow', 'canary' or 'active' (--mode); "
         "did you mean 'active'?\n"),
        (["steer", "pause", "--bundle", "x"], "deepsched steer pause: unexpected argument '--bundle'; "
         "see deepsched steer pause --help\n"),
        (["train", "--learning-rate", "1"], "deepsched train: unexpected argument '--learning-rate'; "
         "did you mean '--set training.algorithm.learning_rate=…'?\n"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_subcommand_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("words", "now"),
    [
        ("steer --bundle B --mode blend", "steer run --bundle B --mode blend"),
        ("steer --folder F revert", "steer revert --folder F"),
        ("observe --check B --snapshots F", "encoder check B --snapshots F"),
        (
            "observe --snapshots=F --recalibrate=B --retrain-steps 9",
            "encoder recalibrate B --snapshots=F --retrain-steps 9",
        ),
        ("observe --rollback B", "encoder rollback B"),
        ("weights --control-url U", "weights get --control-url U"),
        ("weights", "weights get"),
        ("scenarios", "scenarios list"),
    ],
)
def test_earlier_spellings_are_translated_with_one_line(
    words: str, now: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert current_spelling(words.split()) == now.split()
    verb, subcommand = now.split()[:2]
    assert (
        capsys.readouterr().err
        == f"deepsched {words.split(maxsplit=1)[0]}: now spelled deepsched {verb} {subcommand} …\n"
    )


@pytest.mark.parametrize(
    "words",
    ["", "steer", "steer --help", "steer run --bundle B", "steer revrt", "observe --testbed live", "weights --help",
     "scenarios show S3", "train --seed 1"],
)  # fmt: skip
def test_present_spellings_are_left_alone(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert current_spelling(words.split()) == words.split()
    assert capsys.readouterr().err == ""


def test_a_module_with_subcommands_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rayjobs.steer", "mode", "actve"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("deepsched steer mode: option 'mode' is 'actve'")
