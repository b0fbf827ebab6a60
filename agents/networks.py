"""The encoder shared by the rankers: a Request becomes candidate encodings.

It runs once per request, whatever the number of lists that ``agents.decoders`` then makes of it. Permuting the
candidates permutes the output. Users are never embedded by id; items may be.

Shape legend: B requests, C candidates, K places, F signals, H history, D features, X context fields, N items,
E item embedding, W width.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsim_env.types import CONTEXT, NO_ITEM, Request

MIXINGS = ("attention", "mean")

_HOUR, _WEEKDAY = CONTEXT.index("hour"), CONTEXT.index("weekday")


@dataclass(frozen=True, kw_only=True)
class RequestShape:
    """The sizes a network is built for."""

    num_items: int
    """N: items of the catalogue, for the item embedding."""
    num_signals: int
    """F."""
    num_user_features: int
    num_candidate_features: int
    slate_size: int
    """K."""

    def __post_init__(self) -> None:
        if min(self.num_items, self.num_signals, self.slate_size) < 1:
            raise ValueError(f"num_items, num_signals and slate_size must be at least 1, got {self}")

    @classmethod
    def of(cls, request: Request, num_items: int, slate_size: int) -> "RequestShape":
        """The sizes of an example request."""
        return cls(
            num_items=num_items,
            num_signals=request.predicted_BCF.shape[-1],
            num_user_features=request.user_features_BD.shape[-1],
            num_candidate_features=request.candidate_features_BCD.shape[-1],
            slate_size=slate_size,
        )

    def check(self, request: Request) -> None:
        """Raises a ValueError if a request has other sizes, or fewer candidates than places."""
        found = RequestShape.of(request, self.num_items, self.slate_size)
        if found != self:
            raise ValueError(f"this policy was built for {self}, the request has {found}; use its own world")
        if request.candidates_BC.shape[1] < self.slate_size:
            raise ValueError(
                f"need num_candidates >= slate_size, got {request.candidates_BC.shape[1]} and {self.slate_size}"
            )


class Encoding(NamedTuple):
    """What the encoder says of one batch of requests."""

    candidates_BCW: Tensor
    request_BW: Tensor


class CandidateEncoder(nn.Module):
    """Encodes the candidates of a request in each other's presence.

    Args:
        shape: sizes of the requests.
        width: W.
        layers: mixing layers over the candidates; 0 scores each candidate alone.
        mixing: "attention" (self-attention, cost C squared) or "mean" (each candidate meets the average of
            the others' encodings, cost C).
        item_embedding: E, width of the item-id embedding shared by candidates and history; 0 for none.
        heads: attention heads; must divide the width.
    """

    def __init__(
        self,
        shape: RequestShape,
        *,
        width: int = 64,
        layers: int = 1,
        mixing: Literal["attention", "mean"] = "attention",
        item_embedding: int = 16,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if mixing not in MIXINGS:
            raise ValueError(f"mixing must be one of {MIXINGS}, got {mixing!r}")
        if width % heads:
            raise ValueError(f"heads must divide width, got {heads} and {width}")
        self.item_embedding = nn.Embedding(shape.num_items, item_embedding) if item_embedding else None
        if self.item_embedding is not None:
            nn.init.normal_(self.item_embedding.weight, std=0.1)
        num_weightings = shape.num_signals + 1
        per_candidate = shape.num_candidate_features + 4 * shape.num_signals + 2 + item_embedding
        per_request = shape.num_user_features + len(CONTEXT) + 4 + num_weightings * (1 + item_embedding)
        self.candidate_input = nn.Linear(per_candidate, width)
        self.request_input = nn.Sequential(nn.Linear(per_request, width), nn.ReLU(), nn.Linear(width, width))
        blocks = [_Attention(width, heads) if mixing == "attention" else _Mean(width) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)

    def forward(self, request: Request) -> Encoding:
        """Encodes B requests."""
        request_BW = self.request_input(self._request_features(request))
        x_BCW = self.candidate_input(self._candidate_features(request)) + request_BW.unsqueeze(1)
        for block in self.blocks:
            x_BCW = block(x_BCW)
        x_BCW = self.norm(x_BCW)
        return Encoding(x_BCW, request_BW + x_BCW.mean(dim=1))

    def _candidate_features(self, request: Request) -> Tensor:
        # Rates near 0 and seconds near 100 both become readable once each column is also shown relative to
        # the other candidates of its request; no statistics have to be fitted or stored.
        scores_BC = torch.cat([request.predicted_BCF, request.retriever_score_BC.unsqueeze(-1)], dim=-1)
        parts = [
            _squash(request.candidate_features_BCD),
            _squash(scores_BC),
            _relative(scores_BC),
            _squash(request.predicted_std_BCF),
            _relative(request.predicted_std_BCF),
        ]
        if self.item_embedding is not None:
            parts.append(self.item_embedding(request.candidates_BC))
        return torch.cat(parts, dim=-1)

    def _request_features(self, request: Request) -> Tensor:
        context_BX = request.context_BX
        angle_B2 = context_BX[:, [_HOUR, _WEEKDAY]] * (2 * math.pi / context_BX.new_tensor([24.0, 7.0]))
        # One weighting by mere presence and one by each recorded signal.
        present_BH = (request.history_BH != NO_ITEM).to(torch.float32)
        feedback_BHF = _squash(request.history_feedback_BHF * request.history_known_BHF)
        weight_BHF = torch.cat([present_BH.unsqueeze(-1), feedback_BHF * present_BH.unsqueeze(-1)], dim=-1)
        weight_BHF = weight_BHF / present_BH.sum(dim=1).clamp(min=1.0)[:, None, None]
        parts = [
            _squash(request.user_features_BD),
            _squash(context_BX),
            angle_B2.sin(),
            angle_B2.cos(),
            weight_BHF.sum(dim=1),
        ]
        if self.item_embedding is not None:
            embedded_BHE = self.item_embedding(request.history_BH.clamp(min=0))
            parts.append((weight_BHF.transpose(1, 2) @ embedded_BHE).flatten(1))
        return torch.cat(parts, dim=-1)


class _Attention(nn.Module):
    """A pre-norm transformer layer without positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x_BCW: Tensor) -> Tensor:
        parts = self.project(self.before_attention(x_BCW)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x_BCW = x_BCW + self.merge(attended)
        y_BCW: Tensor = self.mlp(self.before_mlp(x_BCW))
        return x_BCW + y_BCW


class _Mean(nn.Module):
    """A residual layer in which a candidate meets the average of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.own, self.others = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(2 * width, width)

    def forward(self, x_BCW: Tensor) -> Tensor:
        y_BCW: Tensor = self.before(x_BCW)
        mixed_BCW: Tensor = self.own(y_BCW) + self.others(y_BCW.mean(dim=1, keepdim=True))
        y_BCW = self.out(torch.relu(mixed_BCW))
        return x_BCW + y_BCW


def _squash(x: Tensor) -> Tensor:
    """Signed log: keeps small numbers, tames seconds and counts."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def _relative(x_BCF: Tensor) -> Tensor:
    """Each column as z-scores over the candidates of its request; a constant column becomes 0."""
    mean_B1F = x_BCF.mean(dim=1, keepdim=True)
    std_B1F = x_BCF.std(dim=1, keepdim=True, correction=0)
    return (x_BCF - mean_B1F) / (std_B1F + 1e-5 * (1 + mean_B1F.abs()))
