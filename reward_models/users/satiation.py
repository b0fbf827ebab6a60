"""What a session has shown of late: more of the same is liked less, or a session tires as it goes on.

A log with sessions teaches this and no other does, so users of other logs have none of it. It is the one way in which
a user is changed by what is *shown*, whatever the feedback; it fades, and a new session begins without.

Legend: B sessions or users, K places, T rows of a user, E event width, G rates of fading, W = G (E + 1) floats of
state.
"""

import torch
from torch import Tensor, nn

from recsim_env.numerics import linear
from reward_models import session_sums


class Satiation(nn.Module):
    """Fading sums of the videos shown in a session, and what they do to the next one.

    Args:
        event_width: E.
        width: H of the first layer, to which the effect is added.
    """

    def __init__(self, event_width: int, width: int) -> None:
        super().__init__()
        self.effect = nn.Linear(session_sums.width(event_width), width, bias=False)

    @property
    def state_width(self) -> int:
        """W."""
        return self.effect.in_features

    def update(self, state_BW: Tensor, event_BKE: Tensor, seen_BK: Tensor) -> Tensor:
        """State after K places, of which some were seen, in order."""
        return session_sums.add(state_BW, event_BKE, seen_BK)

    def scan(self, event_BTE: Tensor, valid_BT: Tensor, begin_BT: Tensor, session_BT: Tensor) -> Tensor:
        """State (B, T, W) before each of a user's rows, all at once.

        Args:
            event_BTE: event vectors of the rows.
            valid_BT: bool: not padding.
            begin_BT: int64: the row comes after those before this one, the first of its request.
            session_BT: int64: the first row of the row's session.
        """
        index_T = torch.arange(event_BTE.shape[1], device=event_BTE.device)
        between_BTT = begin_BT.unsqueeze(2) - 1 - index_T
        counts_BTT = (between_BTT >= 0) & (index_T >= session_BT.unsqueeze(2)) & valid_BT.unsqueeze(1)
        fade_BTTG = session_sums.powers(between_BTT.clamp(min=0).to(event_BTE.dtype))
        weight_BTTG = fade_BTTG * counts_BTT.unsqueeze(-1)
        return torch.einsum("btvg,bvx->btgx", weight_BTTG, session_sums.shown(event_BTE)).flatten(2)

    def hidden(self, state: Tensor, event: Tensor) -> Tensor:
        """What (..., H) the state (..., W) adds to the first layer of videos with these event vectors (..., E)."""
        shown = session_sums.shown(event)
        return linear(state * torch.cat([shown] * len(session_sums.DECAYS), -1), self.effect.weight)
