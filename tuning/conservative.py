"""RLlib's CQL learner with a count of gradient steps that outlives a training iteration.

RLlib 2.60 keeps what `bc_iters` is compared with as a metric that starts again in every iteration of 20 gradient
steps: with more to imitate than that, its CQL imitates for ever and never heeds a value.
"""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.cql.torch.cql_torch_learner import CQLTorchLearner
from ray.rllib.utils.metrics import ALL_MODULES
from ray.tune.result import TRAINING_ITERATION


class ConservativeLearner(CQLTorchLearner):
    """Imitates for `bc_iters` gradient steps, in however many iterations, and then heeds values."""

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        # The number of updates is in the learner's checkpoints, too.
        done = self._weights_seq_no * self.config.dataset_num_iters_per_learner
        self.metrics.log_value((ALL_MODULES, TRAINING_ITERATION), done, reduce="sum")
