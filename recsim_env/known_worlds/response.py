"""Hand-written users of short videos, whose every probability is known.

A user has a taste, a general interest, a readiness to like and a hidden trait; a video has a vector, a
quality, a tag, a duration and a hidden trait. Their match gives the interest (a logit), from which follow
the watch time (``watch_time.py``), click and long view as thresholds of it, then the rarer signals.
Within a slate the tags of earlier places change the interest in later ones; from slate to slate feedback
moves taste, mood and satiation. Each of these mechanisms has a dial.

Shape legend: B sessions, K places, F signals, N items, U users, S state, L taste, T tags, O outcomes,
C kinds of play.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from recsim_env.known_worlds.parameters import CLICK_AT, TASTE_SIZE, Dials, ShortVideoParameters
from recsim_env.known_worlds.watch_time import KIND_OF_OUTCOME, KINDS, Play, draw, quadrature, swipe_law
from recsim_env.numerics import sigmoid
from recsim_env.types import CONTEXT, WATCH_TIME, Outcomes

ITEM_FIELDS = (
    "interest",
    "trait",
    "like",
    "location",
    "scale",
    "duration",
    "long_view_at",
    "replay_share",
    "replay_scale",
)
"""Columns of ``item_ND`` after the video's vector."""

USER_FIELDS = ("bias", "trait", "like", "mood")
"""Columns of the state after taste, drift of taste, and satiation."""

_HOUR = CONTEXT.index("hour")
SIGNALS = (WATCH_TIME, "click", "long_view", "like", "follow", "comment", "forward", "hate")
"""What users of this world answer; its rare signals are the last four."""
_CLICK, _LONG_VIEW, _LIKE = (SIGNALS.index(name) for name in ("click", "long_view", "like"))


