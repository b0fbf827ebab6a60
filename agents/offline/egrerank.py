"""EG-Rerank: a list generator trained by PPO on the reward of a list evaluator (arXiv 2003.11941).

First the evaluator is fitted to labels and frozen. Then the generator, a pointer network over the candidates, draws
lists, the evaluator values them, and the clipped policy gradient raises the chances of the better ones: the advantage
of a list is its value, standardised over the batch, and the ratio is clipped place by place. In use the generator
writes its greedy list; the evaluator is not asked. GoalRank's ``objective="grpo"`` differs in both: it compares a list
with the others of its own request, and clips the ratio of the whole list.

Changed or left out:

- "old" in the ratio is a copy of the generator that is renewed every ``renew_every`` steps;
- the evaluator learns from random lists whose labels the protocol knows, where the paper has lists that were shown;
- its value discounts places as NDCG does; the paper adds purchases up, with which order would not matter here;
- the generator is ``agents.list_policy.ListPolicy``, this project's pointer network with a self-attention encoder;
- EG-Rerank+, with a discriminator that keeps lists near the log's, is not implemented.

Shape legend: B requests, G lists, K places.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.list_policy import ListPolicy, ListPolicyConfig
from agents.method import require_at_least, require_positive
from agents.offline.data import LabelledRequests, RerankData, shape_of
from agents.offline.label_evaluator import LabelEvaluator, LabelEvaluatorConfig, fit_label_evaluator
from agents.offline.training import OfflineTrainingConfig, fit_reranker


@dataclass(frozen=True, kw_only=True)
class EgRerankConfig(ListPolicyConfig):
    """The generator and its lists. What concerns steps and learning rates is ``OfflineTrainingConfig``'s."""

    num_lists: int = 16
    """G: lists drawn for each request."""
    clip: float = 0.2
    """Probability ratio beyond which a place is pushed no further."""
    renew_every: int = 4
    """Steps after which the copy that draws lists is renewed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "num_lists", "renew_every")
        require_positive(self, "clip")


def clipped_loss(log_prob_BGK: Tensor, old_log_prob_BGK: Tensor, value_BG: Tensor, clip: float) -> Tensor:
    """PPO's loss with values standardised over the batch as advantages; a scalar.

    Args:
        log_prob_BGK: float32, of each place given those before it, under the generator being trained.
        old_log_prob_BGK: float32, under the one that drew the lists.
        value_BG: float32, the evaluator's values.
        clip: how far the probability ratio of a place may move from 1 before its gradient stops.
    """
    spread = value_BG.std(correction=0).clamp(min=1e-8)
    advantage_BG1 = ((value_BG - value_BG.mean()) / spread).unsqueeze(2)
    ratio_BGK = (log_prob_BGK - old_log_prob_BGK).exp()
    clipped_BGK = ratio_BGK.clamp(1 - clip, 1 + clip)
    return -(ratio_BGK * advantage_BG1).minimum(clipped_BGK * advantage_BG1).mean()


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
        request, places = batch.request, self.generator.shape.slate_size
        with torch.no_grad():
            positions_BGK, old_log_prob_BGK = self._old.decoder.sample(
                self._old.encoder(request), self.config.num_lists, places, random
            )
            value_BG = self.evaluator.score_positions(request, positions_BGK)
        log_prob_BGK = self.generator.decoder.log_prob(self.generator.encoder(request), positions_BGK)
        return clipped_loss(log_prob_BGK, old_log_prob_BGK, value_BG, self.config.clip)


def fit_egrerank(
    data: RerankData, config: EgRerankConfig, evaluator: LabelEvaluatorConfig, fit: OfflineTrainingConfig
) -> ListPolicy:
    """Fits the evaluator, then the generator; returns the generator, greedy."""
    shape = shape_of(data)
    judge = fit_label_evaluator(data, evaluator, fit, shape)
    generator = ListPolicy(config, shape, greedy=True)
    fit_reranker(generator, PolicyLoss(generator, judge, config), data, fit, label="EG-Rerank")
    return generator
