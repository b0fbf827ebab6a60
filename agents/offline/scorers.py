"""DNN, DLCM, PRM and SetRank fitted to the protocol's labels; networks and loss are ``agents.rerankers.scorers``'.

Shape legend: B requests, C candidates.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from agents.list_policy import ListPolicy
from agents.offline.data import LabelledRequests, RerankData, shape_of
from agents.offline.training import OfflineTrainingConfig, fit_reranker
from agents.rerankers.scorers import Scorer, ScorerConfig, candidate_scores, listwise_softmax_loss

ScorerLoss = Literal["softmax", "bce"]
"""Cross-entropy over the request's candidates, or of each candidate's label on its own."""

LOSSES: dict[ScorerLoss, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": listwise_softmax_loss,
    "bce": functional.binary_cross_entropy_with_logits,
}
"""Losses of scores (B, C) and labels (B, C) by name."""


def fit_scorer(
    data: RerankData, config: ScorerConfig, fit: OfflineTrainingConfig, loss: ScorerLoss = "softmax"
) -> ListPolicy:
    """A scorer fitted to the protocol's training part; as a policy it shows the best candidates, best first.

    Args:
        data: the protocol's parts.
        config: which network. What concerns steps and learning rates is ``fit``'s.
        fit: how long and how fast.
        loss: one of ``LOSSES``.

    Raises:
        ValueError: another loss.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {tuple(LOSSES)}, got {loss!r}")
    scorer = new_scorer(data, config)

    def batch_loss(batch: LabelledRequests, generator: torch.Generator) -> Tensor:
        return LOSSES[loss](candidate_scores(scorer, batch.request), batch.label_BC)

    fit_reranker(scorer, batch_loss, data, fit, label="scorer")
    return scorer


def new_scorer(data: RerankData, config: ScorerConfig) -> ListPolicy:
    """A scorer that has learned nothing yet, greedy."""
    scorer = Scorer(config).network(shape_of(data))
    scorer.greedy = True
    return scorer
