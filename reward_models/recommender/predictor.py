"""The recommender's own feedback predictor (pXTR): an ensemble of factorised models of all signals.

A member turns the user (decayed history, features, context) into one vector for each signal, and every item
into one vector shared by all signals; a prediction is their inner product through the signal's link. The
item part is a table, so scoring C candidates costs one small matrix product for each request. The first
item coordinate is 1, which makes the first user coordinate the user's own level, and the constant part of
the other user coordinates plays the item's.

Watch time has a log link and a Poisson quasi-likelihood: its score equations make predicted and watched
seconds agree in sum over every group the model can tell apart, whatever the distribution's tail, so the
mean needs no correction. ``predictor_fit`` says how it is fitted.

The log's ranker chose what the rows are of, in a simulation somebody else does. So three things beside the user's
past and the video are read, each by a few weights of a signal. (1) The ``lift`` of a video: how likely that ranker was
to show it to this user, who keeps the vector that the end of the log gave, whoever chooses since. (2) Whether it did
choose: what it knew beyond its usual choices is the more the less likely it was to choose so, and the less the longer
a session goes on, since it shows its best first. (3) What the session has shown: more of the same than usual is liked
less. (1) and (2) keep (3) honest, for what a ranker shows over and over is what a user likes, and one that runs out of
it looks like a user who tires. Rows of uniform exposure weigh more and set the level of all slates but that ranker's
own. That sessions tire whatever they show is not learned, as by the users (``reward_models.users.satiation``).

Shape legend: B requests, C candidates, K places, F signals, M members, W hidden width, d factor width,
S state, I inputs of the user tower, H history, D features, N items, U users, R training rows, E event vector width,
Z floats of a session's sums, G rates at which they fade, X columns of exposure.
"""

from typing import Any

import torch
from torch import Tensor

from recsim_env.new_users import NewUsers
from recsim_env.numerics import linear, sigmoid
from recsim_env.types import Request
from reward_models import session_sums
from reward_models.exposure import ExposureTowers, lift
from reward_models.recommender.decayed_history import DecayedHistory
from reward_models.recommender.encoding import (
    context_codes,
    exposure_vectors,
    session_of,
    session_width,
    start_states,
    user_inputs,
)

LONGEST_WATCH_S = 600.0
"""Predicted watch times are cut here, s."""


