"""NLGR: a generator that improves a list by neighbours, one exchange at a time (arXiv 2502.06097).

A list that differs from the current one in a single item is its neighbour. Starting from the retriever's best K, the
generator picks a place (position unit) and a candidate to put there (retrieval unit), several times. The evaluator
says what each exchange is worth: the reward is the new list's value less the current one's. Both picks are made by
Gumbel noise and an argmax whose gradient is that of the softmax (straight-through), so the evaluator's gradient
reaches the generator, and nothing is estimated from samples.

Changed or left out:

- with such a gradient, subtracting the current list's value moves the loss and not its gradient; the paper's gain
  from the relative reward is therefore not to be expected here;
- the evaluator is fitted first and frozen, on random lists (``agents.offline.label_evaluator``);
- keeping a place as it is counts as an exchange too: an item may be put where it stands. Other items of the list are
  masked, so lists never repeat a candidate;
- in use the picks are the likeliest ones, and the best list met on the way, by the evaluator, is shown;
- the number of exchanges, the encoder and the sizes are this project's own.

Shape legend: B requests, C candidates, G lists, K places, A alternatives, W width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.method import require_at_least, require_positive
from agents.networks import CandidateEncoder, Encoding, RequestShape, initial_order
from agents.offline.data import LabelledRequests, RerankData, shape_of
from agents.offline.label_evaluator import LabelEvaluator, LabelEvaluatorConfig, fit_label_evaluator
from agents.offline.training import OfflineTrainingConfig, fit_reranker
from recsim_env.slates import items_at, list_at
from recsim_env.types import Decision, Request


@dataclass(frozen=True, kw_only=True)
class NlgrConfig:
    """The generator and its training; the evaluator has settings of its own."""

    num_exchanges: int = 8
    """Exchanges made from the first list on."""
    temperature: float = 1.0
    """Of the softmax that lends the picks its gradient."""
    width: int = 128
    """Width of the generator."""
    heads: int = 4
    """Attention heads; must divide the width."""
    item_embedding: int = 16
    """Width of the item-id embedding; 0 for none."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "num_exchanges", "width", "heads")
        require_at_least(self, 0, "item_embedding")
        require_positive(self, "temperature")


