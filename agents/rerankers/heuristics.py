"""List generators without learning, any number of them side by side: sorts, MMR and DPP.

- A **sort** orders candidates by relevance, a mix of what the recommender knows of each candidate: predicted
  signals, their spread, the retriever's score.
- **MMR** (Carbonell and Goldstein, 1998) takes, place by place, the candidate with the best relevance less
  ``penalty`` times its similarity to the nearest one chosen before. A sort is MMR without penalty.
- **DPP**: greedy maximum a posteriori of a determinantal point process, by the fast updates of Chen et al.
  (arXiv 1709.05135, algorithm 1), kernel ``exp(sharpness * (relevance_i + relevance_j)) * similarity_ij``.

Relevance is a weighted sum of z-scores over the request's candidates, so that one set of weights suits every
request. Similarity is the cosine of item features, or whether the main tag is the same. Where no candidate is left
that adds to a DPP's determinant (every tag is shown already), the most relevant one follows.

Left out: the stopping rule of the DPP (a slate always has K places); windows, as slates are short.

Shape legend: B requests, C candidates, G generators, K places, F signals, R relevance inputs, D item features, N items.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from agents.networks import rows_at
from recsim_env.slates import check_room
from recsim_env.types import Request
from recsim_env.world import World

Family = Literal["sort", "mmr", "dpp"]
Kernel = Literal["cosine", "tags"]
FAMILIES: tuple[Family, ...] = ("sort", "mmr", "dpp")
KERNELS: tuple[Kernel, ...] = ("cosine", "tags")
RETRIEVER, SPREAD = "retriever", "spread"
"""Relevance inputs beside the signals: the retriever's score, and the standard deviation of the watch time."""

_SPENT = 1e-4
"""A candidate with a smaller share of its own determinant adds nothing; the rest is rounding."""


@dataclass(frozen=True, kw_only=True)
class Heuristic:
    """One generator's settings."""

    family: Family = "sort"
    """How a list is built."""
    weights: dict[str, float] = field(default_factory=lambda: {"watch_time": 1.0})
    """Weight of each relevance input: a signal of the world, "retriever" or "spread"."""
    kernel: Kernel = "cosine"
    """What similarity means."""
    strength: float = 1.0
    """MMR: penalty of similarity, in standard deviations of relevance. DPP: sharpness, the weight of relevance
    beside diversity. Unused by a sort."""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {FAMILIES}, got {self.family!r}")
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {KERNELS}, got {self.kernel!r}")
        if not self.weights:
            raise ValueError("a heuristic needs at least one weight, such as {'watch_time': 1.0}")
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength must be finite and not negative, got {self.strength}")
        odd = {name: weight for name, weight in self.weights.items() if not math.isfinite(weight)}
        if odd:
            raise ValueError(f"weights must be finite, got {odd}")

    @property
    def name(self) -> str:
        """Readable and different for different settings."""
        mix = " ".join(f"{weight:+g} {name}" for name, weight in self.weights.items())
        return f"sort {mix}" if self.family == "sort" else f"{self.family} {self.kernel} {self.strength:g} {mix}"


