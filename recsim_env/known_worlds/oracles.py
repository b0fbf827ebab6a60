"""Rankers that may ask the truth: references for policies that may not.

Shape legend: B sessions, C candidates, K places, G lists.
"""

import torch
from torch import Tensor

from recsim_env.simulator import SessionState, Simulator


def pointwise_oracle(simulator: Simulator, state: SessionState) -> Tensor:
    """The candidates of greatest true expected watch time when shown alone, best first.

    Args:
        simulator: plays the world.
        state: sessions; their current requests are answered.

    Returns:
        int64 item codes (B, K).
    """
    items_BC = state.request.candidates_BC
    alone_BC = simulator.expected(state, items_BC.unsqueeze(-1)).watch_time_BG
    best_BK = alone_BC.topk(simulator.slate_size, dim=1).indices
    return items_BC.gather(1, best_BK)


def greedy_oracle(simulator: Simulator, state: SessionState, max_sweeps: int = 3) -> Tensor:
    """The best slate found for the current request, by search on the true expected watch time.

    Ascent from two slates, the pointwise oracle and one built place by place: at each place every
    candidate is tried (one that stands elsewhere in the slate swaps places), then every video of the slate
    is tried at every other place, until a sweep changes nothing. It looks no further than the current
    request, so it is a reference for a session and not a bound on it.

    Args:
        simulator: plays the world.
        state: sessions; their current requests are answered.
        max_sweeps: sweeps over the places at most.

    Returns:
        int64 item codes (B, K).
    """
    starts = (pointwise_oracle(simulator, state), _built_by_place(simulator, state))
    found = [_ascend(simulator, state, start_BK, max_sweeps) for start_BK in starts]
    return _best(simulator, state, torch.stack(found, dim=1))


def _built_by_place(simulator: Simulator, state: SessionState) -> Tensor:
    """Slates to which each place adds the candidate that is worth most after those before it."""
    items_BC = state.request.candidates_BC
    slate_BK = items_BC[:, :0]
    for _ in range(simulator.slate_size):
        before_BCK = slate_BK.unsqueeze(1).expand(-1, items_BC.shape[1], -1)
        added_BC1 = items_BC.unsqueeze(-1)
        repeats_BC = (before_BCK == added_BC1).any(dim=-1)
        slate_BK = _best(simulator, state, torch.cat([before_BCK, added_BC1], dim=-1), repeats_BC)
    return slate_BK


def _ascend(simulator: Simulator, state: SessionState, slate_BK: Tensor, max_sweeps: int) -> Tensor:
    """Sweeps of single changes, each the best there is, until none helps."""
    places = slate_BK.shape[1]
    moves_GK = torch.tensor(_moves(places), device=slate_BK.device)
    for _ in range(max_sweeps):
        before_BK = slate_BK
        for place in range(places):
            lists_BCK = _alternatives(slate_BK, place, state.request.candidates_BC)
            slate_BK = _best(simulator, state, lists_BCK)
        slate_BK = _best(simulator, state, slate_BK[:, moves_GK])
        if torch.equal(slate_BK, before_BK):
            break
    return slate_BK


def _best(simulator: Simulator, state: SessionState, lists_BGK: Tensor, barred_BG: Tensor | None = None) -> Tensor:
    """The list (B, K) of greatest true expected watch time."""
    watch_BG = simulator.expected(state, lists_BGK).watch_time_BG
    if barred_BG is not None:
        watch_BG = watch_BG.masked_fill(barred_BG, -torch.inf)
    rows_B = torch.arange(len(watch_BG), device=watch_BG.device)
    return lists_BGK[rows_B, watch_BG.argmax(dim=1)]


def _moves(places: int) -> list[list[int]]:
    """Orders of a slate after one of its videos has moved to another place; the old order first."""
    orders = [list(range(places))]
    for source in range(places):
        for target in range(places):
            order = [place for place in range(places) if place != source]
            order.insert(target, source)
            orders.append(order)
    return orders


def _alternatives(slate_BK: Tensor, place: int, items_BC: Tensor) -> Tensor:
    """The slate with each candidate put at a place; the video it replaces fills the gap it leaves."""
    shape = (*items_BC.shape, slate_BK.shape[1])
    lists_BCK = slate_BK.unsqueeze(1).expand(shape)
    replaced_B11 = slate_BK[:, place].view(-1, 1, 1)
    lists_BCK = torch.where(lists_BCK == items_BC.unsqueeze(-1), replaced_B11, lists_BCK).clone()
    lists_BCK[:, :, place] = items_BC
    return lists_BCK
