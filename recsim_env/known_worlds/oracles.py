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

    Coordinate ascent from the pointwise oracle, and from a slate built place by place: at each place in
    turn every candidate is tried (one that stands elsewhere in the slate swaps places), until a sweep
    changes nothing. It looks no further than the current request, so it is a reference for a session and
    not a bound on it.

    Args:
        simulator: plays the world.
        state: sessions; their current requests are answered.
        max_sweeps: sweeps over the places at most.

    Returns:
        int64 item codes (B, K).
    """
    starts = (pointwise_oracle(simulator, state), _built_by_place(simulator, state))
    found_B2K = torch.stack([_ascend(simulator, state, start, max_sweeps) for start in starts], dim=1)
    best_B = simulator.expected(state, found_B2K).watch_time_BG.argmax(dim=1)
    return found_B2K[torch.arange(len(best_B), device=best_B.device), best_B]


def _built_by_place(simulator: Simulator, state: SessionState) -> Tensor:
    """Slates to which each place adds the candidate that is worth most after those before it."""
    items_BC = state.request.candidates_BC
    slate_BK = items_BC[:, :0]
    for _ in range(simulator.slate_size):
        before_BCK = slate_BK.unsqueeze(1).expand(-1, items_BC.shape[1], -1)
        lists_BCK = torch.cat([before_BCK, items_BC.unsqueeze(-1)], dim=-1)
        watch_BC = simulator.expected(state, lists_BCK).watch_time_BG
        used_BC = (before_BCK == items_BC.unsqueeze(-1)).any(dim=-1)
        best_B1 = watch_BC.masked_fill(used_BC, -torch.inf).argmax(dim=1, keepdim=True)
        slate_BK = torch.cat([slate_BK, items_BC.gather(1, best_B1)], dim=1)
    return slate_BK


def _ascend(simulator: Simulator, state: SessionState, slate_BK: Tensor, max_sweeps: int) -> Tensor:
    """Coordinate ascent on the true expected watch time."""
    rows_B = torch.arange(len(slate_BK), device=slate_BK.device)
    for _ in range(max_sweeps):
        before_BK = slate_BK
        for place in range(slate_BK.shape[1]):
            lists_BCK = _alternatives(slate_BK, place, state.request.candidates_BC)
            watch_BC = simulator.expected(state, lists_BCK).watch_time_BG
            slate_BK = lists_BCK[rows_B, watch_BC.argmax(dim=1)]
        if torch.equal(slate_BK, before_BK):
            break
    return slate_BK


def _alternatives(slate_BK: Tensor, place: int, items_BC: Tensor) -> Tensor:
    """The slate with each candidate put at a place; the video it replaces fills the gap it leaves."""
    shape = (*items_BC.shape, slate_BK.shape[1])
    lists_BCK = slate_BK.unsqueeze(1).expand(shape)
    replaced_B11 = slate_BK[:, place].view(-1, 1, 1)
    lists_BCK = torch.where(lists_BCK == items_BC.unsqueeze(-1), replaced_B11, lists_BCK).clone()
    lists_BCK[:, :, place] = items_BC
    return lists_BCK
