"""Plackett-Luce lists: places filled in turn, each by a softmax over the candidates that are left.

Shape legend: B requests, C candidates, G lists, K places.
"""

import torch
from torch import Tensor


def sample(logits_BC: Tensor, num_lists: int, slate_size: int, generator: torch.Generator) -> Tensor:
    """Draws lists without repeats: int64 positions (B, G, K) among the candidates.

    Adding Gumbel noise to the logits and sorting draws from Plackett-Luce exactly.

    Raises:
        ValueError: fewer candidates than places.
    """
    check_room(logits_BC, slate_size)
    batch, candidates = logits_BC.shape
    shape = (batch, num_lists, candidates)
    uniform_BGC = torch.rand(shape, generator=generator, device=logits_BC.device)
    gumbel_BGC = -torch.log(-torch.log(uniform_BGC.clamp(min=1e-20)))
    return (logits_BC.unsqueeze(1) + gumbel_BGC).topk(slate_size, dim=2).indices


def log_prob(logits_BC: Tensor, positions_BGK: Tensor) -> Tensor:
    """Log-probability (B, G, K) of each place given the places before it.

    A logit of minus infinity takes a candidate out.
    """
    lists_BGC = logits_BC.unsqueeze(1).expand(-1, positions_BGK.shape[1], -1)
    chosen_BGK = lists_BGC.gather(2, positions_BGK)
    left_BGC = lists_BGC.clone()
    places = []
    for place in range(positions_BGK.shape[2]):
        places.append(left_BGC.logsumexp(dim=2))
        left_BGC = left_BGC.scatter(2, positions_BGK[:, :, place : place + 1], -torch.inf)
    return chosen_BGK - torch.stack(places, dim=2)


def positions_of(items_BK: Tensor, candidates_BC: Tensor) -> Tensor:
    """Positions (B, K) of items in the candidate set.

    Raises:
        ValueError: an item that is no candidate.
    """
    same_BKC = items_BK.unsqueeze(2) == candidates_BC.unsqueeze(1)
    if not bool(same_BKC.any(dim=2).all()):
        raise ValueError("some items are not among the request's candidates, so they have no probability")
    return same_BKC.to(torch.int64).argmax(dim=2)


def check_room(scores_BC: Tensor, slate_size: int) -> None:
    """Raises a ValueError if there are fewer candidates than places."""
    if scores_BC.shape[1] < slate_size:
        raise ValueError(f"need num_candidates >= slate_size, got {scores_BC.shape[1]} and {slate_size}")
