"""How much a set of list generators covers: list comprehensiveness and the gain of one more (arXiv 2504.15625).

    LC_m = sum over ordered pairs (a, b) of the m lists, a != b, of distance(J_a, J_b)
    GC_m = sum over earlier lists of distance(J_earlier, J_m), half of LC_m - LC_{m-1}

The paper's notes print ``GC_m = LC_m - LC_{m-1}`` and the sum over earlier lists side by side; with ordered pairs
the first is twice the second. Here LC sums ordered pairs and GC is the sum over earlier lists.

Two distances: of list embeddings (EBD), one minus the cosine of the lists' mean item vectors; of pair order (POD),
the share of pairs that the two lists put in opposite order among all pairs of the items that stand in either list,
items outside a list counting as after all of it: 0 for equal lists, 1 for one list and its reverse.

Shape legend: B requests, C candidates, G lists, L other lists, K places, D item features, X = C * C pairs.
"""

from typing import Literal

import torch
from torch import Tensor

from agents.networks import rows_at
from recsim_env.types import Request

Distance = Literal["embedding", "pair_order"]
DISTANCES: tuple[Distance, ...] = ("embedding", "pair_order")


def list_distances(request: Request, a_BGK: Tensor, b_BLK: Tensor, kind: Distance) -> Tensor:
    """Distances (B, G, L), 0 to 2 (embedding) or 0 to 1 (pair order), of lists of positions.

    Raises:
        ValueError: another kind of distance.
    """
    if kind == "embedding":
        a_BGD, b_BLD = (_embedding(request.candidate_features_BCD, lists) for lists in (a_BGK, b_BLK))
        return 1.0 - a_BGD @ b_BLD.transpose(1, 2)
    if kind == "pair_order":
        return _pair_order(a_BGK, b_BLK, request.candidates_BC.shape[1])
    raise ValueError(f"distance must be one of {DISTANCES}, got {kind!r}")


def list_comprehensiveness(distance_BGG: Tensor) -> Tensor:
    """LC (B,): the sum of distances over ordered pairs of lists; the diagonal does not count."""
    return distance_BGG.sum(dim=(1, 2)) - distance_BGG.diagonal(dim1=1, dim2=2).sum(dim=1)


def comprehensiveness_gain(distance_BGL: Tensor) -> Tensor:
    """GC (B, G) of each of G lists beside L existing ones: the sum of its distances to them."""
    return distance_BGL.sum(dim=2)


def _embedding(features_BCD: Tensor, lists_BGK: Tensor) -> Tensor:
    """Unit vectors (B, G, D): direction of the lists' mean item."""
    return torch.nn.functional.normalize(rows_at(features_BCD, lists_BGK).mean(dim=2), dim=2)


def _pair_order(a_BGK: Tensor, b_BLK: Tensor, num_candidates: int) -> Tensor:
    """Pairs in opposite order over all pairs of items of either list, by matrix products.

    ``before[i, j]`` is 1 where a list puts i before j. Two lists disagree on {i, j} where one says i before j and
    the other j before i. Counting by a product of (G, C * C) and (C * C, L) spares the table of all list pairs and
    item pairs, which for 100 generators would hold 25 million numbers a request.
    """
    a_BGX, b_BLX = (_before(lists, num_candidates) for lists in (a_BGK, b_BLK))
    after_BLX = b_BLX.view(*b_BLX.shape[:2], num_candidates, -1).transpose(2, 3).flatten(2)
    # Each disagreement on {i, j} is met once: as (i, j) if the first list puts i first, else as (j, i).
    opposite_BGL: Tensor = a_BGX @ after_BLX.transpose(1, 2)
    common_BGL = (a_BGK[:, :, None, :, None] == b_BLK[:, None, :, None, :]).sum(dim=(3, 4))
    either_BGL = a_BGK.shape[2] + b_BLK.shape[2] - common_BGL
    return opposite_BGL / (either_BGL * (either_BGL - 1) / 2).clamp(min=1)


def _before(lists_BGK: Tensor, num_candidates: int) -> Tensor:
    """Float 0/1 (B, G, C * C): entry i * C + j is 1 where the list puts candidate i before candidate j."""
    # Candidates outside the list share the place after its end, so that none of them is before another.
    places = lists_BGK.shape[2]
    place_BGC = torch.full((*lists_BGK.shape[:2], num_candidates), places, device=lists_BGK.device)
    order_BGK = torch.arange(places, device=lists_BGK.device).expand_as(lists_BGK)
    place_BGC = place_BGC.scatter(2, lists_BGK, order_BGK)
    return (place_BGC.unsqueeze(3) < place_BGC.unsqueeze(2)).to(torch.float32).flatten(2)


def distinct(distance_GG: Tensor, least: float) -> list[int]:
    """Generators that are not too close to an earlier one that stays; the first always stays.

    Args:
        distance_GG: mean distances between the lists of G generators.
        least: a smaller distance counts as the same generator.
    """
    kept: list[int] = []
    for index, row_G in enumerate(distance_GG):
        if not kept or float(row_G[kept].min()) >= least:
            kept.append(index)
    return kept
