"""Rerankers that score every candidate and sort: DNN, DLCM, PRM and SetRank, fitted to labels listwise.

All four share the input layer, the head and the loss (the softmax cross-entropy over a request's candidates, unless
``loss`` says otherwise), so what is compared is how candidates see each other:

- ``dnn``: not at all; the pointwise network of the papers' tables.
- ``dlcm`` (arXiv 1804.05936): a GRU over the retriever's order, whose last state gates each candidate's state. The
  paper's attention-rank loss is this softmax where labels are 0 and 1.
- ``prm`` (arXiv 1904.06813): self-attention, and a learned embedding of the rank in the retriever's order. Left
  out: the pre-trained personal vectors; personal input is the history, which all four get.
- ``setrank`` (arXiv 1912.05891): induced self-attention without ranks, which cannot see the order of its input.
  Left out: the variant with ordinal embeddings.

Widths are equal, depths as in this project's encoder; none of the papers' own sizes is claimed.

Shape legend: B requests, C candidates, K places.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.decoders import OneSoftmaxDecoder
from agents.networks import CandidateEncoder, RequestShape
from agents.offline.data import LabelledRequests, RerankData
from agents.offline.training import TrainingConfig, fit_reranker, validation_loss
from recsim_env.slates import best_first
from recsim_env.types import Decision, Request

Network = Literal["dnn", "dlcm", "prm", "setrank"]
NETWORKS: tuple[str, ...] = get_args(Network)
INITIAL_RANKS = 50
"""Ranks that PRM tells apart."""


def listwise_softmax_loss(score_BC: Tensor, label_BC: Tensor) -> Tensor:
    """Cross-entropy between the labels, as shares of their sum, and the softmax of the scores.

    Args:
        score_BC: float32.
        label_BC: float32 0/1.

    Returns:
        A scalar: the mean over requests that have a positive candidate, 0 where none has one.
    """
    positives_B = label_BC.sum(dim=1)
    loss_B = -(label_BC * score_BC.log_softmax(dim=1)).sum(dim=1) / positives_B.clamp(min=1)
    return loss_B.sum() / (positives_B > 0).sum().clamp(min=1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": listwise_softmax_loss,
    "bce": functional.binary_cross_entropy_with_logits,
}
"""Losses of scores (B, C) and labels (B, C) by name."""


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Which network, and how large."""

    network: Network = "prm"
    """How candidates see each other; see the module."""
    width: int = 128
    """Width of the network."""
    layers: int = 1
    """Layers over the candidates; ``dnn`` has none."""
    heads: int = 4
    """Attention heads; must divide the width."""
    item_embedding: int = 16
    """Width of the item-id embedding; 0 for none."""
    loss: Literal["softmax", "bce"] = "softmax"
    """Cross-entropy over the request's candidates, or of each candidate's label on its own."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {NETWORKS}, got {self.network!r}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {tuple(LOSSES)}, got {self.loss!r}")
        if min(self.width, self.layers, self.heads) < 1 or self.item_embedding < 0:
            raise ValueError(
                "width, layers and heads must be at least 1 and item_embedding at least 0, got "
                f"{self.width}, {self.layers}, {self.heads} and {self.item_embedding}"
            )

    def encoder(self) -> dict[str, Any]:
        """Arguments of ``CandidateEncoder``."""
        own: dict[str, dict[str, Any]] = {
            "dnn": {"layers": 0},
            "dlcm": {"layers": self.layers, "mixing": "recurrent"},
            "prm": {"layers": self.layers, "mixing": "attention", "initial_ranks": INITIAL_RANKS},
            "setrank": {"layers": self.layers, "mixing": "induced"},
        }
        return {
            "width": self.width,
            "heads": self.heads,
            "item_embedding": self.item_embedding,
            **own[self.network],
        }


class RerankScorer(nn.Module):
    """Scores the candidates of a request; as a policy it shows the best, best first.

    Args:
        config: settings.
        shape: sizes of the requests it will meet.
    """

    def __init__(self, config: ScorerConfig, shape: RequestShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        with torch.random.fork_rng(devices=[]):  # initial weights depend on the seed alone
            torch.manual_seed(config.seed)
            self.encoder = CandidateEncoder(shape, **config.encoder())
            self.head = OneSoftmaxDecoder(config.width)

    def score(self, request: Request) -> Tensor:
        """Scores (B, C) float32, higher is better; carries gradients."""
        return self.head.begin(self.encoder(request)).squeeze(1)

    @torch.no_grad()
    def forward(self, request: Request, generator: torch.Generator) -> Decision:
        """The K candidates with the highest scores; nothing is drawn."""
        self.shape.check(request)
        return Decision(best_first(request, self.score(request), self.shape.slate_size))


def shape_of(data: RerankData) -> RequestShape:
    """The sizes of a protocol's requests."""
    example = data.train.batch(torch.arange(1)).request
    return RequestShape.of(example, data.num_items, data.list_size)


def fit_scorer(data: RerankData, config: ScorerConfig, fit: TrainingConfig) -> RerankScorer:
    """A scorer fitted to the protocol's training part."""
    scorer = RerankScorer(config, shape_of(data))

    def loss(batch: LabelledRequests, generator: torch.Generator) -> Tensor:
        return LOSSES[config.loss](scorer.score(batch.request), batch.label_BC)

    fit_reranker(scorer, loss, validation_loss(scorer, data, fit.seed), data, fit, label=config.network)
    return scorer