class ExchangeGenerator(nn.Module):
    """The position and retrieval units; as a policy it shows the best list that its exchanges meet.

    Args:
        config: settings.
        evaluator: values lists; frozen.
        shape: sizes of the requests.
    """

    def __init__(self, config: NlgrConfig, evaluator: LabelEvaluator, shape: RequestShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.evaluator = evaluator
        width = config.width
        with torch.random.fork_rng(devices=[]):  # initial weights depend on the seed alone
            torch.manual_seed(config.seed)
            self.encoder = CandidateEncoder(
                shape, width=width, heads=config.heads, item_embedding=config.item_embedding
            )
            self.place_KW = nn.Parameter(0.1 * torch.randn(shape.slate_size, width))
            self.whole = nn.Linear(width, width)
            self.position = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
            self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)

    @torch.no_grad()
    def forward(self, request: Request, generator: torch.Generator) -> Decision:
        """The list of the highest value among the first one and those after each exchange; nothing is drawn."""
        self.shape.check(request)
        value_GB, positions_GBK = self.improve(request, None)
        best_BK = list_at(positions_GBK.transpose(0, 1), value_GB.argmax(dim=0))
        return Decision(items_at(request.candidates_BC, best_BK))

    def improve(self, request: Request, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Makes all exchanges, each from the list before it as it stands: no gradient runs back through that.

        Args:
            request: B requests.
            generator: draws the Gumbel noise; ``None`` picks what is likeliest.

        Returns:
            Of the first list and of those after each exchange (G = exchanges + 1 of them): values (G, B), which carry
            gradients, and positions (G, B, K) int64.
        """
        # Lists are one-hot choices, so that a product with the candidates' encodings gives the evaluator its input and
        # its gradient the way back to the choice. Gathering by index would cut that way off.
        encoding, judged_BCW = self.encoder(request), self.evaluator.encode(request).candidates_BCW
        first_BK = initial_order(request)[:, : self.shape.slate_size]
        lists = [functional.one_hot(first_BK, request.candidates_BC.shape[1]).to(judged_BCW.dtype)]
        for _ in range(self.config.num_exchanges):
            lists.append(self.exchange(encoding, lists[-1].detach(), generator))
        choice_GBKC = torch.stack(lists)
        return self.evaluator.value(choice_GBKC @ judged_BCW), choice_GBKC.argmax(dim=3)

    def exchange(self, encoding: Encoding, choice_BKC: Tensor, generator: torch.Generator | None) -> Tensor:
        """The neighbour (B, K, C) that the two units pick, one-hot like the current list ``choice_BKC``."""
        # Each place sees its own item and the mean of the list; the position unit asks which place is worst.
        listed_BKW = choice_BKC @ encoding.candidates_BCW + self.place_KW
        state_BKW = torch.relu(listed_BKW + self.whole(listed_BKW.mean(dim=1) + encoding.request_BW).unsqueeze(1))
        place_BK = _pick(self.position(state_BKW).squeeze(2), self.config.temperature, generator)
        # The place it picked asks the candidates for a better item, by an attention of one query.
        query_BW = self.query((place_BK.unsqueeze(2) * state_BKW).sum(dim=1))
        logit_BC = (self.key(encoding.candidates_BCW) @ query_BW.unsqueeze(2)).squeeze(2) / query_BW.shape[1] ** 0.5
        # Items of the other places are out; the item of this one stays in, which is an exchange that changes nothing.
        elsewhere_BC = (choice_BKC * (1 - place_BK.detach()).unsqueeze(2)).sum(dim=1) > 0.5
        item_BC = _pick(logit_BC.masked_fill(elsewhere_BC, -torch.inf), self.config.temperature, generator)
        place_BK1 = place_BK.unsqueeze(2)
        return choice_BKC * (1 - place_BK1) + place_BK1 * item_BC.unsqueeze(1)


def _pick(logit_BA: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One-hot of a draw (of the largest logit without a generator), with the gradient of the softmax."""
    if generator is not None:
        uniform_BA = torch.rand(logit_BA.shape, generator=generator).clamp(min=1e-20, max=1 - 1e-7)
        logit_BA = logit_BA - torch.log(-torch.log(uniform_BA))
    # Forward the value is hard, backward the gradient is soft: soft - soft.detach() is 0 and keeps its gradient.
    soft_BA = (logit_BA / temperature).softmax(dim=1)
    hard_BA = functional.one_hot(logit_BA.argmax(dim=1), logit_BA.shape[1]).to(soft_BA.dtype)
    return hard_BA + (soft_BA - soft_BA.detach())


def exchange_loss(model: ExchangeGenerator, request: Request, generator: torch.Generator) -> Tensor:
    """Minus the mean relative reward of the exchanges: value of the new list less that of the current one."""
    value_GB, _ = model.improve(request, generator)
    # Detached, the current list's value is a constant: an exchange answers for what it made, not for where it began.
    return -(value_GB[1:] - value_GB[:-1].detach()).mean()


def fit_nlgr(
    data: RerankData, config: NlgrConfig, evaluator: LabelEvaluatorConfig, fit: OfflineTrainingConfig
) -> ExchangeGenerator:
    """Fits the evaluator, then the generator by its relative rewards."""
    shape = shape_of(data)
    model = ExchangeGenerator(config, fit_label_evaluator(data, evaluator, fit, shape), shape)

    def loss(batch: LabelledRequests, generator: torch.Generator) -> Tensor:
        return exchange_loss(model, batch.request, generator)

    fit_reranker(model, loss, data, fit, label="NLGR")
    return model
