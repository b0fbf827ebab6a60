"""Networks shared by the rankers: a Request becomes candidate encodings, encodings become lists.

``CandidateEncoder`` runs once per request, whatever the number of lists. A ``ListDecoder`` then draws,
scores or greedily builds lists as *positions* in the candidate set. Permuting the candidates permutes the
output. Users are never embedded by id; items may be.

Shape legend: B requests, C candidates, K places, F signals, H history, D features, X context fields, G lists,
N items, E item embedding, W width, S summary of a list begun.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsim_env.types import CONTEXT, NO_ITEM, Request

MIXINGS = ("attention", "mean")
DECODERS = ("one_softmax", "autoregressive")

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


class ListDecoder(nn.Module, ABC):
    """A distribution over ordered lists of K different candidates, one place at a time.

    A subclass says how a list begins (``begin``), how places are scored given the list so far (``logits``)
    and how a chosen candidate changes it (``extend``); drawing, scoring and greedy search are the same.
    """

    @abstractmethod
    def begin(self, encoding: Encoding) -> Any:
        """Summary of the empty list, with an axis of size 1 where lists will differ."""

    @abstractmethod
    def logits(self, encoding: Encoding, summary: Any) -> Tensor:
        """Scores (B, G, C), or (B, 1, C) where all lists agree, of every candidate for the next place."""

    @abstractmethod
    def extend(self, encoding: Encoding, summary: Any, chosen_BG: Tensor) -> Any:
        """Summary after one more place."""

    def sample(
        self, encoding: Encoding, num_lists: int, num_places: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draws G lists per request.

        Returns:
            Positions (B, G, K) int64 in the candidate set, and the log-probability (B, G, K) of each place
            given the places before it.
        """
        size = (num_places, len(encoding.request_BW), num_lists)
        uniform_KBG = torch.rand(size, generator=generator, device=generator.device)
        uniform_KBG = uniform_KBG.to(encoding.request_BW.device)
        return self._decode(encoding, num_lists, num_places, lambda log_p, k: _draw(log_p, uniform_KBG[k]))

    def greedy(self, encoding: Encoding, num_places: int) -> Tensor:
        """The list (B, K) that takes the likeliest candidate at every place."""
        return self._decode(encoding, 1, num_places, lambda log_p, _: log_p.argmax(dim=-1))[0].squeeze(1)

    def log_prob(self, encoding: Encoding, positions_BGK: Tensor) -> Tensor:
        """Log-probability (B, G, K) of each place of given lists, given the places before it."""
        G, K = positions_BGK.shape[1:]
        return self._decode(encoding, G, K, lambda _, k: positions_BGK[..., k])[1]

    def _decode(
        self, encoding: Encoding, num_lists: int, num_places: int, choose: Callable[[Tensor, int], Tensor]
    ) -> tuple[Tensor, Tensor]:
        B, C = encoding.candidates_BCW.shape[:2]
        taken_BGC = torch.zeros((B, num_lists, C), dtype=torch.bool, device=encoding.request_BW.device)
        summary = self.begin(encoding)
        positions, log_probs = [], []
        for place in range(num_places):
            logits_BGC = self.logits(encoding, summary).masked_fill(taken_BGC, -torch.inf)
            log_p_BGC = logits_BGC.log_softmax(dim=-1)
            chosen_BG = choose(log_p_BGC, place)
            chosen_BG1 = chosen_BG.unsqueeze(-1)
            positions.append(chosen_BG)
            log_probs.append(log_p_BGC.gather(-1, chosen_BG1).squeeze(-1))
            if place + 1 < num_places:
                taken_BGC = taken_BGC.scatter(-1, chosen_BG1, True)
                summary = self.extend(encoding, summary, chosen_BG)
        return torch.stack(positions, dim=-1), torch.stack(log_probs, dim=-1)


class OneSoftmaxDecoder(ListDecoder):
    """Plackett-Luce: one score per candidate, renormalised after each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def begin(self, encoding: Encoding) -> Tensor:
        """The scores themselves; they never change."""
        logits_B1C: Tensor = self.score(encoding.candidates_BCW).transpose(1, 2)
        return logits_B1C

    def logits(self, encoding: Encoding, summary: Tensor) -> Tensor:
        """The same scores for every list and place."""
        return summary

    def extend(self, encoding: Encoding, summary: Tensor, chosen_BG: Tensor) -> Tensor:
        """Unchanged: a place does not look at the places before it."""
        return summary


class AutoregressiveDecoder(ListDecoder):
    """A pointer network: a GRU over the chosen candidates asks for the next one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gates_of_candidate = nn.Linear(width, 3 * width)
        self.gates_of_summary = nn.Linear(width, 3 * width)
        self.key, self.query = nn.Linear(width, width), nn.Linear(width, width)
        self.scale = 1 / math.sqrt(width)

    def begin(self, encoding: Encoding) -> tuple[Tensor, Tensor, Tensor]:
        """Summary (B, 1, S), with what every place needs of the candidates: keys and input gates."""
        summary_B1S = torch.tanh(encoding.request_BW).unsqueeze(1)
        key_BWC = self.key(encoding.candidates_BCW).transpose(1, 2) * self.scale
        return summary_B1S, key_BWC, self.gates_of_candidate(encoding.candidates_BCW)

    def logits(self, encoding: Encoding, summary: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Scores (B, G, C)."""
        summary_BGS, key_BWC, _ = summary
        scores_BGC: Tensor = self.query(summary_BGS) @ key_BWC
        return scores_BGC

    def extend(
        self, encoding: Encoding, summary: tuple[Tensor, Tensor, Tensor], chosen_BG: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One GRU step; the input's half was computed once for each candidate."""
        summary_BGS, key_BWC, gates_BCS = summary
        index = chosen_BG.unsqueeze(-1).expand(-1, -1, gates_BCS.shape[-1])
        reset_in, update_in, new_in = gates_BCS.gather(1, index).chunk(3, dim=-1)
        reset_old, update_old, new_old = self.gates_of_summary(summary_BGS).chunk(3, dim=-1)
        update = torch.sigmoid(update_in + update_old)
        new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_old) * new_old)
        return torch.lerp(new, summary_BGS, update), key_BWC, gates_BCS


def make_decoder(name: str, width: int) -> ListDecoder:
    """A decoder by name: "one_softmax" or "autoregressive"."""
    if name not in DECODERS:
        raise ValueError(f"decoder must be one of {DECODERS}, got {name!r}")
    return OneSoftmaxDecoder(width) if name == "one_softmax" else AutoregressiveDecoder(width)


def _draw(log_p_BGC: Tensor, uniform_BG: Tensor) -> Tensor:
    """Draws from a categorical distribution by inverting its cumulative sum: one uniform, not C of them."""
    cumulative_BGC = log_p_BGC.exp().cumsum(dim=-1)
    # Scaled so that it stays below the total; then the first sum above it belongs to a positive probability.
    target_BG1 = (uniform_BG * (1 - 1e-6)).unsqueeze(-1) * cumulative_BGC[..., -1:]
    drawn_BG1 = torch.searchsorted(cumulative_BGC, target_BG1, right=True)
    if log_p_BGC.is_cuda:
        # A parallel sum may differ in its last bit across a candidate that is already taken.
        taken_BG1 = log_p_BGC.gather(-1, drawn_BG1).isinf()
        drawn_BG1 = torch.where(taken_BG1, log_p_BGC.argmax(dim=-1, keepdim=True), drawn_BG1)
    return drawn_BG1.squeeze(-1)
