"""Admission live, beside Envoy's adaptive concurrency: the surge of `live` before the same servers, in pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actuators.contract.admission import AdmissionRule
from actuators.contract.topology import social_network
from actuators.nginx.config import NginxOptions
from actuators.testbed.live import LiveTestbed
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from actuators.testbed.peers import ENVOY, NoStatistics, Peer, why_missing
from rayjobs.bench.admission.live import BUSY, ROUNDS, SURGE, Block, play
from rayjobs.bench.parts.bars import Bar, BenchContext, figure

OURS: AdmissionRule = "aimd_thresh"


def measure(context: BenchContext) -> Sequence[Bar]:
    """Goodput in the surge and after it; nothing where Envoy is not installed. Envoy begins anew in each block, as our
    rule does."""
    if missing := why_missing(ENVOY):
        context.log(f"left out beside admission: {ENVOY}: {missing}")
        return []
    options = LiveOptions(nginx=NginxOptions(admission=True, method="least_conn"))
    topology = social_network(("server-1:80", "server-2:80", "server-3:80"))
    generator, found = np.random.default_rng([context.seed, 0xE2]), dict[str, list[Block]]()
    with start_local_testbed(topology, options, context.work_dir, context.seed) as testbed:
        testbed.set_method("least_conn")
        for number in range(ROUNDS):
            for arm in generator.permutation([OURS, ENVOY]):
                block = _block(context, testbed, str(arm), number)
                context.log(f"round {number + 1}, {arm}: {block}")
                found.setdefault(str(arm), []).append(block)
    return [_bar(part, found) for part in ("before", "surge", "after")]


def _block(context: BenchContext, testbed: LiveTestbed, arm: str, number: int) -> Block:
    seed = context.seed * 1000 + number
    if arm == OURS:
        return play(testbed, OURS, seed)
    with Peer(ENVOY, testbed.topology, context.work_dir / f"peer-{number}") as peer:
        return play(testbed.behind(peer.address, peer, NoStatistics(testbed.topology)), "none", seed)


def _bar(part: str, found: dict[str, list[Block]]) -> Bar:
    ours, theirs = (np.array([getattr(block, part) for block in found[arm]]) for arm in (OURS, ENVOY))
    gain = ours - theirs
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    busy = max(block.busy for blocks in found.values() for block in blocks)
    refused = {arm: np.mean([block.refused for block in blocks]) for arm, blocks in found.items()}
    return figure(
        f"Envoy's adaptive concurrency: goodput, {part}", float(theirs.mean()), "",
        how=f"live, {len(gain)} paired blocks, surge × {SURGE:g}, at most {busy:.0%} of the cores (more than {BUSY:.0%}"
        f" says nothing); refused {refused[ENVOY]:.1%}, by {OURS} {refused[OURS]:.1%}",
        reference=f"{theirs.min():.3f} to {theirs.max():.3f}; {OURS} {ours.mean():.3f} ({ours.min():.3f} to"
        f" {ours.max():.3f}), {100 * gain.mean():+.1f} ± {200 * error:.1f} points",
    )  # fmt: skip
