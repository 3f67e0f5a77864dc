"""Checkpoints of a training run: the newest of each phase is always whole, and says where to go on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from ray.rllib.algorithms.algorithm import Algorithm
from safetensors.torch import load_file, save

from actuators.files import write_atomic, write_json
from tuning.held_out import Best


@dataclass(frozen=True)
class Saved:
    """Where a run stands: its phase, the steps done in it, RLlib's folder, the best network so far."""

    phase: str
    step: int
    finished: bool
    path: Path
    best: Best


class Checkpoints:
    """Writes under `folder`; `PHASE.json` names the newest checkpoint and is replaced after that is complete."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def save(self, algo: Algorithm, phase: str, step: int, best: Best, *, finished: bool) -> Path:
        """Saves and forgets the phase's older checkpoints; the folder that RLlib can restore from."""
        target = self._folder / (phase if finished else f"{phase}-{step}")
        target.mkdir(parents=True, exist_ok=True)
        algo.save_to_path(str(target))
        if best.state:
            write_atomic(self._folder / f"{target.name}-best.safetensors", save(best.state))
        state = {"phase": phase, "step": step, "finished": finished, "path": target.name}
        state |= {"best_score": best.score, "looks_since": best.looks_since} if best.state else {}
        write_json(self._folder / f"{phase}.json", state)
        for old in self._folder.glob(f"{phase}-*"):
            if old.name not in (target.name, f"{target.name}-best.safetensors"):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        return target

    def latest(self, phase: str) -> Saved | None:
        """The newest checkpoint of a phase, None when there is none yet."""
        path = self._folder / f"{phase}.json"
        if not path.exists():
            return None
        state = json.loads(path.read_bytes())
        best = Best()
        if "best_score" in state:
            tensors = load_file(self._folder / f"{state['path']}-best.safetensors")
            best = Best(state["best_score"], state["looks_since"], tensors)
        return Saved(state["phase"], state["step"], state["finished"], self._folder / state["path"], best)
