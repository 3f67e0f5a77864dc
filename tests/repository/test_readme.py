"""README and docs are held against the code: commands parse, targets and files exist, all verbs are in the table."""

import re
import shlex
from pathlib import Path

import pytest

from rayjobs.cli.config import CONFIGS, load_options
from rayjobs.cli.main import load_verb
from rayjobs.cli.verbs import SUBCOMMANDS, VERBS, verb_names
from rayjobs.steer.handover import Handover
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
ONBOARDED = "/var/lib/deepsched"  # the pages' folder of an onboarding
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
PAGES |= {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}


def commands() -> list[str]:
    """Every `deepsched VERB …` and `python -m rayjobs.VERB …`, in shell blocks and in the text; not those with …"""
    return sorted({command for text in PAGES.values() for command in _commands(text) if "…" not in command})


def _commands(text: str) -> list[str]:
    blocks = "\n".join(re.findall(r"^```(?:sh|ini)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    lines = [re.split(r"  +#| > ", line)[0].strip() for line in blocks.replace("\\\n", "").splitlines()]
    found = [words[1] for line in lines if (words := re.match(r"(?:\S*=)?(?:\S*/)?(deepsched .*)", line))]
    found += [f"deepsched {line.split('python -m rayjobs.')[1]}" for line in lines if "python -m rayjobs." in line]
    return found + re.findall(r"`(deepsched [a-z]+[^`]*)`", text)


def test_it_fits_two_screens() -> None:
    assert len(README.encode()) <= 8192


def test_every_verb_is_in_the_table_and_no_other() -> None:
    listed, there = set(re.findall(r"^\| `([a-z]+)` \|", README, re.MULTILINE)), set(VERBS)
    assert listed == there, f"README's table: add rows for {there - listed}, drop {listed - there}"


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command: str, tmp_path: Path) -> None:
    Handover(bundle=Path("bundle"), nginx_conf=Path("nginx.conf"), groups=("app",), interval_s=1.0).write(tmp_path)
    _, name, *words = shlex.split(command.replace(ONBOARDED, str(tmp_path)))
    words = [word for word in words if word not in ("--help", "--print-config")]
    if name in SUBCOMMANDS and words:
        name, words = f"{name} {words[0]}", words[1:]
    if not words:
        assert name in {*VERBS, *verb_names()}
        return
    verb = load_verb(name)
    given = verb.parser().parse(words)
    file, assignments = given.pop("config", None), given.pop("set", ())
    load_options(verb.options, file=file, assignments=assignments, flags=given)


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {target for text in PAGES.values() for target in re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE)}
    assert {"demo", "test", "bench", "doctor", "docs"} <= named
    assert all(f"\n{target}:" in makefile for target in named)


def test_every_file_named_is_there() -> None:
    pattern = r"`((?:actuators|envs|tuning|rayjobs|tests)/[\w./]+)`"
    named = {path for text in PAGES.values() for path in re.findall(pattern, text)} | {"cluster.yaml"}
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


def test_our_configs_are_for_verbs_that_take_them() -> None:
    """rayjobs/configs/VERB.yaml or VERB-VARIANT.yaml, or a variant (quick) that some verb accepts."""
    for path in sorted(CONFIGS.glob("*.yaml")):
        assert _accepted_by_some_verb(path), f"{path.name} fits no verb"


def _accepted_by_some_verb(path: Path) -> bool:
    from actuators.errors import ConfigError

    for name in verb_names():
        try:
            load_options(load_verb(name).options, file=path)
        except ConfigError:
            continue
        return True
    return False
