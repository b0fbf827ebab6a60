"""Logged requests as the recommender's towers read them: encoded once for all models of a build.

A user's past enters a tower as decayed sums (``decayed_history``), turned into recent rates and tastes. Predictor and
candidate source read the same inputs, so these are computed once and handed to both fits.

Shape legend: L requests, B requests of a batch, F signals, S floats of the sums, I inputs of a tower, U users,
G decays, Y channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recsim_env.data.histories import Histories
from recsim_env.data.requests import LoggedRequests
from reward_models.recommender.decayed_history import DecayedHistory, principal_components, signal_rates

NUM_TABS = 16
"""Tabs 0..15 have a vector each; higher ones share the last."""

EXACT_WINDOW = 100
"""Impressions that initial states are encoded from."""

_BATCH = 1024  # requests encoded at once


@dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """How the recommender sums up a user's past."""

    event_width: int = 16
    """Principal components of the item features that stand for a video in the history."""
    taste_signals: tuple[str, ...] = ("click", "long_view", "like")
    """Signals whose items make up a user's taste; those the log lacks are left out."""
    decays: tuple[float, ...] = (0.75, 0.95)
    """Factors by which one later impression fades the history."""
    rate_prior: float = 0.2
    """Weight of the overall rate in a user's own recent rates, as a share of a full history."""

    def __post_init__(self) -> None:
        if self.event_width < 1:
            raise ValueError(f"event_width must be at least 1, got {self.event_width}")
        if not self.rate_prior > 0:
            raise ValueError(f"rate_prior must be above 0 (users without a past get it), got {self.rate_prior}")


@dataclass(frozen=True, kw_only=True)
class EncodedRequests:
    """Requests of the operator's own users, and what their pasts say at each of them."""

    requests: LoggedRequests
    history: DecayedHistory
    rate_prior: float
    prior_rate_F: Tensor
    """Overall rate of each signal in the requests' slates, watch time in the history's own unit."""
    inputs_LI: Tensor
    """What a tower reads of the user's past at each request."""
    start_US: Tensor
    """State of every user at the end of the histories: the user's code, then the sums."""

    @property
    def settings(self) -> dict[str, object]:
        """What a fitted model needs to go on encoding, as JSON values."""
        return {
            "taste_signals": list(self.history.taste_signals),
            "decays": list(self.history.decays),
            "rate_prior": self.rate_prior,
        }


@torch.no_grad()
def encode_requests(
    requests: LoggedRequests, histories: Histories, config: HistoryConfig | None = None
) -> EncodedRequests:
    """Encodes what two or more models are fitted on.

    Args:
        requests: of the operator's own users, on the days to learn from.
        histories: what states of all users start from, see ``user_histories``.
        config: settings.
    """
    config = config or HistoryConfig()
    history = DecayedHistory(
        item_vectors_NE=principal_components(requests.item_features_ND, config.event_width),
        num_signals=len(requests.signals),
        taste_signals=tuple(requests.signals.index(s) for s in config.taste_signals if s in requests.signals),
        decays=config.decays,
    )
    sums, order, targets, known = [], [], [], []
    for index_B in requests.batch_indices(_BATCH):
        batch = requests.batch(index_B)
        request = batch.request
        sums.append(history.encode(request.history_BH, request.history_feedback_BHF, request.history_known_BHF))
        order.append(index_B)
        targets.append(batch.feedback.signals_BKF.flatten(0, 1))
        known.append(batch.known_BKF.flatten(0, 1))
    # The rates of these requests alone: the log's other rows belong to users that the operator does not learn from.
    prior_rate_F = signal_rates(torch.cat(targets), torch.cat(known).to(torch.float32))
    encoded = user_inputs(history, torch.cat(sums), prior_rate_F, config.rate_prior)
    inputs_LI = torch.empty_like(encoded)
    inputs_LI[torch.cat(order)] = encoded
    return EncodedRequests(
        requests=requests,
        history=history,
        rate_prior=config.rate_prior,
        prior_rate_F=prior_rate_F,
        inputs_LI=inputs_LI,
        start_US=start_states(history, histories),
    )


@torch.no_grad()
def start_states(history: DecayedHistory, histories: Histories) -> Tensor:
    """State (U, S) of every user at the end of the histories: the user's code, then the sums."""
    user_U = torch.arange(len(histories.start_U1) - 1)
    sums = [history.encode(*histories.window(user_B, EXACT_WINDOW)) for user_B in torch.split(user_U, _BATCH)]
    return torch.cat([user_U.to(torch.float32).unsqueeze(1), torch.cat(sums)], dim=1)


def user_inputs(history: DecayedHistory, sums_BS: Tensor, prior_rate_F: Tensor, rate_prior: float) -> Tensor:
    """Inputs (B, I) of a user tower: recent rates of every signal, how much is known, tastes.

    Rates are shrunk to the overall ones by ``rate_prior``, since a sum over two impressions is mostly luck, and all
    inputs are brought to about the same size, since they share one layer.
    """
    taste_BGY, signal_BGF, known_BGF = history.split(sums_BS)
    rate_BGF = (signal_BGF + rate_prior * prior_rate_F) / (known_BGF + rate_prior) - prior_rate_F
    return torch.cat([(4.0 * rate_BGF).flatten(1), known_BGF.flatten(1), (2.0 * taste_BGY).flatten(1)], dim=1)


def context_codes(context_BX: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the tab and hour tables, int64 (B,)."""
    tab_B = context_BX[:, 0].to(torch.int64).clamp(0, NUM_TABS - 1)
    return tab_B, context_BX[:, 1].to(torch.int64).clamp(0, 23)
