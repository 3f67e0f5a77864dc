"""Keeps what an observation phase says of the mixture's states: `clusters.html`."""

from __future__ import annotations

from envs.encoding import EncoderOptions
from envs.mixture import Candidate, candidates, window_samples
from rayjobs.runs import RunFolder, versions
from tuning.cluster_page import write_cluster_page
from tuning.clusters import meaning
from tuning.observing import Observed
from tuning.report_document import Provenance

PAGE = "clusters.html"


def keep_states(folder: RunFolder, observed: Observed, options: EncoderOptions, seed: int) -> tuple[Candidate, ...]:
    """Writes the page; the numbers of clusters that there were to choose from.

    Args:
        options, seed: as the mixture was fitted with.
    """
    problem, windows = observed.problem, [*observed.windows.equal, *observed.windows.exploring]
    topology, deadlines_s, encoder = problem.topology, problem.deadlines_s, problem.encoder
    samples = window_samples(windows, topology, deadlines_s, encoder.kind)
    found = candidates(samples, options, seed)
    said = meaning(windows, topology, deadlines_s, encoder)
    command, config = (folder.path / name for name in ("command.txt", "config.yaml"))
    provenance = Provenance(command.read_text().strip(), config.read_text(), versions())
    write_cluster_page(folder.path / PAGE, said, found, provenance, observed.deadlines.warnings)
    return found
