"""PIER: permutations chosen by hashing, then judged by an evaluator that sees the whole list (arXiv 2302.03487).

Two modules, trained together. The first one makes many lists cheap to compare with the user: a list is the sum of
its items' vectors with learned weights of the places, the user is a vector of the request, and both are hashed to
bits by random hyperplanes (SimHash). The lists at the smallest Hamming distance from the user go to the second
module, an evaluator with attention over all places, and the list it values most is shown.

The loss adds up: the evaluator's cross-entropy of labels, on drawn lists; a comparative term that pulls the user's
vector towards the best of the drawn lists, by its labels, and away from the others; and the listwise softmax of the
scores that lists are drawn from.

Changed or left out:

- the paper permutes the few items that a ranking stage left. The protocol has no such stage, and 50 candidates have
  too many permutations to list. A pointwise score, fitted alongside, stands in for it: the proposals are its sort and
  lists drawn closely around that sort (``temperature``). Lists drawn from the score's own softmax would be far worse
  than its sort, and then the second module has nothing good to choose from;
- both modules share the item encoder; the paper's vectors of behaviour sequences are this project's history input;
- the form of the comparative term and all sizes are this project's own.

Shape legend: B requests, C candidates, G lists, K places, W width, A bits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.baselines.best_of_lists import lists_around_sort
from agents.method import require_at_least, require_positive
from agents.networks import RequestShape, rows_at
from agents.offline.data import LabelledRequests, RerankData, shape_of
from agents.offline.label_evaluator import LabelEvaluator, LabelEvaluatorConfig, label_loss, random_lists
from agents.offline.metrics import discounts
from agents.offline.training import OfflineTrainingConfig, fit_reranker
from agents.rerankers.scorers import listwise_softmax_loss
from recsim_env.slates import items_at, list_at
from recsim_env.types import Decision, Request


@dataclass(frozen=True, kw_only=True)
class PierConfig:
    """How many lists are made and kept, and what the terms weigh."""

    num_lists: int = 100
    """G: lists proposed for each request in use, the score's sort among them."""
    temperature: float = 0.2
    """Spread of the proposals around the sort, in standard deviations of a request's scores. On MovieLens' small set
    (``honest``, one seed) NDCG@6 is 3.3 % at 0.5 and 3.7 % at 0.2 and 0.1; the sort alone has 3.7 to 3.8 %."""
    num_kept: int = 10
    """Lists at the smallest distance, which the evaluator judges."""
    num_bits: int = 64
    """A: length of a hash."""
    training_lists: int = 8
    """Lists for each request of a batch: half at random, half as they are proposed in use."""
    comparative_weight: float = 0.1
    """Weight of the comparative term."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_kept <= self.num_lists:
            raise ValueError(f"num_kept must lie in 1..num_lists, got {self.num_kept} and {self.num_lists}")
        require_positive(self, "temperature")
        require_at_least(self, 1, "num_bits")
        require_at_least(self, 2, "training_lists")
        require_at_least(self, 0, "comparative_weight")


def sim_hash(vector: Tensor, planes_WA: Tensor) -> Tensor:
    """Bits (..., A) bool of vectors (..., W): on which side of each hyperplane they lie.

    A random hyperplane parts two vectors with a chance of their angle over pi, so the share of bits that differ tells
    the angle, and comparing bits is cheaper than comparing vectors.
    """
    return vector @ planes_WA > 0


class Pier(nn.Module):
    """Both modules; as a policy it draws lists, keeps the nearest and shows the one of the highest value.

    Args:
        config: settings.
        evaluator: settings of the evaluator; its encoder serves both modules.
        shape: sizes of the requests.
    """

    planes_WA: Tensor

    def __init__(self, config: PierConfig, evaluator: LabelEvaluatorConfig, shape: RequestShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.evaluator = LabelEvaluator(evaluator, shape)
        with torch.random.fork_rng(devices=[]):  # initial weights depend on the seed alone
            torch.manual_seed(evaluator.seed)
            self.prior = nn.Linear(evaluator.width, 1)
            self.user, self.item = (nn.Linear(evaluator.width, evaluator.width) for _ in range(2))
            self.place_weight_K = nn.Parameter(torch.zeros(shape.slate_size))
            self.register_buffer("planes_WA", torch.randn(evaluator.width, config.num_bits))

    @torch.no_grad()
    def forward(self, request: Request, generator: torch.Generator) -> Decision:
        """The kept list of the highest value; proposals are drawn from ``generator``."""
        self.shape.check(request)
        candidates_BCW, request_BW = self.evaluator.encode(request)
        proposed_BGK = self.propose(candidates_BCW, self.config.num_lists, generator)
        kept_BGK = self.nearest(candidates_BCW, request_BW, proposed_BGK)
        best_B = self.evaluator.value(rows_at(candidates_BCW, kept_BGK)).argmax(dim=1)
        return Decision(items_at(request.candidates_BC, list_at(kept_BGK, best_B)))

    def propose(self, candidates_BCW: Tensor, num_lists: int, generator: torch.Generator) -> Tensor:
        """Lists (B, G, K) of positions around the score's sort, the sort first."""
        score_BC = self.prior(candidates_BCW).squeeze(2).detach()
        return lists_around_sort(score_BC, num_lists, self.shape.slate_size, self.config.temperature, generator)

    def nearest(self, candidates_BCW: Tensor, request_BW: Tensor, lists_BGK: Tensor) -> Tensor:
        """The lists (B, num_kept, K) whose hashes differ least from the user's."""
        # Ties are many, for distances are whole numbers up to A; the order of the proposals decides, the sort first.
        list_BGA = sim_hash(self.list_vectors(candidates_BCW, lists_BGK), self.planes_WA)
        user_B1A = sim_hash(self.user(request_BW), self.planes_WA).unsqueeze(1)
        distance_BG = (list_BGA != user_B1A).sum(dim=2)
        kept_BG = distance_BG.argsort(dim=1, stable=True)[:, : self.config.num_kept]
        return rows_at(lists_BGK, kept_BG)

    def list_vectors(self, candidates_BCW: Tensor, lists_BGK: Tensor) -> Tensor:
        """Vectors (B, G, W) of lists: their items', weighted by place."""
        chosen_BGKW = rows_at(self.item(candidates_BCW), lists_BGK)
        vectors_BGW: Tensor = torch.einsum("bgkw,k->bgw", chosen_BGKW, self.place_weight_K.softmax(dim=0))
        return vectors_BGW

    def loss(self, batch: LabelledRequests, generator: torch.Generator) -> Tensor:
        """The three terms of a batch, a scalar."""
        candidates_BCW, request_BW = self.evaluator.encode(batch.request)
        logit_BC = self.prior(candidates_BCW).squeeze(2)
        # Half of the lists are random, so that the evaluator knows poor lists, and half are like those proposed in use.
        half, places = self.config.training_lists // 2, self.shape.slate_size
        drawn_BGK = self.propose(candidates_BCW, self.config.training_lists - half, generator)
        lists_BGK = torch.cat([random_lists(batch.request, half, places, generator), drawn_BGK], dim=1)
        vectors_BGW = self.list_vectors(candidates_BCW, lists_BGK)
        likeness_BG = functional.cosine_similarity(vectors_BGW, self.user(request_BW).unsqueeze(1), dim=2)
        comparative = comparative_loss(likeness_BG, discounted_labels(batch.label_BC, lists_BGK))
        judged = label_loss(self.evaluator, batch, lists_BGK)
        return judged + listwise_softmax_loss(logit_BC, batch.label_BC) + self.config.comparative_weight * comparative


def discounted_labels(label_BC: Tensor, lists_BGK: Tensor) -> Tensor:
    """DCG (B, G) of lists by their labels."""
    return (items_at(label_BC, lists_BGK) * discounts(lists_BGK)).sum(dim=2)


def comparative_loss(likeness_BG: Tensor, worth_BG: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of the best list among those drawn, by likeness to the user; a scalar.

    Args:
        likeness_BG: float32 cosine of each list's vector and the user's.
        worth_BG: float32 worth of each list. Requests whose lists are worth the same do not count.
        temperature: of the softmax over lists.
    """
    differs_B = worth_BG.amax(dim=1) > worth_BG.amin(dim=1)
    loss_B = functional.cross_entropy(likeness_BG / temperature, worth_BG.argmax(dim=1), reduction="none")
    return (loss_B * differs_B).sum() / differs_B.sum().clamp(min=1)


def fit_pier(data: RerankData, config: PierConfig, evaluator: LabelEvaluatorConfig, fit: OfflineTrainingConfig) -> Pier:
    """Fits both modules together."""
    model = Pier(config, evaluator, shape_of(data))
    fit_reranker(model, model.loss, data, fit, label="PIER")
    return model
