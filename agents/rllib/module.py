"""GoalRank's network as an RLModule: RLlib's form around the plain policy."""

from typing import Any

from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from agents.goalrank import GoalRankConfig, GoalRankPolicy
from agents.networks import RequestShape
from recsim_env.types import Request

GROUP_POSITIONS = "group_positions_BGK"
GROUP_LOG_PROB = "group_log_prob_BG"
GROUP_VALUE = "group_value_BG"
"""Columns of a train batch beside the fields of ``Request``, which keep their own names."""


def request_of(batch: dict[str, Any]) -> Request:
    """The Request held in the columns of a train batch."""
    return Request(**{name: batch[name] for name in Request._fields})


class GoalRankModule(TorchRLModule):  # type: ignore[misc]  # ray is untyped
    """Holds a ``GoalRankPolicy`` built from ``model_config["config"]`` and ``model_config["shape"]``."""

    def setup(self) -> None:
        """Builds the policy; called by RLlib's constructor."""
        self.policy = GoalRankPolicy(
            GoalRankConfig(**self.model_config["config"]), RequestShape(**self.model_config["shape"])
        )

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Greedy slates, as positions in the candidate set."""
        encoding = self.policy.encoder(request_of(batch))
        return {Columns.ACTIONS: self.policy.decoder.greedy(encoding, self.policy.shape.slate_size)}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Log-probabilities of the groups: all that the loss needs of the network.

        Distributed training finds only those parameters that an output of this method depends on.
        """
        return {GROUP_LOG_PROB: self.policy.group_log_prob(request_of(batch), batch[GROUP_POSITIONS])}
