"""The encoder shared by the rankers: a Request becomes candidate encodings.

It runs once per request, whatever the number of lists that ``agents.decoders`` then makes of it. Permuting the
candidates permutes the output. Users are never embedded by id; items may be.

Four ways in which candidates meet: self-attention (PRM, arXiv 1904.06813, without its pre-trained personal
vectors), induced self-attention (SetRank, arXiv 1912.05891), a GRU over the retriever's order (DLCM, arXiv
1804.05936) and the average of the others. What depends on the retriever's order takes it from the scores.

Shape legend: B requests, C candidates, K places, F signals, H history, D features, X context fields, N items,
E item embedding, W width, P positions, Q queries, S what they look at, M induced points.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsim_env.types import CONTEXT, NO_ITEM, Request

Mixing = Literal["attention", "mean", "induced", "recurrent"]
"""How candidates meet; see ``CandidateEncoder``."""
MIXINGS: tuple[str, ...] = get_args(Mixing)

INDUCED_POINTS = 16
"""M: learned points through which candidates meet in induced self-attention."""

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
        """Raises a ValueError if a request has other sizes, unknown items, or fewer candidates than places."""
        found = RequestShape.of(request, self.num_items, self.slate_size)
        if found != self:
            raise ValueError(f"this policy was built for {self}, the request has {found}; use its own world")
        last = int(request.candidates_BC.max())
        if last >= self.num_items:
            raise ValueError(
                f"this policy was built for a catalogue of {self.num_items} items, the request offers item {last}; use "
                "its own world"
            )
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
        mixing: "attention" (self-attention, cost C squared), "mean" (each candidate meets the average of
            the others' encodings, cost C), "induced" (through a few learned points, cost C) or "recurrent"
            (a GRU that walks up the retriever's order, one candidate after the other).
        item_embedding: E, width of the item-id embedding shared by candidates and history; 0 for none.
        heads: attention heads; must divide the width.
        initial_ranks: ranks in the retriever's order that have a learned embedding each; later candidates
            share the last one, candidates with equal scores the same one. 0 leaves ranks out.
    """

    def __init__(
        self,
        shape: RequestShape,
        *,
        width: int = 64,
        layers: int = 1,
        mixing: Mixing = "attention",
        item_embedding: int = 16,
        heads: int = 4,
        initial_ranks: int = 0,
    ) -> None:
        super().__init__()
        if mixing not in MIXINGS:
            raise ValueError(f"mixing must be one of {MIXINGS}, got {mixing!r}")
        if width % heads:
            raise ValueError(f"heads must divide width, got {heads} and {width}")
        if initial_ranks < 0:
            raise ValueError(f"initial_ranks must be at least 0 (none), got {initial_ranks}")
        self.mixing = mixing
        self.item_embedding = nn.Embedding(shape.num_items, item_embedding) if item_embedding else None
        if self.item_embedding is not None:
            nn.init.normal_(self.item_embedding.weight, std=0.1)
        num_weightings = shape.num_signals + 1
        per_candidate = shape.num_candidate_features + 4 * shape.num_signals + 2 + item_embedding
        per_request = shape.num_user_features + len(CONTEXT) + 4 + num_weightings * (1 + item_embedding)
        self.candidate_input = nn.Linear(per_candidate, width)
        self.request_input = nn.Sequential(nn.Linear(per_request, width), nn.ReLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_block(mixing, width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.rank_embedding = nn.Embedding(initial_ranks, width) if initial_ranks else None

    def forward(self, request: Request) -> Encoding:
        """Encodes B requests."""
        request_BW = self.request_input(self._request_features(request))
        x_BCW = self.candidate_input(self._candidate_features(request)) + request_BW.unsqueeze(1)
        if self.rank_embedding is not None:
            rank_BC = initial_rank(request).clamp(max=self.rank_embedding.num_embeddings - 1)
            x_BCW = x_BCW + self.rank_embedding(rank_BC)
        x_BCW = self.norm(self._mix(request, x_BCW))
        return Encoding(x_BCW, request_BW + x_BCW.mean(dim=1))

    def _mix(self, request: Request, x_BCW: Tensor) -> Tensor:
        if self.mixing != "recurrent":
            for block in self.blocks:
                x_BCW = block(x_BCW)
            return x_BCW
        order_BC = initial_order(request)
        x_BCW = rows_at(x_BCW, order_BC)
        for block in self.blocks:
            x_BCW = block(x_BCW)
        return rows_at(x_BCW, order_BC.argsort(dim=1))

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


def initial_order(request: Request) -> Tensor:
    """Positions (B, C) int64 of the candidates from the highest retriever score to the lowest.

    Equal scores stand in the order of their item codes, so the order does not hang on how candidates are stored.
    """
    by_code_BC = request.candidates_BC.argsort(dim=1)
    by_score_BC = request.retriever_score_BC.gather(1, by_code_BC).argsort(dim=1, descending=True, stable=True)
    return by_code_BC.gather(1, by_score_BC)


def initial_rank(request: Request) -> Tensor:
    """How many candidates (B, C) int64 have a higher retriever score; 0 is the retriever's best."""
    fallen_BC = -request.retriever_score_BC
    return torch.searchsorted(fallen_BC.sort(dim=1).values, fallen_BC.contiguous())


def rows_at(x_BCW: Tensor, positions: Tensor) -> Tensor:
    """Rows (B, ..., W) of candidates at positions (B, ...) int64."""
    index_BPW = positions.flatten(1).unsqueeze(2).expand(-1, -1, x_BCW.shape[2])
    return x_BCW.gather(1, index_BPW).view(*positions.shape, -1)


def _block(mixing: Mixing, width: int, heads: int) -> nn.Module:
    if mixing == "attention":
        return _Attention(width, heads)
    if mixing == "induced":
        return _Induced(width, heads)
    return _Recurrent(width) if mixing == "recurrent" else _Mean(width)


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


class _CrossAttention(nn.Module):
    """A pre-norm transformer layer in which queries (B, Q, W) look at something else (B, S, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_query, self.before_source, self.before_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.merge = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x_BQW: Tensor, source_BSW: Tensor) -> Tensor:
        parts = (self.query(self.before_query(x_BQW)), *self.key_value(self.before_source(source_BSW)).chunk(2, dim=-1))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x_BQW = x_BQW + self.merge(attended)
        y_BQW: Tensor = self.mlp(self.before_mlp(x_BQW))
        return x_BQW + y_BQW


class _Induced(nn.Module):
    """Induced self-attention: learned points look at the candidates, then the candidates at the points."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.points_MW = nn.Parameter(torch.randn(INDUCED_POINTS, width))
        self.gather, self.spread = _CrossAttention(width, heads), _CrossAttention(width, heads)

    def forward(self, x_BCW: Tensor) -> Tensor:
        points_BMW = self.points_MW.expand(len(x_BCW), -1, -1)
        mixed_BCW: Tensor = self.spread(x_BCW, self.gather(points_BMW, x_BCW))
        return mixed_BCW


class _Recurrent(nn.Module):
    """DLCM's layer over candidates in the retriever's order: states of a GRU, gated by its last state.

    The GRU walks from the last candidate to the first, so that the best ones weigh most in the last state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.gru = nn.LayerNorm(width), nn.GRU(width, width, batch_first=True)
        self.gate, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x_BCW: Tensor) -> Tensor:
        state_BCW = self.gru(self.before(x_BCW).flip(1))[0].flip(1)
        gated_BCW = state_BCW * torch.tanh(self.gate(state_BCW[:, :1]))
        y_BCW: Tensor = self.out(gated_BCW)
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
