"""The algebra of lists: positions of items, items at positions, the best K, first showings, Plackett-Luce.

A slate is told in two ways: as item codes, or as *positions* in the request's candidate set. Whoever turns one into
the other does it here.

Shape legend: B requests, C candidates, G lists, K places; ``...`` any further axes.
"""

import torch
from torch import Tensor

from recsim_env.types import Request


def items_at(candidates_BC: Tensor, positions: Tensor) -> Tensor:
    """Item codes (B, ...) at positions (B, ...) of the candidate set."""
    return candidates_BC.gather(1, positions.flatten(1)).view(positions.shape)


def positions_of(items: Tensor, candidates_BC: Tensor) -> Tensor:
    """Positions (B, ...) int64 of item codes (B, ...) in the candidate set; the first where a code stands twice.

    Raises:
        ValueError: an item that is no candidate of its request.
    """
    positions, found = find(items, candidates_BC)
    if not bool(found.all()):
        row, place = (~found.flatten(1)).nonzero()[0].tolist()
        raise ValueError(
            f"item {int(items.flatten(1)[row, place])} is not among the {candidates_BC.shape[1]} candidates of request "
            f"{row}; positions and probabilities exist for lists made of the request's candidates only"
        )
    return positions


def find(items: Tensor, candidates_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, ...) of items (B, ...) in the candidate set, and which of them are there (0 where they are not)."""
    match_BXC = _match(items, candidates_BC)
    positions = match_BXC.to(torch.uint8).argmax(dim=2).view(items.shape)
    return positions, match_BXC.any(dim=2).view(items.shape)


def are_candidates(items: Tensor, candidates_BC: Tensor) -> Tensor:
    """Bool (B, ...): which items (B, ...) are candidates of their request."""
    return _match(items, candidates_BC).any(dim=2).view(items.shape)


def first_showing(items_BK: Tensor) -> Tensor:
    """Bool (B, K): false where the same video stands at an earlier place of the slate."""
    same_BKK = items_BK.unsqueeze(2) == items_BK.unsqueeze(1)
    return ~same_BKK.tril(-1).any(dim=2)


def first_in_session(request: Request, items_BGK: Tensor) -> Tensor:
    """Bool (B, G, K): false where the video was shown before, in this session or at an earlier place of the list.

    A video earns once in a session (see ``Simulator.step``). Logged requests know nothing of their session: only their
    own list counts.
    """
    first_BGK = first_showing(items_BGK.flatten(0, 1)).view_as(items_BGK)
    if request.side is None:
        return first_BGK
    return first_BGK & ~request.side.showed(items_BGK.flatten(1)).view_as(items_BGK)


def best_positions(score_BC: Tensor, slate_size: int) -> Tensor:
    """Positions (B, K) of the highest scores, best first; ties keep the candidates' order.

    Raises:
        ValueError: fewer candidates than places.
    """
    check_room(score_BC, slate_size)
    return score_BC.argsort(dim=1, descending=True, stable=True)[:, :slate_size]


def best_first(request: Request, score_BC: Tensor, slate_size: int) -> Tensor:
    """Items (B, K) of the candidates with the highest scores; ties keep the retriever's order."""
    return items_at(request.candidates_BC, best_positions(score_BC, slate_size))


def sample_lists(logits_BC: Tensor, num_lists: int, slate_size: int, generator: torch.Generator) -> Tensor:
    """Draws Plackett-Luce lists: places filled in turn, each by a softmax over the candidates that are left.

    Adding Gumbel noise to the logits and sorting draws from this distribution exactly, all places at once.

    Returns:
        int64 positions (B, G, K).

    Raises:
        ValueError: fewer candidates than places.
    """
    check_room(logits_BC, slate_size)
    shape = (len(logits_BC), num_lists, logits_BC.shape[1])
    uniform_BGC = torch.rand(shape, generator=generator, device=generator.device).to(logits_BC.device)
    gumbel_BGC = -torch.log(-torch.log(uniform_BGC.clamp(min=torch.finfo(torch.float32).tiny)))
    return (logits_BC.unsqueeze(1) + gumbel_BGC).topk(slate_size, dim=2).indices


def list_log_prob(logits_BC: Tensor, positions_BGK: Tensor) -> Tensor:
    """Log-probability (B, G, K) of each place of Plackett-Luce lists, given the places before it.

    A logit of minus infinity takes a candidate out.
    """
    logits_BGC = logits_BC.unsqueeze(1).expand(-1, positions_BGK.shape[1], -1)
    chosen_BGK = logits_BGC.gather(2, positions_BGK)
    # What competes for place k: all that is never chosen, and the chosen from place k on.
    never_BG1 = logits_BGC.scatter(2, positions_BGK, -torch.inf).logsumexp(dim=2, keepdim=True)
    from_here_BGK = chosen_BGK.flip(2).logcumsumexp(dim=2).flip(2)
    return chosen_BGK - torch.logaddexp(never_BG1, from_here_BGK)


def list_at(lists_BGK: Tensor, index_B: Tensor) -> Tensor:
    """The list (B, K) at an index (B,) int64 of each group."""
    return lists_BGK[torch.arange(len(index_B), device=index_B.device), index_B]


def check_room(scores_BC: Tensor, slate_size: int) -> None:
    """Raises a ValueError if there are fewer candidates than places."""
    if scores_BC.shape[1] < slate_size:
        raise ValueError(f"need num_candidates >= slate_size, got {scores_BC.shape[1]} and {slate_size}")


def _match(items: Tensor, candidates_BC: Tensor) -> Tensor:
    return items.flatten(1).unsqueeze(2) == candidates_BC.unsqueeze(1)
