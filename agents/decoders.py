"""List decoders: candidate encodings become lists, drawn, scored or built greedily.

A list is K *positions* in the candidate set, all different. Permuting the candidates permutes the output.

Shape legend: B requests, C candidates, K places, G lists, W width, S summary of a list begun.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agents.networks import Encoding, rows_at
from recsim_env.slates import list_log_prob, sample_lists

DecoderName = Literal["one_softmax", "autoregressive", "matching"]
DECODERS: tuple[DecoderName, ...] = ("one_softmax", "autoregressive", "matching")


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
    """Plackett-Luce: one score per candidate, renormalised after each place.

    Since scores never change, lists are drawn by adding Gumbel noise and sorting, all places at once, and their
    exact log-probabilities come without a loop over places.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def sample(
        self, encoding: Encoding, num_lists: int, num_places: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draws G lists per request, see ``ListDecoder.sample``."""
        logits_BC = self.begin(encoding).squeeze(1)
        positions_BGK = sample_lists(logits_BC, num_lists, num_places, generator)
        return positions_BGK, list_log_prob(logits_BC, positions_BGK)

    def log_prob(self, encoding: Encoding, positions_BGK: Tensor) -> Tensor:
        """Log-probability (B, G, K) of each place of given lists, given the places before it."""
        return list_log_prob(self.begin(encoding).squeeze(1), positions_BGK)

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
        reset_in, update_in, new_in = rows_at(gates_BCS, chosen_BG).chunk(3, dim=-1)
        reset_old, update_old, new_old = self.gates_of_summary(summary_BGS).chunk(3, dim=-1)
        update = torch.sigmoid(update_in + update_old)
        new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_old) * new_old)
        return torch.lerp(new, summary_BGS, update), key_BWC, gates_BCS


class MatchingDecoder(ListDecoder):
    """NAR4Rec's non-autoregressive matching (arXiv 2402.06871): every candidate against every place, all at once.

    A place's scores are the products of its own vector with the candidates' encodings; they do not look at the
    other places, but a candidate that is already taken is masked, so that lists have a probability. The paper's
    unlikelihood training and contrastive decoding are in ``agents.rerankers.nar4rec``.
    """

    def __init__(self, width: int, num_places: int) -> None:
        super().__init__()
        self.key = nn.Linear(width, width)
        self.place_KW = nn.Parameter(torch.randn(num_places, width) * width**-0.5)
        self.place_of_request = nn.Linear(width, width)
        self.scale = 1 / math.sqrt(width)

    def begin(self, encoding: Encoding) -> tuple[Tensor, int]:
        """The matching scores (B, K, C), and the first place."""
        return self._scores(encoding), 0

    def logits(self, encoding: Encoding, summary: tuple[Tensor, int]) -> Tensor:
        """Scores (B, 1, C) of the next place, the same for every list."""
        scores_BKC, place = summary
        return scores_BKC[:, place : place + 1]

    def extend(self, encoding: Encoding, summary: tuple[Tensor, int], chosen_BG: Tensor) -> tuple[Tensor, int]:
        """One place further."""
        scores_BKC, place = summary
        return scores_BKC, place + 1

    def _scores(self, encoding: Encoding) -> Tensor:
        place_BKW = self.place_KW + self.place_of_request(encoding.request_BW).unsqueeze(1)
        scores_BKC: Tensor = place_BKW @ self.key(encoding.candidates_BCW).transpose(1, 2) * self.scale
        return scores_BKC


def make_decoder(name: str, width: int, num_places: int) -> ListDecoder:
    """A decoder by name, one of ``DECODERS``, for lists of up to K places."""
    if name == "one_softmax":
        return OneSoftmaxDecoder(width)
    if name == "autoregressive":
        return AutoregressiveDecoder(width)
    if name == "matching":
        return MatchingDecoder(width, num_places)
    raise ValueError(f"decoder must be one of {DECODERS}, got {name!r}")


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
