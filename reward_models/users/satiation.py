"""What a session has shown of late: more of the same is liked less, or a session tires as it goes on.

A log with sessions teaches this and no other does, so users of other logs have none of it. It is the one way in which
a user is changed by what is *shown*, whatever the feedback; it fades, and a new session begins without.

Legend: B sessions or users, K places, T rows of a user, E event width, G rates of fading, W = G (E + 1) floats of
state.
"""

import torch
from torch import Tensor, nn

from recsim_env.numerics import linear

DECAYS = (0.8, 0.97)
"""Share of what was shown that is left after one more video, one for each sum."""


class Satiation(nn.Module):
    """Fading sums of the videos shown in a session, and what they do to the next one.

    Args:
        event_width: E.
        width: H of the first layer, to which the effect is added.
    """

    decay_G: Tensor

    def __init__(self, event_width: int, width: int) -> None:
        super().__init__()
        self.event_width = event_width
        self.effect = nn.Linear(len(DECAYS) * (event_width + 1), width, bias=False)
        self.register_buffer("decay_G", torch.tensor(DECAYS))

    @property
    def state_width(self) -> int:
        """W."""
        return len(DECAYS) * (self.event_width + 1)

    def update(self, state_BW: Tensor, event_BKE: Tensor, seen_BK: Tensor) -> Tensor:
        """State after K places, of which some were seen, in order."""
        seen_BK = seen_BK.to(state_BW.dtype)
        # A place is faded by every seen place after it.
        later_BK = seen_BK.sum(1, keepdim=True) - seen_BK.cumsum(1)
        weight_BKG = self._powers(later_BK) * seen_BK.unsqueeze(-1)
        added_BGX = (weight_BKG.unsqueeze(-1) * self._shown(event_BKE).unsqueeze(2)).sum(1)
        kept_BG1 = self._powers(seen_BK.sum(1)).unsqueeze(-1)
        return (kept_BG1 * state_BW.view(len(state_BW), len(DECAYS), -1) + added_BGX).flatten(1)

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
        weight_BTTG = self._powers(between_BTT.clamp(min=0).to(event_BTE.dtype)) * counts_BTT.unsqueeze(-1)
        return torch.einsum("btvg,bvx->btgx", weight_BTTG, self._shown(event_BTE)).flatten(2)

    def hidden(self, state: Tensor, event: Tensor) -> Tensor:
        """What (..., H) the state (..., W) adds to the first layer of videos with these event vectors (..., E)."""
        shown = self._shown(event)
        return linear(state * torch.cat([shown] * len(DECAYS), -1), self.effect.weight)

    def _powers(self, exponent: Tensor) -> Tensor:
        return torch.exp(exponent.unsqueeze(-1) * self.decay_G.log())

    def _shown(self, event: Tensor) -> Tensor:
        """Event vectors and a 1, which counts the videos; scaled so that a session's sums stay about 1."""
        return torch.cat([event, torch.ones_like(event[..., :1])], -1) * 0.1
