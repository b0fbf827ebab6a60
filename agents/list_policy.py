"""A list policy: one network that encodes a request's candidates and writes whole slates.

The network of GoalRank, and of every method that learns a distribution over lists. One dial sets its size, a thousand
to 100 million parameters (``SIZES``).

Shape legend: B requests, C candidates, K places, G lists in a group.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from agents.decoders import DECODERS, DecoderName, make_decoder
from agents.method import MethodConfig, Step, require_at_least, require_one_of
from agents.networks import MIXINGS, CandidateEncoder, Encoding, Mixing, RequestShape
from recsim_env.slates import first_showing, items_at, positions_of
from recsim_env.types import Decision, Request

POSITIONS, LOG_PROB = "positions_BK", "log_prob_BK"
"""Columns that exploring leaves: the slate as positions in the candidate set, and each place's log-probability."""


@dataclass(frozen=True, kw_only=True)
class ListPolicyConfig(MethodConfig):
    """Settings of the network, beside those of every method."""

    decoder: DecoderName = "autoregressive"
    """How lists are written."""
    mixing: Mixing = "attention"
    """How candidates see each other: see ``agents.networks.CandidateEncoder``."""
    width: int = 64
    """Width of the network."""
    layers: int = 1
    """Mixing layers over the candidates."""
    heads: int = 4
    """Attention heads; must divide the width."""
    item_embedding: int = 16
    """Width of the item-id embedding; 0 for none."""
    initial_ranks: int = 0
    """Ranks in the retriever's order with a learned embedding each, as PRM has; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "decoder", DECODERS)
        require_one_of(self, "mixing", MIXINGS)
        require_at_least(self, 1, "width", "heads")
        require_at_least(self, 0, "layers", "item_embedding", "initial_ranks")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, got {self.heads} and {self.width}")


SIZES: dict[str, dict[str, Any]] = {
    "1k": {"width": 4, "layers": 1, "heads": 2, "item_embedding": 0},
    "10k": {"width": 18, "layers": 1, "heads": 2, "item_embedding": 4},
    "100k": {"width": 64, "layers": 1, "heads": 4, "item_embedding": 16},
    "1m": {"width": 192, "layers": 2, "heads": 4, "item_embedding": 32},
    "10m": {"width": 480, "layers": 4, "heads": 8, "item_embedding": 64},
    "100m": {"width": 1536, "layers": 4, "heads": 16, "item_embedding": 128},
}
"""Networks by their number of parameters, the item-id embedding not counted."""

Sized = TypeVar("Sized", bound=ListPolicyConfig)


def sized(config: Sized, size: str) -> Sized:
    """The same settings for a network of another size; the learning rate falls as the width grows.

    Raises:
        ValueError: a size that is not one of ``SIZES``.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {tuple(SIZES)}, got {size!r}")
    wider = SIZES[size]["width"] / config.width
    return dataclasses.replace(config, **SIZES[size], lr=config.lr / wider)


class ListPolicy(nn.Module):
    """The list policy; a callable ``(request, generator) -> Decision`` that needs nothing but torch.

    Args:
        config: settings.
        shape: sizes of the requests it will meet, ``RequestShape.of(request, num_items, slate_size)``.
        greedy: answer the list that takes the likeliest candidate at every place, instead of drawing one.
    """

    def __init__(self, config: ListPolicyConfig, shape: RequestShape, *, greedy: bool = False) -> None:
        super().__init__()
        self.config, self.shape, self.greedy = config, shape, greedy
        # A list of one place has nothing to look back at: both decoders say the same.
        decoder = config.decoder if shape.slate_size > 1 else "one_softmax"
        with torch.random.fork_rng(devices=[]):  # initial weights depend on the seed alone
            torch.manual_seed(config.seed)
            self.encoder = CandidateEncoder(
                shape,
                width=config.width,
                layers=config.layers,
                mixing=config.mixing,
                item_embedding=config.item_embedding,
                heads=config.heads,
                initial_ranks=config.initial_ranks,
            )
            self.decoder = make_decoder(decoder, config.width, shape.slate_size)

    @torch.no_grad()
    def forward(self, request: Request, generator: torch.Generator) -> Decision:
        """Answers B requests with one slate each; draws come from ``generator`` only."""
        self.shape.check(request)
        encoding = self.encoder(request)
        if self.greedy:
            positions_BK = self.decoder.greedy(encoding, self.shape.slate_size)
            return Decision(items_at(request.candidates_BC, positions_BK))
        positions_BGK, log_prob_BGK = self.decoder.sample(encoding, 1, self.shape.slate_size, generator)
        return Decision(items_at(request.candidates_BC, positions_BGK[:, 0]), log_prob_BGK[:, 0])

    @torch.no_grad()
    def explore(self, request: Request, generator: torch.Generator) -> Step:
        """Draws one slate per request, whatever ``greedy`` says; leaves its positions and log-probabilities."""
        self.shape.check(request)
        positions_BGK, log_prob_BGK = self.decoder.sample(self.encoder(request), 1, self.shape.slate_size, generator)
        columns = {POSITIONS: positions_BGK[:, 0], LOG_PROB: log_prob_BGK[:, 0]}
        return Step(items_at(request.candidates_BC, positions_BGK[:, 0]), columns)

    @torch.no_grad()
    def sample_group(self, request: Request, num_lists: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws G lists per request: positions (B, G, K) and log-probabilities (B, G) of whole lists."""
        self.shape.check(request)
        encoding: Encoding = self.encoder(request)
        positions_BGK, log_prob_BGK = self.decoder.sample(encoding, num_lists, self.shape.slate_size, generator)
        return positions_BGK, log_prob_BGK.sum(dim=-1)

    def group_log_prob(self, request: Request, positions_BGK: Tensor) -> Tensor:
        """Log-probability (B, G) of whole lists given as positions; carries gradients."""
        return self.decoder.log_prob(self.encoder(request), positions_BGK).sum(dim=-1)

    def log_prob(self, request: Request, items_BK: Tensor) -> Tensor:
        """Log-probability (B, K) of each place of a slate of item codes, given the places before it.

        Raises:
            ValueError: an item is not among its request's candidates, or stands in its slate twice.
        """
        positions_B1K = positions_of(items_BK, request.candidates_BC).unsqueeze(1)
        if not bool(first_showing(items_BK).all()):
            raise ValueError("log_prob: some slates hold an item twice; no list policy writes such slates")
        return self.decoder.log_prob(self.encoder(request), positions_B1K).squeeze(1)
