"""EG-Rerank: a list generator trained by PPO on the reward of a list evaluator (arXiv 2003.11941).

First the evaluator is fitted to labels and frozen. Then the generator, a pointer network over the candidates, draws
lists, the evaluator values them, and the clipped policy gradient raises the chances of the better ones. In use the
generator writes its greedy list; the evaluator is not asked.

Changed or left out:

- the baseline is the mean of the lists drawn for the same request, and the advantage their z-score, where the
  paper standardises rewards over a batch; the clipped ratio is that of the whole list, not of each place
  (``agents.objectives.grpo_loss``);
- "old" in the ratio is a copy of the generator that is renewed every ``renew_every`` steps;
- the evaluator learns from random lists whose labels the protocol knows, where the paper has lists that were shown;
- its value discounts places as NDCG does; the paper adds purchases up, with which order would not matter here;
- the generator is ``agents.goalrank.ListPolicy``, this project's pointer network with a self-attention encoder;
- EG-Rerank+, with a discriminator that keeps lists near the log's, is not implemented.

Shape legend: B requests, G lists, K places.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.goalrank import GoalRankConfig
from agents.list_policy import ListPolicy
from agents.objectives import grpo_loss
from agents.offline.data import LabelledRequests, RerankData
from agents.offline.label_evaluator import LabelEvaluator, LabelEvaluatorConfig, fit_label_evaluator
from agents.offline.scorers import shape_of
from agents.offline.training import TrainingConfig, fit_reranker, validation_loss


@dataclass(frozen=True, kw_only=True)
class EgRerankConfig:
    """The generator's training; the evaluator has settings of its own."""

    num_lists: int = 16
    """G: lists drawn for each request."""
    clip: float = 0.2
    """Probability ratio beyond which a list is pushed no further."""
    renew_every: int = 4
    """Steps after which the copy that draws lists is renewed."""
    width: int = 128
    """Width of the generator."""
    heads: int = 4
    """Attention heads; must divide the width."""
    item_embedding: int = 16
    """Width of the item-id embedding; 0 for none."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        if self.renew_every < 1:
            raise ValueError(f"renew_every must be at least 1, got {self.renew_every}")
        self.generator()  # refuses what the generator would refuse

    def generator(self) -> GoalRankConfig:
        """Settings of the pointer network."""
        return GoalRankConfig(
            group_size=self.num_lists,
            clip=self.clip,
            width=self.width,
            heads=self.heads,
            item_embedding=self.item_embedding,
            seed=self.seed,
        )


class PolicyLoss:
    """PPO's loss of a batch: lists come from an older copy of the generator.

    Args:
        generator: the pointer network that is trained.
        evaluator: values lists; frozen.
        config: settings.
    """

    def __init__(self, generator: ListPolicy, evaluator: LabelEvaluator, config: EgRerankConfig) -> None:
        self.generator, self.evaluator, self.config = generator, evaluator, config
        self._old, self._steps = copy.deepcopy(generator), 0

    def __call__(self, batch: LabelledRequests, random: torch.Generator) -> Tensor:
        """A scalar to be minimised."""
        if self._steps % self.config.renew_every == 0:
            self._old.load_state_dict(self.generator.state_dict())
        self._steps += 1
        positions_BGK, old_log_prob_BG = self._old.sample_group(batch.request, self.config.num_lists, random)
        value_BG = self.evaluator.score_positions(batch.request, positions_BGK)
        log_prob_BG = self.generator.group_log_prob(batch.request, positions_BGK)
        return grpo_loss(log_prob_BG, old_log_prob_BG, value_BG, self.config.clip)


def fit_egrerank(
    data: RerankData, config: EgRerankConfig, evaluator: LabelEvaluatorConfig, fit: TrainingConfig
) -> ListPolicy:
    """Fits the evaluator, then the generator; returns the generator, greedy."""
    shape = shape_of(data)
    judge = fit_label_evaluator(data, evaluator, fit, shape)
    generator = ListPolicy(config.generator(), shape, greedy=True)
    validate = validation_loss(generator, data, fit.seed)
    fit_reranker(generator, PolicyLoss(generator, judge, config), validate, data, fit, label="EG-Rerank")
    return generator
