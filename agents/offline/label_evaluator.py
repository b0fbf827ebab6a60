"""A list evaluator fitted to labels: the chance that each item of a list is a positive, given the whole list.

Shared by the generator-evaluator rerankers of the offline protocol. Candidates are encoded alone, then places look
at each other: by a bidirectional LSTM, as in EG-Rerank, or by attention over all places, PIER's "omnidirectional"
attention. The value of a list adds these chances up with NDCG's discount, so that order within the list counts.

Shape legend: B requests, C candidates, G lists of a request, X lists of all requests, K places, W width.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.method import require_at_least, require_one_of
from agents.networks import CandidateEncoder, Encoding, RequestShape, rows_at
from agents.offline.data import LabelledRequests, RerankData
from agents.offline.metrics import discounts
from agents.offline.training import OfflineTrainingConfig, fit_reranker
from recsim_env.slates import items_at, sample_lists
from recsim_env.types import Request

Mixing = Literal["lstm", "attention"]
MIXINGS: tuple[str, ...] = get_args(Mixing)
_HEADS = 4


@dataclass(frozen=True, kw_only=True)
class LabelEvaluatorConfig:
    """How the evaluator is built."""

    mixing: Mixing = "lstm"
    """How places see each other."""
    width: int = 128
    """W; a multiple of 4, the attention heads."""
    item_embedding: int = 16
    """Width of the item-id embedding; 0 for none."""
    num_lists: int = 4
    """Random lists drawn for each request of a batch to learn from."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        require_one_of(self, "mixing", MIXINGS)
        require_at_least(self, 1, "num_lists")
        require_at_least(self, 0, "item_embedding")
        if self.width < _HEADS or self.width % _HEADS:
            raise ValueError(f"width must be a multiple of {_HEADS}, got {self.width}")


class LabelEvaluator(nn.Module):
    """Chances of the labels of whole lists.

    Args:
        config: settings.
        shape: sizes of the requests.
    """

    def __init__(self, config: LabelEvaluatorConfig, shape: RequestShape) -> None:
        super().__init__()
        self.shape, width = shape, config.width
        with torch.random.fork_rng(devices=[]):  # initial weights depend on the seed alone
            torch.manual_seed(config.seed)
            self.encoder = CandidateEncoder(shape, width=width, layers=0, item_embedding=config.item_embedding)
            self.place_KW = nn.Parameter(0.1 * torch.randn(shape.slate_size, width))
            self.mix: nn.Module = (
                nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
                if config.mixing == "lstm"
                else nn.TransformerEncoderLayer(
                    width, _HEADS, 2 * width, dropout=0.0, batch_first=True, norm_first=True
                )
            )
            self.head = nn.Linear(width, 1)

    def encode(self, request: Request) -> Encoding:
        """Candidates (B, C, W), each encoded alone; once for any number of lists."""
        encoding: Encoding = self.encoder(request)
        return encoding

    def label_logits(self, chosen_BGKW: Tensor) -> Tensor:
        """Logits (B, G, K) of the labels of lists given by the encodings of their items."""
        x_XKW = (chosen_BGKW + self.place_KW).flatten(0, 1)
        mixed = self.mix(x_XKW)
        mixed_XKW = mixed[0] if isinstance(mixed, tuple) else mixed  # an LSTM answers its last state, too
        logit_XK: Tensor = self.head(x_XKW + mixed_XKW).squeeze(2)
        return logit_XK.view(chosen_BGKW.shape[:3])

    def value(self, chosen_BGKW: Tensor) -> Tensor:
        """Expected discounted positives (B, G) of lists given by the encodings of their items."""
        chance_BGK = torch.sigmoid(self.label_logits(chosen_BGKW))
        return (chance_BGK * discounts(chance_BGK)).sum(dim=2)

    def score_positions(self, request: Request, positions_BGK: Tensor) -> Tensor:
        """``value`` of lists given as positions in the candidate set, (B, G)."""
        return self.value(rows_at(self.encode(request).candidates_BCW, positions_BGK))


def random_lists(request: Request, num_lists: int, num_places: int, generator: torch.Generator) -> Tensor:
    """Lists (B, G, K) of positions, every list of different candidates equally likely."""
    flat_BC = torch.zeros_like(request.retriever_score_BC)
    return sample_lists(flat_BC, num_lists, num_places, generator)


def label_loss(evaluator: LabelEvaluator, batch: LabelledRequests, positions_BGK: Tensor) -> Tensor:
    """Binary cross-entropy of the labels of given lists, a scalar."""
    logit_BGK = evaluator.label_logits(rows_at(evaluator.encode(batch.request).candidates_BCW, positions_BGK))
    label_BGK = items_at(batch.label_BC, positions_BGK)
    return functional.binary_cross_entropy_with_logits(logit_BGK, label_BGK)


def fit_label_evaluator(
    data: RerankData, config: LabelEvaluatorConfig, fit: OfflineTrainingConfig, shape: RequestShape
) -> LabelEvaluator:
    """An evaluator fitted to random lists of the training part; stops on the loss of the validation part's."""
    evaluator = LabelEvaluator(config, shape)
    judged = data.validation.all()
    fixed_BGK = random_lists(
        judged.request, config.num_lists, shape.slate_size, torch.Generator().manual_seed(config.seed)
    )

    def loss(batch: LabelledRequests, generator: torch.Generator) -> Tensor:
        lists_BGK = random_lists(batch.request, config.num_lists, shape.slate_size, generator)
        return label_loss(evaluator, batch, lists_BGK)

    def validate() -> float:
        return float(label_loss(evaluator, judged, fixed_BGK))

    fit_reranker(evaluator, loss, data, fit, validate=validate, label="evaluator")
    return evaluator.requires_grad_(False)
