"""Options of training; apart from the code that obeys them only because that imports torch and Ray.

`deepsched VERB --help` reads these and must answer at once.
"""

from __future__ import annotations

from pydantic import Field

from actuators.control import BalancingMethod
from actuators.options import Options
from envs.decision import DecisionOptions


class ModelOptions(Options):
    """Size of the network (`tuning.model`)."""

    hidden: int = Field(default=64, ge=4)
    """Units of every hidden layer."""
    initial_log_std: float = -1.0
    """Log standard deviation of exploration at the start; actions live in [-1, 1]."""
    squashed: bool = False
    """Whether the policy's mean goes through tanh; SAC's does, and its training sets this."""


class AlgorithmOptions(Options):
    """Hyperparameters of PPO (`tuning.algorithm`); defaults from the shared study, section 4."""

    learning_rate: float = Field(default=6e-4, gt=0)
    """Adam's step size."""
    discount: float = Field(default=0.9, ge=0, lt=1)
    """Gamma per control interval."""
    gae_lambda: float = Field(default=0.9, ge=0, le=1)
    """Lambda of the generalised advantage estimate."""
    clip: float = Field(default=0.2, gt=0)
    """PPO's clip range."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus."""
    epochs: int = Field(default=4, ge=1)
    """Passes over every batch."""
    minibatch_steps: int = Field(default=300, ge=1)
    """Environment steps per gradient step."""
    batch_steps: int = Field(default=1200, ge=1)
    """Environment steps per training iteration."""


class TrainingOptions(Options):
    """How a policy is trained (`tuning.training`)."""

    steps: int = Field(default=40_000, ge=1)
    """Environment steps on simulated testbeds."""
    environments: int = Field(default=24, ge=1)
    """Simulated testbeds that are advanced together."""
    episode_steps: int = Field(default=50, ge=1)
    """Control intervals per episode."""
    scenarios: tuple[str, ...] = ("demo", "S2", "S2b", "S4")
    """Scenarios to draw episodes from, each randomised: load, speeds, their order, periods."""
    algorithm: AlgorithmOptions = AlgorithmOptions()
    """Hyperparameters of PPO."""
    model: ModelOptions = ModelOptions()
    """Size of the network."""
    decision: DecisionOptions = DecisionOptions()
    """What the policy sees, does and is paid for."""
    method: BalancingMethod = "least_conn"
    """Balancing method under the weights."""
    interval_s: float = Field(default=1.0, gt=0)
    """Seconds between two decisions."""
