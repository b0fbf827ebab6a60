"""How good short lists are against binary labels: hits, NDCG, MAP and F1, batched.

Every function takes the labels at the list's places, and how many positives the request has in all, so a
positive that never was a candidate counts as missed. Where all positives are candidates, the ideal list of
NDCG and MAP is that over the same candidates. A request without positives has no value: NaN.

Shape legend: B requests, C candidates, K places.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from recsim_env.slates import first_showing, items_at, positions_of


def discounts(lists: Tensor) -> Tensor:
    """NDCG's weight (K,) of each place of lists (..., K): 1 / log2(place + 1), places counted from 1."""
    return 1 / torch.log2(torch.arange(lists.shape[-1], device=lists.device) + 2.0)


def hit_share(label_BK: Tensor, num_positives_B: Tensor) -> Tensor:
    """H@K (B,): the share of a request's positives that stand in its list.

    Args:
        label_BK: float32 0/1, labels of the list's items in the order of the places.
        num_positives_B: float32, positives of the request, in the list or not.
    """
    return label_BK.sum(dim=1) / _or_nan(num_positives_B)


def ndcg(label_BK: Tensor, num_positives_B: Tensor) -> Tensor:
    """NDCG@K (B,) with gains 0/1 and discount 1 / log2(place + 1), places counted from 1."""
    place_K = torch.arange(label_BK.shape[1], device=label_BK.device)
    discount_K = discounts(label_BK)
    ideal_BK = (place_K < num_positives_B.unsqueeze(1)).to(label_BK.dtype)
    return (label_BK * discount_K).sum(dim=1) / _or_nan((ideal_BK * discount_K).sum(dim=1))


def average_precision(label_BK: Tensor, num_positives_B: Tensor) -> Tensor:
    """AP@K (B,): precision at each hit's place, averaged over as many hits as the list could hold."""
    place_K = torch.arange(1, label_BK.shape[1] + 1, device=label_BK.device)
    precision_BK = label_BK.cumsum(dim=1) / place_K
    return (precision_BK * label_BK).sum(dim=1) / _or_nan(num_positives_B).clamp(max=label_BK.shape[1])


def f1(label_BK: Tensor, num_positives_B: Tensor) -> Tensor:
    """F1@K (B,): harmonic mean of the list's precision and ``hit_share``."""
    return 2 * label_BK.sum(dim=1) / (label_BK.shape[1] + _or_nan(num_positives_B))


LIST_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "H": hit_share,
    "NDCG": ndcg,
    "MAP": average_precision,
    "F1": f1,
}
"""The list metrics by the names that tables use."""


def labels_of(items_BK: Tensor, candidates_BC: Tensor, label_BC: Tensor) -> Tensor:
    """Labels (B, K) of a list's items.

    Raises:
        ValueError: an item is not among its request's candidates, or stands in the list twice.
    """
    if not bool(first_showing(items_BK).all()):
        raise ValueError("some lists show an item twice; a list is made of different candidates")
    return items_at(label_BC, positions_of(items_BK, candidates_BC))


def _or_nan(count_B: Tensor) -> Tensor:
    return torch.where(count_B > 0, count_B, torch.nan)
