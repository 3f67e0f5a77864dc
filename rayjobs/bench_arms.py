"""The policies that the benches train: what each sees and does, and its hyperparameters.

Frozen on 2026-11-22. The first values were found while looking at the published evaluation seeds, so figures on
those alone prove little: benches add seeds that are drawn from their own. Whoever changes a value chooses it by
training seeds and evaluation seeds of `DEVELOPMENT_SEEDS` and by no others.
"""

from __future__ import annotations

from envs.actions import ActionOptions
from envs.decision import DecisionOptions
from envs.observation import ObservationName
from envs.scenarios import STUDY
from tuning.options import AlgorithmOptions
from tuning.study_training import Arm

DEVELOPMENT_SEEDS = (201, 202, 203, 204)

FULL = ActionOptions(floor=1, dead_band=0.0)
"""The study's baselines know no floor and no dead band; the learned policies here have none either."""

GENERALIST = Arm(
    "generalist",
    DecisionOptions(action=FULL),
    "least_conn",
    # Where weights have authority (many contexts, specialists) is a small part of the suite: it comes more often.
    scenarios=(*STUDY, *("S9",) * 6, *("S3",) * 2),
    steps=40_000,
    # Over a good balancing method weights work at once: what they do later is noise in the credit they get.
    algorithm=AlgorithmOptions(learning_rate=1.5e-3, discount=0.3, batch_steps=2400, minibatch_steps=600),
)
SPECIALIST = Arm(
    "S3 on round robin",
    DecisionOptions(action=FULL.model_copy(update={"kind": "increments"})),
    "round_robin",
    ("S3",),
    20_000,
    algorithm=AlgorithmOptions(learning_rate=1e-3, discount=0.7),
)
ANTICIPATING = Arm(
    "S10 on round robin",
    DecisionOptions(observation="features", frames=8, action=FULL.model_copy(update={"kind": "continuous"})),
    "round_robin",
    ("S10",),
    60_000,
    algorithm=AlgorithmOptions(learning_rate=1e-3, discount=0.8),
)
SPEED = Arm("speed", DecisionOptions(action=FULL), "least_conn", ("S2",), 24_000)
"""For timing: S2 randomised asks for about 1300 requests/s."""


def seeing(observation: ObservationName, clusters: int) -> Arm:
    """A generalist on round robin, where weights matter most, that sees this; all else is equal for all."""
    decision = DecisionOptions(observation=observation, action=FULL.model_copy(update={"kind": "continuous"}))
    name = observation if observation == "features" else f"{observation}, K = {clusters}"
    return Arm(name, decision, "round_robin", STUDY, 24_000, clusters, algorithm=SPECIALIST.algorithm)
