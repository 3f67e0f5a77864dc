"""`deepsched reproduce RUN`: the saved command with the saved seed in a fresh folder, and whether it agrees."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import yaml
from pydantic import Field

from actuators.errors import ConfigError
from actuators.files import write_json
from actuators.options import Options
from rayjobs.cli.config import load_options
from rayjobs.cli.main import Verb, load_verb, run_verb
from rayjobs.cli.verbs import VERBS
from rayjobs.runs.folder import RunFolder

EXIT_DIFFERS = 1


class ReproduceOptions(Options):
    """Which run."""

    run: Path
    """Folder of a run that judged: `evaluate`, `demo` or `train`."""
    seed: int | None = Field(default=None, ge=0)
    """Another seed, to see that the numbers depend on it; the saved one when not given."""
    out: Path | None = None
    """Folder for the new run; `runs` when not given."""


def run(options: ReproduceOptions) -> int:
    """Runs it again and says for every part whether it agrees; 1 when one does not, or says nothing."""
    from rayjobs.cli.console import console_out
    from tuning.judging.agreement import agreement, load_evaluations

    old = load_evaluations(options.run)
    verb = load_verb(saved_verb(options.run))
    folder = RunFolder.create(options.out, "reproduce", options.seed or 0, options)
    changes = {"out": folder.path} | ({} if options.seed is None else {"seed": options.seed})
    saved = options.run / "config.yaml"
    code = verb.run(load_options(verb.options, file=saved, assignments=_as_then(saved), flags=changes))
    if code != 0:
        return code
    (fresh,) = [path for path in folder.path.iterdir() if path.is_dir()]
    new = load_evaluations(fresh)
    agreements = [agreement(title, content, new[title]) for title, content in old.items() if title in new]
    for part in agreements:
        console_out().print(part.sentence, markup=False, soft_wrap=True)
    missing = [title for title in old if title not in new]
    for title in missing:
        console_out().print(f"{title}: was not judged again", markup=False)
    write_json(folder.path / "reproduce.json", {
        "run": str(options.run.absolute()), "again": str(fresh),
        "parts": [{"part": p.title, "exact": p.exact, "differences": list(p.differences), "compared": p.compared}
                  for p in agreements],
    })  # fmt: skip
    return 0 if not missing and all(part.agrees for part in agreements) else EXIT_DIFFERS


def _as_then(saved: Path) -> list[str]:
    """What a configuration of version 0.1 does not say because there was no choice."""
    try:
        observe = yaml.safe_load(saved.read_text())["observe"]
        first = "features_version" not in observe["encoder"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        # `load_options` says what is wrong with the file; what does not observe has no features.
        return []
    return ["observe.encoder.features_version=1"] if first else []


def saved_verb(folder: Path) -> str:
    """The verb of a run, from its `command.txt` or its folder's name. Raises ConfigError when there is none."""
    try:
        words = shlex.split((folder / "command.txt").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            "not the folder of a run", where=str(folder), remedy="give the one that holds command.txt"
        ) from error
    # `deepsched VERB …` or `python -m rayjobs.VERB …`; run folders are named VERB-SEED-TIME, which alone tells the verb
    # of a run that `reproduce` made.
    own = folder.resolve().name.partition("-")[0]
    again = words[1:2] == [VERB.name] or f"rayjobs.{VERB.name}" in words
    candidates = [own] if again else [*words[1:2], *(word.removeprefix("rayjobs.") for word in words), own]
    verb = next((word for word in candidates if word in VERBS and word != VERB.name), None)
    if verb is None:
        raise ConfigError("the saved command names no verb", where=str(folder / "command.txt"))
    return verb


VERB = Verb(
    name="reproduce",
    example="deepsched reproduce runs/evaluate-1-20261122T101353Z",
    options=ReproduceOptions,
    run=run,
    positional=("run",),
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
