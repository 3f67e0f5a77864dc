"""Options of training on several testbeds at once; apart from `tuning.parallel` because that imports torch and Ray."""

from __future__ import annotations

from pydantic import Field

from actuators.options import Options
from tuning.options import AlgorithmOptions


class ParallelOptions(Options):
    """One policy trained on several live testbeds at the same time."""

    testbeds: int = Field(default=2, ge=1)
    """Testbeds; each claims proxy: 1, client: 1 and server: 1 per server."""
    env_runners: int = Field(default=1, ge=0)
    """RLlib processes that drive them, each its share; 0 drives them all from the training process itself."""
    steps: int = Field(default=64, ge=1)
    """Control intervals in all, over all testbeds."""
    episode_steps: int = Field(default=32, ge=1)
    """Control intervals per episode."""
    algorithm: AlgorithmOptions = AlgorithmOptions(learning_rate=3e-5, batch_steps=32, minibatch_steps=32, epochs=2)
    """PPO with small steps: a few noisy intervals must not undo what was learned."""
