"""What a session has shown of late: more of the same is liked less, some kinds after others more.

A log with sessions teaches this and no other does, so users of other logs have none of it. It is the one way in which
a user is changed by what is *shown*, whatever the feedback; it fades, and a new session begins without.

What counts is how far the session's videos were of one kind more than usual, and the next video is: after slates of
the usual mixture nobody has had more of anything than usual. That sessions tire as they go on, whatever they show, is
not learned. A ranker that runs out of what suits a user looks just like that (see ``ResponseCore.answer``), and with
rows of uniform exposure in one request of ten, held-out ones were told no better for it.

Legend: B sessions or users, K places, T rows of a user, Y kinds, G rates of fading, W = G (Y + 1) floats of state,
H width.
"""

import torch
from torch import Tensor, nn

from recsim_env.numerics import linear
from reward_models import session_sums


class Satiation(nn.Module):
    """Fading sums of the kinds of videos shown in a session, and what they do to the next one.

    Args:
        num_kinds: Y.
        width: H of the first layer, to which the effect is added.
    """

    usual_Y: Tensor
    """Share of the log's videos that are of each kind."""

    def __init__(self, num_kinds: int, width: int) -> None:
        super().__init__()
        num_rates = len(session_sums.DECAYS)
        self.register_buffer("usual_Y", torch.zeros(num_kinds))
        self.pair_GYY = nn.Parameter(torch.eye(num_kinds).repeat(num_rates, 1, 1))
        self.effect = nn.Linear(num_rates, width, bias=False)

    @property
    def num_kinds(self) -> int:
        """Y."""
        return len(self.usual_Y)

    @property
    def state_width(self) -> int:
        """W."""
        return session_sums.width(self.num_kinds)

    def update(self, state_BW: Tensor, kind_BKY: Tensor, seen_BK: Tensor) -> Tensor:
        """State after K places, of which some were seen, in order."""
        return session_sums.add(state_BW, kind_BKY, seen_BK)

    def scan(self, kind_BTY: Tensor, happened_BT: Tensor, begin_BT: Tensor, session_BT: Tensor) -> Tensor:
        """State (B, T, W) before each of a user's rows, all at once.

        Args:
            kind_BTY: kinds of the rows' videos, 0 or 1.
            happened_BT: bool: the others, padding among them, change nothing.
            begin_BT: int64: the row comes after those before this one, the first of its request.
            session_BT: int64: the first row of the row's session.
        """
        index_T = torch.arange(kind_BTY.shape[1], device=kind_BTY.device)
        happened_BV = torch.nn.functional.pad(happened_BT.cumsum(1), (1, 0))
        # A row fades by all that happened between it and the request.
        between_BTT = happened_BV.gather(1, begin_BT).unsqueeze(2) - happened_BV[:, 1:].unsqueeze(1)
        counts_BTT = (index_T < begin_BT.unsqueeze(2)) & (index_T >= session_BT.unsqueeze(2)) & happened_BT.unsqueeze(1)
        fade_BTTG = session_sums.powers(between_BTT.clamp(min=0).to(kind_BTY.dtype))
        weight_BTTG = fade_BTTG * counts_BTT.unsqueeze(-1)
        return torch.einsum("btvg,bvx->btgx", weight_BTTG, session_sums.shown(kind_BTY)).flatten(2)

    def hidden(self, state: Tensor, kind: Tensor) -> Tensor:
        """What (..., H) the state (..., W) adds to the first layer of videos of these kinds (..., Y)."""
        beyond = session_sums.beyond(state, self.usual_Y)
        own = kind - self.usual_Y
        strength = [
            (linear(beyond_of, pair_YY.T) * own).sum(-1)
            for beyond_of, pair_YY in zip(beyond.unbind(-2), self.pair_GYY, strict=True)
        ]
        return linear(torch.stack(strength, -1), self.effect.weight)
