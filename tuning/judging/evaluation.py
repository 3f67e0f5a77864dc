"""The result of judging: values per policy, paired ratios with intervals, the blocks and windows behind them."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.topology import Group, Topology
from actuators.errors import DataError
from actuators.files import write_atomic
from envs.heuristics.names import policy_name
from tuning.judging.blocks import Block, jain_index
from tuning.judging.content import WindowRecord
from tuning.judging.statistics import METRICS, PairedRatio, Sample, compare
from tuning.judging.tally import BlockTally

FORMAT_VERSION = 1
SCHEMA_PATH = Path(__file__).with_name("evaluation.schema.json")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Finished blocks and what follows from them.

    Attributes:
        deadlines_s: ``[groups]``.
        reference: the policy that ratios are to.
        learned: the policy on trial, when there is one.
        rounds: of all seeds together.
        seeds: how many seeds, `seed` being the first.
        testbed: ``live`` or ``simulated``; "" when it was not said.
    """

    scenario: str
    topology: Topology
    deadlines_s: FloatArray
    blocks: tuple[Block, ...]
    rounds: int
    warm_up_s: float
    measure_s: float
    interval_s: float
    seed: int
    reference: str
    learned: str | None = None
    seeds: int = 1
    testbed: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def policies(self) -> tuple[str, ...]:
        """Names in the order they are shown: the reference first, the learned policy last."""
        names = {block.planned.policy for block in self.blocks}
        return tuple(sorted(names, key=lambda name: (name == self.learned, name != self.reference, name)))

    def ratios(self, policy: str, reference: str, group: int | None = None) -> dict[str, PairedRatio]:
        """Paired ratios of every metric over the rounds in which both have a usable block."""
        ours, theirs = self._usable(policy), self._usable(reference)
        rounds = sorted(ours.keys() & theirs.keys())
        if not rounds:
            return {name: PairedRatio(None, None, None, None, 0) for name in METRICS}
        sample, other = self._sample(policy, rounds, group), self._sample(reference, rounds, group)
        run_seeds = [ours[r].planned.run_seed for r in rounds]
        return compare(sample, other, rounds=len(rounds), seed=self.seed, run_seeds=run_seeds)

    def best_heuristic(self) -> str | None:
        """Of the heuristics that are neither learned nor the reference, the one with the lowest ART per request.

        The mean decides among equals; it alone would favour what fails fast. Oracles and other balancers are left out.
        """
        # Imports the compiled simulator; most readers of an evaluation do without.
        from tuning.judging.contenders import is_heuristic  # noqa: PLC0415

        methods = {block.planned.policy: block.planned.method for block in self.blocks}
        ranks: dict[str, tuple[float, float]] = {}
        for name, values in self.values.items():
            art, mean_ms = values["art_per_request"], values["mean_ms"]
            if art is not None and name not in (self.learned, self.reference) and is_heuristic(name, methods[name]):
                ranks[name] = (art, math.inf if mean_ms is None else mean_ms)
        return min(ranks, key=ranks.__getitem__) if ranks else None

    @cached_property
    def values(self) -> dict[str, dict[str, Any]]:
        """Per policy: every metric over its usable blocks."""
        return {policy: self._values(policy, None) for policy in self.policies}

    def to_json(self) -> dict[str, Any]:
        """The content of `evaluation.json`, as `evaluation.schema.json` describes it; computed once."""
        return self._content

    @cached_property
    def _content(self) -> dict[str, Any]:
        windows = [{"block": index, **record} for index, block in enumerate(self.blocks) for record in block.windows]
        return {
            "format_version": FORMAT_VERSION,
            "created": self.created,
            "scenario": self.scenario,
            "testbed": self.testbed,
            "seed": self.seed,
            "seeds": self.seeds,
            "reference": self.reference,
            "learned": self.learned,
            "rounds": self.rounds,
            "warm_up_s": self.warm_up_s,
            "measure_s": self.measure_s,
            "interval_s": self.interval_s,
            "deadlines_ms": dict(zip(self.topology.request_types, (self.deadlines_s * 1e3).tolist(), strict=True)),
            "machine": self.machine,
            "groups": [{**group.__dict__, "servers": list(group.servers)} for group in self.topology.groups],
            "accounting": self._accounting(self.blocks),
            "policies": {policy: self._policy(policy) for policy in self.policies},
            "best_heuristic": self._against_best_heuristic(),
            "blocks": [block.to_json() for block in self.blocks],
            "windows": windows,
        }

    def write(self, path: Path) -> dict[str, Any]:
        """Writes `evaluation.json` atomically, a line per block and window; returns its content."""
        content = self.to_json()
        write_atomic(path, _dump(content))
        return content

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Evaluation:
        """Inverse of `to_json`: statistics are computed anew. Raises DataError for another format."""
        if data.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"format_version is {data.get('format_version')}", where="evaluation.json", remedy="evaluate again"
            )
        data = with_present_names(data)
        windows: list[list[WindowRecord]] = [[] for _ in data["blocks"]]
        for record in data["windows"]:
            fields = {name: value for name, value in record.items() if name != "block"}
            windows[record["block"]].append(fields)
        names = ("scenario", "rounds", "warm_up_s", "measure_s", "interval_s", "seed", "reference", "learned")
        told = {name: data[name] for name in ("seeds", "testbed") if name in data}
        return cls(
            topology=Topology(tuple(Group(**{**g, "servers": tuple(g["servers"])}) for g in data["groups"])),
            deadlines_s=np.array(list(data["deadlines_ms"].values())) / 1e3,
            blocks=tuple(Block.from_json(b, tuple(w)) for b, w in zip(data["blocks"], windows, strict=True)),
            machine=data["machine"],
            created=data["created"],
            **{name: data[name] for name in names},
            **told,
        )

    def _sample(self, policy: str, rounds: Sequence[int], group: int | None) -> Sample:
        key = (policy, tuple(rounds), group)
        if key not in self._samples:
            blocks = self._usable(policy)
            self._samples[key] = Sample([blocks[r].tally for r in rounds], self.deadlines_s, group)
        return self._samples[key]

    @cached_property
    def _samples(self) -> dict[tuple[str, tuple[int, ...], int | None], Sample]:
        return {}

    def _usable(self, policy: str) -> dict[int, Block]:
        return {b.planned.round: b for b in self.blocks if b.planned.policy == policy and b.usable}

    def _values(self, policy: str, group: int | None) -> dict[str, Any]:
        tallies = [block.tally for block in self._usable(policy).values()]
        if not tallies:
            return dict.fromkeys(METRICS)
        values: dict[str, Any] = Sample(tallies, self.deadlines_s, group).pooled()
        return {**values, "errors": int(values["errors"])}

    def _distribution(self, policy: str, group: int | None) -> dict[str, list[float]]:
        tallies = [block.tally for block in self._usable(policy).values()]
        empty: dict[str, list[float]] = {"percentile": [], "latency_ms": []}
        return Sample(tallies, self.deadlines_s, group).cdf() if tallies else empty

    def _policy(self, policy: str) -> dict[str, Any]:
        blocks = [block for block in self.blocks if block.planned.policy == policy]
        usable = self._usable(policy)
        measured_s = sum(block.duration_s for block in usable.values())
        judged = BlockTally.total([b.tally for b in usable.values()]) if usable else None
        return {
            "method": blocks[0].planned.method,
            "requests": sum(int(block.tally.sent.sum()) for block in blocks),
            "judged_requests": int(judged.sent.sum()) if judged else 0,
            "blocks": len(blocks),
            "discarded_blocks": len(blocks) - len(usable),
            **self.values[policy],
            "throughput_rps": float(judged.answered.sum()) / measured_s if judged else None,
            "changes_per_minute": sum(b.changes for b in usable.values()) / measured_s * 60 if usable else None,
            "jain_utilisation": _mean_jain(list(usable.values())),
            **_cpu_us(list(usable.values())),
            **_published(self.ratios(policy, self.reference)),
            "per_type": {
                name: {
                    "requests": sum(int(block.tally.sent[group]) for block in blocks),
                    **self._values(policy, group),
                    "throughput_rps": float(judged.answered[group]) / measured_s if judged else None,
                    **_published(self.ratios(policy, self.reference, group)),
                    "latency": self._distribution(policy, group),
                }
                for group, name in enumerate(self.topology.request_types)
            },
            "latency": self._distribution(policy, None),
            "accounting": self._accounting(blocks),
        }

    def _accounting(self, blocks: Sequence[Block]) -> dict[str, Any] | None:
        if not blocks:
            return None
        flags = [flag for block in blocks for flag in block.flags]
        return {
            "requests": sum(int(block.tally.sent.sum()) for block in blocks),
            **BlockTally.total([block.tally for block in blocks]).accounting(),
            "discarded_blocks": sum(not block.usable for block in blocks),
            "discarded_because": sorted(set(flags)),
        }

    def _against_best_heuristic(self) -> dict[str, Any] | None:
        best = self.best_heuristic()
        if best is None or self.learned is None:
            return None
        return {"policy": best, **_published(self.ratios(self.learned, best))}


