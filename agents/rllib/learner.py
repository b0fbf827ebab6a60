"""GoalRank's Learner: the losses of ``agents.objectives`` in RLlib's form."""

from typing import Any

from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from torch import Tensor

from agents.objectives import group_relative_cross_entropy, grpo_loss, informative_groups
from agents.rllib.module import GROUP_LOG_PROB, GROUP_VALUE


class GoalRankLearner(TorchLearner):  # type: ignore[misc]  # ray is untyped
    """Fits the list policy to the values of its own groups."""

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Tensor], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """The loss named by ``GoalRankConfig.objective``; logs what the groups look like."""
        settings = config.goalrank
        log_prob_BG, value_BG = fwd_out[GROUP_LOG_PROB], batch[GROUP_VALUE]
        if settings.objective == "group_relative":
            loss = group_relative_cross_entropy(log_prob_BG, value_BG, settings.temperature, settings.min_spread)
        else:
            loss = grpo_loss(log_prob_BG, batch[GROUP_LOG_PROB], value_BG, settings.clip, settings.min_spread)
        self.metrics.log_dict(
            {
                "loss": loss.detach(),
                "list_entropy": -log_prob_BG.detach().mean(),
                "group_value": value_BG.mean(),
                "group_spread": value_BG.std(dim=1, correction=0).mean(),
                "groups_used": informative_groups(value_BG, settings.min_spread).float().mean(),
            },
            key=module_id,
            window=1,
        )
        return loss
