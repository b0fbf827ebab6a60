"""Who reaches which place of a slate: expectations over a leave model, the same for the world and for recommenders.

A leave model is asked about users who gave some feedback. These functions ask it about feedback that is only expected.

Shape legend: B slates, K places, O outcomes, F signals, X context.
"""

import torch
from torch import Tensor

from recsim_env.types import LeaveModel


def expected_stay(leave: LeaveModel, context_BX: Tensor, signals_BKOF: Tensor) -> Tensor:
    """Chance (B, K, O) of going on after a place, given each outcome.

    An outcome holds expected signals, a user has 0 or 1 of each, and the chance need not be linear between. So it
    is asked for the likeliest 0s and 1s of the outcome, and for each signal's other value in turn: exact unless
    two signals that the outcome leaves open act on leaving together, or the watch times within one outcome do
    differently, which ``checkers.check_expected`` tells.
    """
    corner_BKOF = signals_BKOF.round()
    corner_BKOF[..., 0] = signals_BKOF[..., 0]
    at_corner_BKO = leave.stay(context_BX, corner_BKOF)
    stay_BKO = at_corner_BKO
    for signal in range(1, signals_BKOF.shape[-1]):
        likeliest_BKO = corner_BKOF[..., signal].clone()
        other_share_BKO = (signals_BKOF[..., signal] - likeliest_BKO).abs()
        corner_BKOF[..., signal] = 1.0 - likeliest_BKO
        stay_BKO = stay_BKO + other_share_BKO * (leave.stay(context_BX, corner_BKOF) - at_corner_BKO)
        corner_BKOF[..., signal] = likeliest_BKO
    return stay_BKO


def reached(stay_BK: Tensor) -> Tensor:
    """Chance (B, K) that each place is reached, from the chance of going on after each: the first always is."""
    return torch.cat([torch.ones_like(stay_BK[:, :1]), stay_BK[:, :-1].cumprod(dim=1)], dim=1)