def with_present_names(content: dict[str, Any]) -> dict[str, Any]:
    """The content of an `evaluation.json` in which policies may have their former names, with the present ones."""
    learned, best = content["learned"], content["best_heuristic"]
    return {
        **content,
        "reference": policy_name(content["reference"]),
        "learned": None if learned is None else policy_name(learned),
        "policies": {policy_name(name): values for name, values in content["policies"].items()},
        "best_heuristic": None if best is None else {**best, "policy": policy_name(best["policy"])},
        "blocks": [{**block, "policy": policy_name(block["policy"])} for block in content["blocks"]],
    }


def describe_machine() -> dict[str, Any]:
    """What a reader needs to know of this machine to judge the numbers."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages * page / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu_us(blocks: Sequence[Block]) -> dict[str, float]:
    """`proxy_cpu_us`, CPU time of the load balancer per answered request in microseconds, where somebody looked."""
    seen = [(block.proxy_cpu_s, int(block.tally.answered.sum())) for block in blocks if block.proxy_cpu_s is not None]
    answered = sum(count for _, count in seen)
    return {"proxy_cpu_us": round(sum(spent_s for spent_s, _ in seen) / answered * 1e6, 2)} if answered else {}


def _mean_jain(blocks: Sequence[Block]) -> float | None:
    """Jain's index of the servers' utilisation in each block, averaged; None when no one counted per server."""
    known = [index for index in (jain_index(block.utilisation) for block in blocks) if index is not None]
    return sum(known) / len(known) if known else None


def _published(ratios: dict[str, PairedRatio]) -> dict[str, Any]:
    columns = {name: ratio.to_json() for name, ratio in ratios.items()}
    return {
        "ratios": {name: column["value"] for name, column in columns.items()},
        "intervals": {name: column["interval"] for name, column in columns.items()},
        "median_ratios": {name: column["median"] for name, column in columns.items()},
        "paired_rounds": next(iter(ratios.values())).rounds,
    }


def _dump(content: dict[str, Any]) -> str:
    """JSON with a line per key, block and window: small, and a diff of two runs can be read."""
    lines = []
    for name, value in content.items():
        if isinstance(value, list):
            body = "[\n  " + ",\n  ".join(json.dumps(item, allow_nan=False) for item in value) + "\n ]"
        elif name == "policies":
            body = json.dumps(value, indent=1, allow_nan=False)
        else:
            body = json.dumps(value, allow_nan=False)
        lines.append(f' "{name}": {body}')
    return "{\n" + ",\n".join(lines) + "\n}\n"
