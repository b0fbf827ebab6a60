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

    Coordinate ascent from the pointwise oracle: at each place in turn every candidate is tried (one that
    stands elsewhere in the slate swaps places), until a sweep changes nothing. It looks no further than
    the current request, so it is a reference for a session and not a bound on it.

    Args:
        simulator: plays the world.
        state: sessions; their current requests are answered.
        max_sweeps: sweeps over the places at most.

    Returns:
        int64 item codes (B, K).
    """
    slate_BK = pointwise_oracle(simulator, state)
    rows_B = torch.arange(len(slate_BK), device=slate_BK.device)
    for _ in range(max_sweeps):
        before_BK = slate_BK
        for place in range(simulator.slate_size):
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
