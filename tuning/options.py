"""Options of training, simulated and live; apart from the code that obeys them because that imports torch and Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from actuators.contract.control import DirectMethod
from actuators.options import GIVEN, NOT_GIVEN, Never, Only, Options
from envs.environment.actions import check_method
from envs.environment.problem import DecisionOptions


class ModelOptions(Options):
    """Size of the network (`tuning.policy.model`)."""

    hidden: int = Field(default=64, ge=4, le=4096)
    """Units of every hidden layer."""
    initial_log_std: float = Field(default=-1.0, ge=-20, le=2)
    """Log standard deviation of exploration at the start; actions are in [-1, 1]."""
    squashed: bool = False
    """Whether tanh is applied to the policy's mean; training sets it, for `sac` and `cql`."""


AlgorithmName = Literal["ppo", "appo", "sac", "dqn", "bc", "marwil", "cql"]
ON_POLICY, OFF_POLICY = ("ppo", "appo"), ("sac", "dqn")
ONLINE = (*ON_POLICY, *OFF_POLICY)
OFFLINE = ("bc", "marwil", "cql")
"""Algorithms that learn from recorded transitions (`tuning.learning.recordings`)."""
OFFLINE_BATCH_STEPS = 64
"""A training of the usual length has some hundred gradient steps with it."""