class ShortVideoResponse:
    """The response model of the short-video world.

    Args:
        item_ND: float32 (N, L + 9): vector, then ``ITEM_FIELDS``.
        tag_N: int64 main tag of each item.
        pair_TT: float32: interest that a place of the column's tag gains from an earlier place of the
            row's tag, at dial 1.
        user_UD: float32 (U, L + 3): taste, bias, hidden trait, readiness to like.
        dials: how strong each mechanism is.
        parameters: the constants.
    """

    signals: tuple[str, ...] = SIGNALS
    num_draws = 1 + len(SIGNALS) - 3
    """One for the watch time, one for each signal that is not a threshold of it."""

    def __init__(
        self,
        item_ND: Tensor,
        tag_N: Tensor,
        pair_TT: Tensor,
        user_UD: Tensor,
        dials: Dials | None = None,
        parameters: ShortVideoParameters | None = None,
    ):
        self.item_ND, self.tag_N, self.pair_TT, self.user_UD = item_ND, tag_N, pair_TT, user_UD
        self.dials = dials or Dials()
        self.parameters = p = parameters or ShortVideoParameters()
        device = item_ND.device
        self._swipe = swipe_law(p.skip_median, p.skip_scale)
        angle_H = (torch.arange(24.0, device=device) - 22.0) * (torch.pi / 12)
        self._hour_H = p.hour_swing * torch.cos(angle_H)
        self._effect_TT = self.dials.list_effect * pair_TT
        # Flags of each kind of play: click, long view, end.
        kinds = range(len(KINDS))
        self._flags_C3 = torch.tensor([[k >= 2, k >= 3, k >= 4] for k in kinds], device=device).float()
        self._others_4X = torch.tensor(p.others, device=device)
        self._interest_in_5 = self.dials.auxiliary * torch.tensor(p.interest_in_signals, device=device)

    def start(self, user_B: Tensor) -> Tensor:
        """State of fresh users (B, S): taste, no drift, no satiation, bias, traits, level mood."""
        user_BD = self.user_UD[user_B]
        zeros_BL = user_BD.new_zeros(len(user_B), 2 * TASTE_SIZE)
        mood_B1 = zeros_BL[:, :1]
        return torch.cat([user_BD[:, :TASTE_SIZE], zeros_BL, user_BD[:, TASTE_SIZE:], mood_B1], dim=1)

    def interest(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> Tensor:
        """Logit (B, K) of not swiping each video away were it shown alone."""
        return self._interest(state_BS, context_BX, self.item_ND[items_BK])

    def respond(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, uniform_BKJ: Tensor) -> Tensor:
        """Draws signals (B, K, F); see ``recsim_env.types.ResponseModel``."""
        interest_BK, item_BKD = self._in_slate(state_BS, context_BX, items_BK)
        play = self._play(interest_BK, item_BKD)
        watch_BK, ended_BK = draw(play, self._swipe, uniform_BKJ[..., 0])
        flags_BK3 = torch.stack([watch_BK >= CLICK_AT, watch_BK >= play.long_view_at, ended_BK], dim=-1).float()
        like_BK = self._like(state_BS, interest_BK, item_BKD, flags_BK3)
        liked_BK = (uniform_BKJ[..., 1] < like_BK).float()
        others_BK4 = self._others(interest_BK, liked_BK, flags_BK3)
        rare_BK4 = (uniform_BKJ[..., 2:] < others_BK4).float()
        first_BK4 = torch.stack([watch_BK, flags_BK3[..., 0], flags_BK3[..., 1], liked_BK], dim=-1)
        return torch.cat([first_BK4, rare_BK4], dim=-1)

    def outcomes(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> Outcomes:
        """The law of ``respond`` as outcomes of constant click and long view; the rest in expectation."""
        interest_BK, item_BKD = self._in_slate(state_BS, context_BX, items_BK)
        seconds_BKO, probability_BKO = quadrature(self._play(interest_BK, item_BKD), self._swipe)
        flags_BKC3 = self._flags_C3.expand(*interest_BK.shape, *self._flags_C3.shape)
        like_BKC = self._like(state_BS.unsqueeze(1), interest_BK.unsqueeze(-1), item_BKD.unsqueeze(2), flags_BKC3)
        like_BKC1 = like_BKC.unsqueeze(-1)
        liked, not_liked = (
            self._others(interest_BK.unsqueeze(-1), torch.full_like(like_BKC, value), flags_BKC3)
            for value in (1.0, 0.0)
        )
        others_BKC4 = not_liked + like_BKC1 * (liked - not_liked)
        binary_BKC7 = torch.cat([flags_BKC3[..., :2], like_BKC1, others_BKC4], dim=-1)
        kind_O = torch.tensor(KIND_OF_OUTCOME, device=items_BK.device)
        signals_BKOF = torch.cat([seconds_BKO.unsqueeze(-1), binary_BKC7[:, :, kind_O]], dim=-1)
        return Outcomes(signals_BKOF, probability_BKO)

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        """State after a slate: taste drifts to long views, satiation grows, clicks lift the mood."""
        if not self.dials.drift:
            return state_BS
        p, size = self.parameters, TASTE_SIZE
        seen_BK = seen_BK.to(state_BS.dtype)
        vector_BKL = self.item_ND[items_BK][..., :size]
        pleased_BK = seen_BK * (signals_BKF[..., _LONG_VIEW] - 0.35)
        drift_BL = p.drift_memory * state_BS[:, size : 2 * size] + p.drift_rate * (
            pleased_BK.unsqueeze(-1) * vector_BKL
        ).sum(dim=1)
        satiation_BL = p.satiation_memory * state_BS[:, 2 * size : 3 * size] + (seen_BK.unsqueeze(-1) * vector_BKL).sum(
            dim=1
        )
        lift_B1 = (seen_BK * (signals_BKF[..., _CLICK] - 0.5)).sum(dim=1, keepdim=True)
        mood_B1 = p.mood_memory * state_BS[:, -1:] + p.mood * lift_B1
        fixed_BX = state_BS[:, 3 * size : -1]
        return torch.cat([state_BS[:, :size], drift_BL, satiation_BL, fixed_BX, mood_B1], dim=1)

    def config(self) -> dict[str, Any]:
        """Dials and constants."""
        return {"dials": dataclasses.asdict(self.dials), "parameters": dataclasses.asdict(self.parameters)}

    def tensors(self) -> dict[str, Tensor]:
        """The latent tables: the truth."""
        return {name: getattr(self, name) for name in ("item_ND", "tag_N", "pair_TT", "user_UD")}

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "ShortVideoResponse":
        """Rebuilds the model."""
        dials = Dials(**config["dials"])
        return cls(**tensors, dials=dials, parameters=ShortVideoParameters.from_json(config["parameters"]))

    def _interest(self, state_BS: Tensor, context_BX: Tensor, item_BKD: Tensor) -> Tensor:
        p, size, dials = self.parameters, TASTE_SIZE, self.dials
        vector_BKL = item_BKD[..., :size]
        taste_B1L = (state_BS[:, :size] + dials.drift * state_BS[:, size : 2 * size]).unsqueeze(1)
        user_B4 = state_BS[:, 3 * size :]
        level_B = user_B4[:, 0] + dials.drift * user_B4[:, 3] + self._hour_H[context_BX[:, _HOUR].long()]
        interest_BK = (taste_B1L * vector_BKL).sum(-1) + level_B.unsqueeze(1) + item_BKD[..., size]
        if dials.hidden_trait:
            interest_BK = interest_BK + dials.hidden_trait * user_B4[:, 1:2] * item_BKD[..., size + 1]
        if dials.drift:
            likeness_BK = (state_BS[:, 2 * size : 3 * size].unsqueeze(1) * vector_BKL).sum(-1)
            interest_BK = interest_BK - dials.drift * p.satiation * torch.relu(likeness_BK)
        return interest_BK

    def _in_slate(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Interest (B, K) at each place of a slate, and the items' rows."""
        item_BKD = self.item_ND[items_BK]
        interest_BK = self._interest(state_BS, context_BX, item_BKD)
        places = items_BK.shape[1]
        if self.dials.list_effect and places > 1:
            tag_BK = self.tag_N[items_BK]
            effect_BKK = self._effect_TT[tag_BK.unsqueeze(2), tag_BK.unsqueeze(1)]
            place_K = torch.arange(places, device=items_BK.device)
            gap_KK = (place_K.unsqueeze(0) - place_K.unsqueeze(1) - 1).float()
            memory_KK = torch.where(gap_KK >= 0, self.parameters.list_memory**gap_KK, 0.0)
            interest_BK = interest_BK + (effect_BKK * memory_KK).sum(dim=1)
        return interest_BK, item_BKD

    def _play(self, interest_BK: Tensor, item_BKD: Tensor) -> Play:
        p = self.parameters
        location, scale, *rest = item_BKD[..., TASTE_SIZE + 3 :].unbind(-1)
        beyond_BK = interest_BK - p.usual_interest
        watch_BK = sigmoid(p.usual_interest + p.interest_in_swipe * beyond_BK).clamp(1e-4, 1 - 1e-4)
        return Play(watch_BK, location + p.interest_in_time * beyond_BK, scale, *rest)

    def _like(self, state_BS: Tensor, interest: Tensor, item_D: Tensor, flags_3: Tensor) -> Tensor:
        """Chance of a like given the kind of play; leading axes as in ``interest``."""
        p = self.parameters
        intercept, *weights = p.like
        user = state_BS[..., 3 * TASTE_SIZE + 2].unsqueeze(1)
        logit = intercept + user + item_D[..., TASTE_SIZE + 2]
        logit = logit + self._interest_in_5[0] * (interest - p.usual_interest)
        for column, weight in enumerate(weights):
            logit = logit + weight * flags_3[..., column]
        return sigmoid(logit)

    def _others(self, interest: Tensor, liked: Tensor, flags_3: Tensor) -> Tensor:
        """Chance of follow, comment, forward and hate given the kind of play and a like; (..., 4)."""
        intercept_4, like_4, click_4, long_view_4 = self._others_4X.unbind(-1)
        beyond = (interest - self.parameters.usual_interest).unsqueeze(-1) * self._interest_in_5[1:]
        kind = click_4 * flags_3[..., :1] + long_view_4 * flags_3[..., 1:2]
        return sigmoid(intercept_4 + like_4 * liked.unsqueeze(-1) + kind + beyond)