class HeuristicGenerators:
    """G heuristics as one set of generators; deterministic. See ``agents.rerankers.multi_generator.Generators``.

    Args:
        heuristics: the settings of each.
        signals: the world's signals, ``watch_time`` first.
        slate_size: K.
        tag_N: int64 main tag of each item, -1 where it has none (``Catalogue.tag_N``).

    Raises:
        ValueError: no heuristics, two alike, a weight of something that requests do not have, or no places.
    """

    def __init__(self, heuristics: Sequence[Heuristic], signals: Sequence[str], slate_size: int, tag_N: Tensor):
        inputs = (*signals, RETRIEVER, SPREAD)
        unknown = sorted({name for h in heuristics for name in h.weights} - set(inputs))
        if unknown:
            raise ValueError(f"no relevance inputs {unknown}; a heuristic may weigh {inputs}")
        self._heuristics, self._signals = tuple(heuristics), tuple(signals)
        self.names = tuple(h.name for h in heuristics)
        if not heuristics or len(set(self.names)) < len(heuristics):
            raise ValueError(f"need heuristics that differ from each other, got {list(self.names)}")
        if slate_size < 1:
            raise ValueError(f"slate_size must be at least 1, got {slate_size}")
        self.slate_size = slate_size
        self._tag_N = tag_N
        self._weight_GR = torch.tensor([[h.weights.get(name, 0.0) for name in inputs] for h in heuristics])
        # Families and kernels are built apart and put back in the order in which they were given.
        self._parts = {
            (is_dpp, kernel): [i for i, h in enumerate(heuristics) if (h.family == "dpp", h.kernel) == (is_dpp, kernel)]
            for is_dpp in (False, True)
            for kernel in KERNELS
        }
        self._strength_G = torch.tensor([0.0 if h.family == "sort" else h.strength for h in heuristics])

    @classmethod
    def standard(cls, world: World, slate_size: int) -> "HeuristicGenerators":
        """The ``standard_heuristics`` of a world's signals and tags."""
        return cls(standard_heuristics(world.signals), world.signals, slate_size, world.catalogue.tag_N)

    def some(self, indices: Sequence[int]) -> "HeuristicGenerators":
        """The generators at these places of the set, in this order."""
        chosen = [self._heuristics[index] for index in indices]
        return HeuristicGenerators(chosen, self._signals, self.slate_size, self._tag_N)

    def propose(self, request: Request, generator: torch.Generator) -> Tensor:
        """Lists (B, G, K) as positions in the candidate set.

        Raises:
            ValueError: fewer candidates than places, or a request of other signals or of a larger catalogue.
        """
        check_room(request.candidates_BC, self.slate_size)
        if request.predicted_BCF.shape[2] != len(self._signals):
            raise ValueError(
                f"these generators weigh {len(self._signals)} signals {self._signals}, the request predicts "
                f"{request.predicted_BCF.shape[2]}"
            )
        if int(request.candidates_BC.max()) >= len(self._tag_N):
            raise ValueError(
                f"these generators know the tags of {len(self._tag_N)} items, the request offers item "
                f"{int(request.candidates_BC.max())}; use those of its own world"
            )
        device = request.candidates_BC.device
        relevance_BGC = self._weight_GR.to(device) @ _relevance_inputs(request)
        lists_BGK = torch.empty((*relevance_BGC.shape[:2], self.slate_size), dtype=torch.int64, device=device)
        for (is_dpp, kernel), rows in self._parts.items():
            if not rows:
                continue
            if kernel == "cosine":
                similarity_BCC = cosine(request.candidate_features_BCD)
            else:
                similarity_BCC = same_tag(self._tag_N.to(device)[request.candidates_BC])
            build = greedy_dpp if is_dpp else mmr
            part_BGC, strength_G = relevance_BGC[:, rows], self._strength_G[rows].to(device)
            lists_BGK[:, rows] = build(part_BGC, similarity_BCC, strength_G, self.slate_size)
        return lists_BGK


def mmr(relevance_BGC: Tensor, similarity_BCC: Tensor, penalty_G: Tensor, slate_size: int) -> Tensor:
    """Positions (B, G, K) by maximal marginal relevance; ties keep the candidates' order.

    Args:
        relevance_BGC: float32.
        similarity_BCC: float32, symmetric.
        penalty_G: float32, of the similarity to the nearest chosen candidate.
        slate_size: K.
    """
    left_BGC, nearest_BGC = relevance_BGC.clone(), torch.zeros_like(relevance_BGC)
    places = []
    for place in range(slate_size):
        chosen_BG = (left_BGC - penalty_G.unsqueeze(1) * nearest_BGC).argmax(dim=2)
        places.append(chosen_BG)
        left_BGC = left_BGC.scatter(2, chosen_BG.unsqueeze(2), -torch.inf)
        # Only the nearest chosen one counts, so a running maximum replaces the loop over those chosen before.
        row_BGC = rows_at(similarity_BCC, chosen_BG)
        nearest_BGC = row_BGC if place == 0 else nearest_BGC.maximum(row_BGC)
    return torch.stack(places, dim=2)