class EnsemblePredictor:
    """A fitted predictor; see ``recsim_env.types.Predictor``.

    A state is the user's code, the decayed sums of the history and the sums of the session. Everything that depends on
    one user or one item alone is a table.
    """

    def __init__(self, settings: dict[str, Any], tensors: dict[str, Tensor]):
        self._settings = settings
        self._tensors = tensors
        self.signals: tuple[str, ...] = tuple(settings["signals"])
        """Names of the F signals, ``watch_time`` first."""
        self.history = DecayedHistory(
            item_vectors_NE=tensors["event_NE"],
            num_signals=len(self.signals),
            expected_NF=tensors["expected_NF"],
            taste_signals=tuple(settings["taste_signals"]),
            decays=tuple(settings["decays"]),
        )
        self._num_items, self._num_members, self._factor_width = tensors["item_factors_NMd"].shape
        self._slate_places: int = settings["slate_places"]
        # What a session has shown meets the item's event vector as the user's vector meets its factors: one product.
        factors_NMd = tensors["item_factors_NMd"]
        if self._slate_places:
            event_NME = tensors["event_NE"].unsqueeze(1).expand(-1, self._num_members, -1)
            factors_NMd = torch.cat([factors_NMd, event_NME], dim=2)
        self._factors_Yd = factors_NMd.transpose(0, 1).flatten(0, 1)
        member_M = torch.arange(self._num_members, device=self._factors_Yd.device)
        self._first_row_M11 = (member_M * self._num_items)[:, None, None]
        self._towers = ExposureTowers.restore(tensors["exposure_Nd"], tensors)
        self._user_hidden_UW = self._user_hidden(tensors["user_features_UD"])
        self._context_hidden_ZW = (tensors["tab_TW"].unsqueeze(1) + tensors["hour_TW"]).flatten(0, 1)

    def start(self, user_B: Tensor) -> Tensor:
        """State (B, S) at the end of the fitted log."""
        state_BS = self._tensors["start_US"][user_B]
        width = session_width(self._tensors["event_NE"], self._slate_places)
        return torch.nn.functional.pad(state_BS, (0, width))

    def with_users(self, users: NewUsers) -> "EnsemblePredictor":
        """The same model for other users, who start from their histories."""
        own = {
            "user_features_UD": users.features_UD,
            "start_US": start_states(self.history, users.histories),
            "exposure_Ud": exposure_vectors(self._towers, users.features_UD, users.histories),
        }
        return EnsemblePredictor(self._settings, {**self._tensors, **own})

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        """State (B, S) after a slate."""
        user_B1, sums_BS, session_BZ = self._parts(state_BS)
        sums_BS = self.history.observe(sums_BS, items_BK, signals_BKF, seen_BK)
        if self._slate_places:
            event_BKE = torch.nn.functional.embedding(items_BK, self._tensors["event_NE"])
            session_BZ = session_sums.add(session_BZ, event_BKE, seen_BK)
        return torch.cat([user_B1, sums_BS, session_BZ], dim=1)

    def predict(self, state_BS: Tensor, context_BX: Tensor, items_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Expected signals (B, C, F), watch time in seconds, and the members' standard deviation."""
        user_B1, sums_BS, session_BZ = self._parts(state_BS)
        user_B = user_B1.squeeze(1).to(torch.int64)
        lift_BC = self._lift(self._tensors["exposure_Ud"][user_B], items_BC)
        vector_MBdF = self._user_vectors(sums_BS, session_BZ, self._user_hidden_UW[user_B], context_BX)
        return self._predict(vector_MBdF, lift_BC, self._shown(session_BZ), None, items_BC)

    def predict_request(
        self, request: Request, items_BC: Tensor, chosen_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same for any request of a log: the history window is encoded anew.

        Args:
            request: only user features, context and history are read, so users may be unknown.
            items_BC: int64 item codes.
            chosen_B: bool: requests that the log's own ranker answered; none by default.
        """
        sums_BS = self.history.encode(request.history_BH, request.history_feedback_BHF, request.history_known_BHF)
        session_BZ = session_of(request, self._tensors["event_NE"], self._slate_places)
        lift_BC = self._lift(self._towers.of_window(request.user_features_BD, request.history_BH), items_BC)
        user_hidden_BW = self._user_hidden(request.user_features_BD)
        vector_MBdF = self._user_vectors(sums_BS, session_BZ, user_hidden_BW, request.context_BX)
        return self._predict(vector_MBdF, lift_BC, self._shown(session_BZ), chosen_B, items_BC)

    def _parts(self, state_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The user's code (B, 1), the sums of the history and those of the session."""
        user_B1, sums_BS, session_BZ = state_BS.tensor_split([1, 1 + self.history.size], dim=1)
        return user_B1, sums_BS, session_BZ

    def _shown(self, session_BZ: Tensor) -> Tensor:
        """How many videos the session has shown, fading (B, G); G is 0 for a log without sessions."""
        return session_sums.counts(session_BZ) if self._slate_places else session_BZ

    def _lift(self, exposure_Bd: Tensor, items_BC: Tensor) -> Tensor:
        item_BCd = torch.nn.functional.embedding(items_BC, self._tensors["exposure_Nd"])
        return lift(exposure_Bd.unsqueeze(1), item_BCd)

    def _user_hidden(self, features_BD: Tensor) -> Tensor:
        weight_WD, bias_W = self._tensors["user_weight_WD"], self._tensors["hidden_bias_W"]
        return linear(features_BD, weight_WD, bias_W)

    def _predict(
        self, vector_MBdF: Tensor, lift_BC: Tensor, shown_BG: Tensor, chosen_B: Tensor | None, items_BC: Tensor
    ) -> tuple[Tensor, Tensor]:
        members, batch, num_signals = self._num_members, len(items_BC), len(self.signals)
        # All members' factors lie in one table, member after member, so one lookup brings them all.
        row_MBC = items_BC + self._first_row_M11
        factor_YCd = torch.nn.functional.embedding(row_MBC, self._factors_Yd).flatten(0, 1)
        logit_MBCF = torch.bmm(factor_YCd, vector_MBdF.flatten(0, 1)).view(members, batch, -1, num_signals)
        columns = exposure_columns(lift_BC, self._settings["ranker_lift"], shown_BG, chosen_B)
        for column_BC, weight_MF in zip(columns, self._tensors["exposure_XMF"], strict=False):
            logit_MBCF += column_BC.unsqueeze(-1) * weight_MF[:, None, None]
        watch_MBC = torch.exp(logit_MBCF[..., 0]).clamp_(max=LONGEST_WATCH_S)
        expected_MBCF = sigmoid(logit_MBCF)
        expected_MBCF[..., 0] = watch_MBC
        mean_BCF = expected_MBCF.sum(dim=0) / members
        square_BCF = (expected_MBCF - mean_BCF).square_().sum(dim=0)
        return mean_BCF, (square_BCF / max(members - 1, 1)).sqrt_()

    def _user_vectors(self, sums_BS: Tensor, session_BZ: Tensor, user_hidden_BW: Tensor, context_BX: Tensor) -> Tensor:
        """Each member's vectors of a user for all signals, (M, B, d, F); with sessions (M, B, d + E, F)."""
        tensors = self._tensors
        inputs_BI = user_inputs(self.history, sums_BS, tensors["prior_rate_F"], self._settings["rate_prior"])
        tab_B, hour_B = context_codes(context_BX)
        hidden_BW = linear(inputs_BI, tensors["history_weight_WI"])
        hidden_BW = (hidden_BW + user_hidden_BW + self._context_hidden_ZW[tab_B * 24 + hour_B]).relu_()
        hidden_BMW = hidden_BW.view(len(sums_BS), self._num_members, -1)
        weights = zip(tensors["vector_weight_MWX"], tensors["vector_bias_M1X"], strict=True)
        members = [linear(hidden_BMW[:, i], w_WX.T, b_1X[0]) for i, (w_WX, b_1X) in enumerate(weights)]
        vector_MBdF = torch.stack(members).view(self._num_members, len(sums_BS), self._factor_width, -1)
        if not self._slate_places:
            return vector_MBdF
        return torch.cat([vector_MBdF, tiredness(session_BZ, tensors["session_MGEF"])], dim=2)

    def config(self) -> dict[str, Any]:
        """Settings as JSON values."""
        return dict(self._settings)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by name."""
        return dict(self._tensors)

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "EnsemblePredictor":
        """Rebuilds a saved predictor."""
        return cls(config, tensors)


def exposure_columns(lift: Tensor, ranker_lift: float, shown_BG: Tensor, chosen_B: Tensor | None) -> list[Tensor]:
    """Columns (B, ...) of what exposure says, ``num_exposure_columns`` of them, or the first two.

    They are the lift and what it is short of that ranker's usual; and for choices of that ranker 1, how unlikely it was
    to choose so, and what the session has shown.

    Args:
        lift: (B, ...).
        ranker_lift: mean lift of that ranker's choices.
        shown_BG: how many videos the session has shown, fading.
        chosen_B: 0 or 1; ``None`` where that ranker chose nothing.
    """
    columns = [lift, torch.relu(ranker_lift - lift)]
    if chosen_B is None:
        return columns
    of_request = (-1, *[1] * (lift.dim() - 1))
    shown = [column_B.view(of_request).expand_as(lift) for column_B in shown_BG.unbind(1)]
    chosen = chosen_B.to(lift.dtype).view(of_request)
    return [*columns, *(chosen * column for column in (torch.ones_like(lift), ranker_lift - lift, *shown))]


def num_exposure_columns(num_rates: int) -> int:
    """Columns of ``exposure_columns`` where the session's videos fade at this many rates."""
    return 4 + num_rates


def tiredness(session_BZ: Tensor, weight_MGEF: Tensor) -> Tensor:
    """What a session's sums make of each coordinate of an event vector: (M, B, E, F)."""
    num_rates, width = weight_MGEF.shape[1:3]
    sums_GBE1 = session_BZ.view(-1, num_rates, width + 1)[..., :width].transpose(0, 1).unsqueeze(-1)
    # Two terms, one after the other: their bytes do not depend on the batch.
    parts = [
        sums_BE1 * weight_MEF.unsqueeze(1)
        for sums_BE1, weight_MEF in zip(sums_GBE1, weight_MGEF.unbind(1), strict=True)
    ]
    return torch.stack(parts).cumsum(0)[-1]