class AlgorithmOptions(Options):
    """The algorithm and its hyperparameters (`tuning.learning.algorithm`).

    Defaults: docs/studies.md#reinforcement-learning-on-weights.
    """

    name: AlgorithmName = "ppo"
    """`ppo`, `appo`, `sac`; `dqn` for joint ratio actions; `bc`, `marwil`, `cql` from recorded `transitions`."""
    learning_rate: float = Field(default=6e-4, gt=0)
    """Adam's step size."""
    discount: Annotated[float, Only(name=(*ONLINE, "marwil", "cql"))] = Field(default=0.9, ge=0, lt=1)
    """Gamma per control interval."""
    gae_lambda: Annotated[float, Only(name=(*ON_POLICY, "marwil"))] = Field(default=0.9, ge=0, le=1)
    """Lambda of the generalised advantage estimate."""
    clip: Annotated[float, Only(name=ON_POLICY)] = Field(default=0.2, gt=0)
    """PPO's clip range."""
    entropy_coefficient: Annotated[float, Only(name=ON_POLICY)] = Field(default=0.0, ge=0)
    """Weight of the entropy bonus."""
    epochs: Annotated[int, Only(name="ppo")] = Field(default=4, ge=1)
    """Passes over every batch."""
    minibatch_steps: Annotated[int, Only(name="ppo")] = Field(default=300, ge=1)
    """Environment steps per gradient step."""
    batch_steps: Annotated[int, Only(name=(*ON_POLICY, *OFFLINE))] = Field(default=1200, ge=1)
    """Environment steps per training iteration; for `bc`, `marwil` and `cql` recorded steps per gradient step, 64 when
    not given."""
    array_runner: Annotated[bool, Only(name=ON_POLICY)] = True
    """PPO and APPO: collect whole arrays of steps (`tuning.learning.env_runner`)."""
    updates_per_step: Annotated[float, Only(name=OFF_POLICY)] = Field(default=0.1, gt=0)
    """SAC and DQN: gradient steps per environment step."""
    replay_steps: Annotated[int, Only(name=OFF_POLICY)] = Field(default=50_000, ge=1)
    """SAC and DQN: environment steps that the replay buffer holds."""
    learning_starts_steps: Annotated[int, Only(name=OFF_POLICY)] = Field(default=1000, ge=1)
    """SAC and DQN: environment steps before the first gradient step."""
    exploring_steps: Annotated[int, Only(name="dqn")] = Field(default=10_000, ge=1)
    """DQN: environment steps over which the share of random actions falls from 100 to 5 %."""
    advantage_exponent: Annotated[float, Only(name="marwil")] = Field(default=1.0, ge=0, le=1)
    """MARWIL's beta: 0 imitates, larger values prefer actions with better outcomes."""
    imitated_updates: Annotated[int, Only(name="cql")] = Field(default=200, ge=0)
    """CQL: gradient steps in which the policy only imitates, until the value estimates are usable."""
    conservatism: Annotated[float, Only(name="cql")] = Field(default=1.0, ge=0)
    """CQL: weight of the loss that lowers the value of actions that were not recorded."""
    transitions: Annotated[Path | None, Only(name=OFFLINE)] = None
    """Folder of parquet files for `bc`, `marwil` and `cql` (`tuning.learning.recordings`); when not given,
    `deepsched train` records `recorded_steps` itself."""
    recorded_steps: Annotated[int, Only(name=OFFLINE, transitions=NOT_GIVEN)] = Field(default=20_000, ge=1)
    """Simulated steps under the exploring baseline that are recorded in addition to the observed windows."""

    @model_validator(mode="before")
    @classmethod
    def _small_batches(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("name") in OFFLINE:
            return {"batch_steps": OFFLINE_BATCH_STEPS, **data}
        return data

    @property
    def offline(self) -> bool:
        """Whether it learns from records instead of testbeds."""
        return self.name in OFFLINE


class ImitationOptions(Options):
    """The first lesson of a curriculum (`tuning.learning.imitation`): do what the baseline does."""

    steps: int = Field(default=0, ge=0)
    """Environment steps of the inverse-latency baseline to imitate before training; 0 for none. A residual
    policy needs none: it starts as the baseline."""
    epochs: Annotated[int, Only(steps=GIVEN)] = Field(default=30, ge=1)
    """Passes over these steps."""


class HeldOutOptions(Options):
    """Early stopping: episodes that are never trained on decide which network is kept (`tuning.learning.scoring`)."""

    every_steps: int = Field(default=10_000, ge=0)
    """Environment steps between two evaluations; 0 keeps the last network and never stops early."""
    patience: Annotated[int, Only(every_steps=GIVEN)] = Field(default=4, ge=1)
    """Evaluations without a better result after which training stops."""
    episodes: Annotated[int, Only(every_steps=GIVEN)] = Field(default=12, ge=1)
    """Episodes per evaluation, always the same ones: each of a scenario drawn at random from `scenarios`, with seeds
    that training does not use."""
    scenarios: Annotated[tuple[str, ...], Only(every_steps=GIVEN)] = ()
    """Scenarios of the evaluations; those of the training when empty."""


class RunnerOptions(Options):
    """Processes of RLlib beside the one that trains; the names are RLlib's."""

    num_env_runners: int = Field(default=0, ge=0)
    """Processes that step environments; with 0 the training process does this, and no other is started."""
    num_cpus_per_env_runner: Annotated[float, Only(num_env_runners=GIVEN)] = Field(default=1.0, gt=0)
    """CPUs that each of them claims."""
    num_learners: int = Field(default=0, ge=0)
    """Processes that compute gradients; with 0 the training process does this."""
    num_gpus_per_learner: float = Field(default=0.0, ge=0)
    """GPUs of each of them, or of the training process."""


class LearningOptions(Options):
    """How a policy is trained in simulation; what it steers and how often, the command says."""

    only: ClassVar = {"model.squashed": Never("the algorithm decides it")}

    steps: int = Field(default=40_000, ge=1)
    """Environment steps on simulated testbeds."""
    environments: int = Field(default=24, ge=1, le=4096)
    """Simulated testbeds that each environment runner advances together."""
    threads: Annotated[int, Only(algorithm__name=ONLINE)] = Field(default=2, ge=1)
    """Threads that simulate; the learned policy does not depend on their number."""
    episode_steps: int = Field(default=50, ge=1)
    """Control intervals per episode."""
    scenarios: tuple[str, ...] = Field(default=("demo", "S2", "S2b", "S4"), min_length=1)
    """Scenarios to draw episodes from, each randomised: load, speeds, their order, periods."""
    algorithm: AlgorithmOptions = AlgorithmOptions()
    """The algorithm and its hyperparameters."""
    imitation: ImitationOptions = ImitationOptions()
    """Imitation before the training."""
    held_out: HeldOutOptions = HeldOutOptions()
    """Early stopping."""
    runners: Annotated[RunnerOptions, Only(algorithm__name=ONLINE)] = RunnerOptions()
    """Additional processes, on this machine or on the cluster."""
    checkpoint_steps: int = Field(default=20_000, ge=1)
    """Environment steps between two checkpoints, from which `--resume` continues."""
    model: ModelOptions = ModelOptions()
    """Size of the network."""
    decision: DecisionOptions = DecisionOptions()
    """Observation, action and reward of the policy."""
    paired: Annotated[bool, Only(decision__action__kind="residual", algorithm__name=ONLINE)] = False
    """Reward the difference from the baseline on the same simulated arrivals, instead of the latency itself:
    this doubles the simulation and removes the variance of the arrivals from the reward. For residuals."""
    proof_episodes: Annotated[int, Only(decision__action__kind="residual")] = Field(default=0, ge=0)
    """New simulated episodes at the end, two or more per scenario, on which a residual must prove that it helps overall
    and harms nowhere (`tuning.learning.proof`); one that cannot is reset to its baseline. 0 accepts it without a
    proof."""

    @property
    def network(self) -> ModelOptions:
        """Size of the network, and whether the algorithm squashes its mean."""
        return self.model.changed({"squashed": self.algorithm.name in ("sac", "cql")})

    @model_validator(mode="after")
    def _fits(self) -> Self:
        kind = self.decision.action.kind
        if (self.paired or self.proof_episodes) and kind != "residual":
            raise ValueError(f"paired and proof_episodes need a baseline, which actions of kind {kind} have not")
        updates = self.steps // self.algorithm.batch_steps
        if self.algorithm.name == "cql" and updates <= self.algorithm.imitated_updates:
            raise ValueError(
                f"cql would only imitate: {self.steps} steps in batches of {self.algorithm.batch_steps} are {updates} "
                f"gradient steps, of which the first {self.algorithm.imitated_updates} imitate; set more steps, a "
                "smaller algorithm.batch_steps (64 does) or fewer algorithm.imitated_updates"
            )
        return self


class TrainingOptions(LearningOptions):
    """One training: how, on which balancing method and at which interval (`tuning.learning.trainer`)."""

    method: DirectMethod = "least_conn"
    """Balancing method under the weights: `least_conn` is the better base. On `round_robin` weights matter more and
    learning gains more over heuristics, but the best policy there still loses to untuned `least_conn` if servers change
    quickly. `expected_delay` is for a residual on a service-time estimator (`decision.action.baseline`) only."""
    interval_s: float = Field(default=1.0, gt=0)
    """Seconds between two decisions."""

    @property
    def script_s(self) -> float:
        """Length of an episode's script: a little more than the episode."""
        return (self.episode_steps + 2) * self.interval_s

    @model_validator(mode="after")
    def _steers(self) -> Self:
        check_method(self.method, self.decision.action)
        return self


def check_live_algorithm(simulated: AlgorithmOptions, live: AlgorithmOptions) -> None:
    """Raises ValueError unless the live training can go on with the network of the simulated training."""
    if live.name not in ON_POLICY:
        raise ValueError(f"{live.name} does not train on live testbeds, only {' and '.join(ON_POLICY)} do")
    takes = {"ppo": "ppo", "bc": "ppo", "marwil": "ppo", "appo": "appo"}
    if takes.get(simulated.name) != live.name:
        names = ", ".join(name for name, on_line in takes.items() if on_line == live.name)
        raise ValueError(f"{live.name} goes on with networks of {names}, not with one of {simulated.name}")


class ParallelOptions(Options):
    """One policy trained on several live testbeds at the same time."""

    testbeds: int = Field(default=2, ge=1)
    """Testbeds; each claims proxy: 1, client: 1 and server: 1 per server."""
    env_runners: int = Field(default=1, ge=0)
    """RLlib processes, with a CPU each, that drive equal shares of the testbeds; with 0 the training process drives
    all of them."""
    steps: int = Field(default=64, ge=1)
    """Total number of control intervals of all testbeds."""
    episode_steps: int = Field(default=32, ge=1)
    """Control intervals per episode."""
    algorithm: AlgorithmOptions = AlgorithmOptions(learning_rate=3e-5, batch_steps=32, minibatch_steps=32, epochs=2)
    """PPO with small steps: a few noisy intervals must not undo what was learned."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.testbeds % max(self.env_runners, 1):
            raise ValueError(f"{self.testbeds} testbeds for {self.env_runners} env runners: set a multiple of them")
        return self