def greedy_dpp(relevance_BGC: Tensor, similarity_BCC: Tensor, sharpness_G: Tensor, slate_size: int) -> Tensor:
    """Positions (B, G, K) that greedily maximise the determinant of the chosen rows of the kernel.

    Where no candidate is left that adds to it, the best quality follows. The determinant of chosen rows is the product
    of their gains, the squared diagonal of a Cholesky factor; keeping the factor's rows for all candidates makes each
    place cost as much as the places before it times C, instead of a determinant for each candidate (Chen et al.).

    Args:
        relevance_BGC: float32.
        similarity_BCC: float32, symmetric and positive semidefinite, 1 on the diagonal.
        sharpness_G: float32, weight of relevance beside diversity.
        slate_size: K.
    """
    # Clamped: beyond exp(20) squares overflow float32 once they are multiplied, and no choice depends on it.
    quality_BGC = (relevance_BGC * sharpness_G.unsqueeze(1)).clamp(-20.0, 20.0).exp()
    own_BGC = quality_BGC.square()
    gain_BGC = own_BGC  # what a candidate would multiply the determinant by
    taken_BGC = torch.zeros_like(gain_BGC, dtype=torch.bool)
    factors: list[Tensor] = []  # rows of the Cholesky factor, each (B, G, C)
    places = []
    for _ in range(slate_size):
        spent_BGC = gain_BGC <= _SPENT * own_BGC
        worth_BGC = torch.where(spent_BGC, -1.0 / own_BGC, gain_BGC)  # below every gain, in the order of quality
        chosen_BG = worth_BGC.masked_fill(taken_BGC, -torch.inf).argmax(dim=2)
        places.append(chosen_BG)
        index_BG1 = chosen_BG.unsqueeze(2)
        # One row of the Cholesky factor: the kernel's row less what earlier rows explain, over the chosen one's root.
        kernel_BGC = quality_BGC.gather(2, index_BG1) * rows_at(similarity_BCC, chosen_BG) * quality_BGC
        for factor_BGC in factors:
            kernel_BGC = kernel_BGC - factor_BGC.gather(2, index_BG1) * factor_BGC
        # A spent candidate would be divided by rounding; its row is 0, for it explains nothing new.
        adds_BG1 = ~spent_BGC.gather(2, index_BG1)
        root_BG1 = torch.where(adds_BG1, gain_BGC.gather(2, index_BG1), 1.0).sqrt()
        factor_BGC = torch.where(adds_BG1, kernel_BGC / root_BG1, 0.0)
        factors.append(factor_BGC)
        gain_BGC = gain_BGC - factor_BGC.square()
        taken_BGC = taken_BGC.scatter(2, index_BG1, True)
    return torch.stack(places, dim=2)


def standard_heuristics(signals: Sequence[str]) -> list[Heuristic]:
    """A hundred generators and more: every mix of relevance with every way to build a list.

    Chosen before any world was opened, and the same for all.
    """
    others: list[dict[str, float]] = [{name: 0.5} for name in signals if name != "watch_time"]
    mixes = [{}, *others, {RETRIEVER: 0.5}, {RETRIEVER: 1.0}, {SPREAD: 0.5}, {SPREAD: -0.5}]
    found = []
    for mix in mixes:
        weights = {"watch_time": 1.0, **mix}
        found.append(Heuristic(weights=weights))
        for kernel in KERNELS:
            found += [Heuristic(family="mmr", weights=weights, kernel=kernel, strength=s) for s in (0.3, 1.0, 3.0)]
            found += [Heuristic(family="dpp", weights=weights, kernel=kernel, strength=s) for s in (0.5, 2.0)]
    return found


def _relevance_inputs(request: Request) -> Tensor:
    """Z-scores (B, R, C) over the candidates: every predicted signal, retriever's score, spread of watch time."""
    inputs_BRC = torch.cat(
        [
            request.predicted_BCF.transpose(1, 2),
            request.retriever_score_BC.unsqueeze(1),
            request.predicted_std_BCF[..., :1].transpose(1, 2),
        ],
        dim=1,
    )
    mean_BR1 = inputs_BRC.mean(dim=2, keepdim=True)
    spread_BR1 = inputs_BRC.std(dim=2, keepdim=True, correction=0)
    # An input that hardly differs between candidates says nothing; rounding must not be taken for a difference.
    return (inputs_BRC - mean_BR1) / (spread_BR1 + 1e-3 * mean_BR1.abs()).clamp(min=1e-9)


def cosine(features_BCD: Tensor) -> Tensor:
    """Cosine similarities (B, C, C)."""
    unit_BCD = torch.nn.functional.normalize(features_BCD, dim=2)
    return unit_BCD @ unit_BCD.transpose(1, 2)


def same_tag(tag_BC: Tensor) -> Tensor:
    """1 where two candidates have the same tag and on the diagonal, otherwise 0 (B, C, C); -1 is no tag."""
    same_BCC = (tag_BC.unsqueeze(2) == tag_BC.unsqueeze(1)) & (tag_BC >= 0).unsqueeze(2)
    return (same_BCC | torch.eye(tag_BC.shape[1], dtype=torch.bool, device=tag_BC.device)).to(torch.float32)
