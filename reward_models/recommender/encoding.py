"""Logged requests as the recommender's towers read them: encoded once for all models of a build.

A user's past enters a tower as decayed sums (``decayed_history``), turned into recent rates and tastes: what was liked
beyond what is expected of each video. Predictor and candidate source read the same inputs, so these are computed once
and handed to both fits. The predictor also reads what the session has shown, and how likely the log's ranker was to
show each video to the user.

Shape legend: L requests, B requests of a batch, F signals, S floats of the sums, I inputs of a tower, U users,
G decays, Y channels, R rows of the log, W floats of a session's sums, H history, N items, E event vector width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recsim_env.data.histories import Histories
from recsim_env.data.requests import LoggedRequests
from recsim_env.types import CONTEXT, NO_ITEM, Request
from reward_models import session_sums
from reward_models.exposure import Exposure, ExposureTowers
from reward_models.recommender.decayed_history import DecayedHistory, principal_components, signal_rates

NUM_TABS = 16
"""Tabs 0..15 have a vector each; higher ones share the last."""

EXACT_WINDOW = 100
"""Impressions that initial states are encoded from."""

_BATCH = 1024  # requests encoded at once
_REQUEST_INDEX = CONTEXT.index("request_index")


@dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """How the recommender sums up a user's past."""

    event_width: int = 16
    """Principal components of the item features that stand for a video in the history."""
    taste_signals: tuple[str, ...] = ("click", "long_view", "like")
    """Signals whose items make up a user's taste; those the log lacks are left out."""
    decays: tuple[float, ...] = (0.75, 0.95)
    """Factors by which one later impression fades the history."""
    expected_prior: float = 20.0
    """Rows of the usual rate that a video's own rate of a signal is shrunk by."""
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
    slate_places: int
    """Places of a request, by which requests of a session are counted in videos; 0 for a log without sessions."""
    session_LW: Tensor
    """What the session had shown before each request; W is 0 for a log without sessions."""
    towers: ExposureTowers
    """What the log's ranker shows to whom."""
    lift_R: Tensor
    """float32 log of how many times likelier than a uniform choice the ranker was to show each row of the log."""
    exposure_Ud: Tensor
    """float32 vectors of users at the end of the histories, see ``ExposureTowers.of_window``."""

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
    requests: LoggedRequests,
    histories: Histories,
    config: HistoryConfig | None = None,
    exposure: Exposure | None = None,
) -> EncodedRequests:
    """Encodes what two or more models are fitted on.

    Args:
        requests: of the operator's own users, on the days to learn from.
        histories: what states of all users start from, see ``user_histories``.
        config: settings.
        exposure: what the log's ranker showed to the same users; ``None`` takes it to show everything alike.
    """
    config = config or HistoryConfig()
    num_items, num_rows = len(requests.item_features_ND), int(requests.slate_row_P.max()) + 1
    towers, lift_R = ExposureTowers.nothing(num_items, requests.user_features_UD.shape[1]), torch.zeros(num_rows)
    if exposure is not None:
        towers, lift_R = exposure.towers, exposure.lift_P
    # Of a log without sessions every request is a first one.
    has_sessions = bool((requests.context_LX[:, _REQUEST_INDEX] > 0).any())
    slate_places = int(requests.slate_size_L.mode().values) if has_sessions else 0
    vectors_NE = principal_components(requests.item_features_ND, config.event_width)
    shown_P = requests.event_item_E[requests.slate_event_P]
    history = DecayedHistory(
        item_vectors_NE=vectors_NE - vectors_NE[shown_P].mean(0),  # 0 is what is usually shown
        num_signals=len(requests.signals),
        expected_NF=expected_signals(requests, config.expected_prior),
        taste_signals=tuple(requests.signals.index(s) for s in config.taste_signals if s in requests.signals),
        decays=config.decays,
    )
    sums, sessions, order, targets, known = [], [], [], [], []
    for index_B in requests.batch_indices(_BATCH):
        batch = requests.batch(index_B)
        request = batch.request
        sums.append(history.encode(request.history_BH, request.history_feedback_BHF, request.history_known_BHF))
        sessions.append(session_of(request, history.item_vectors_NE, slate_places))
        order.append(index_B)
        targets.append(batch.feedback.signals_BKF.flatten(0, 1))
        known.append(batch.known_BKF.flatten(0, 1))
    # The rates of these requests alone: the log's other rows belong to users that the operator does not learn from.
    prior_rate_F = signal_rates(torch.cat(targets), torch.cat(known).to(torch.float32))
    encoded = user_inputs(history, torch.cat(sums), prior_rate_F, config.rate_prior)
    turn_L = torch.cat(order).argsort()
    return EncodedRequests(
        requests=requests,
        history=history,
        rate_prior=config.rate_prior,
        prior_rate_F=prior_rate_F,
        inputs_LI=encoded[turn_L],
        start_US=start_states(history, histories),
        slate_places=slate_places,
        session_LW=torch.cat(sessions)[turn_L],
        towers=towers,
        lift_R=lift_R,
        exposure_Ud=exposure_vectors(towers, requests.user_features_UD, histories),
    )


def expected_signals(requests: LoggedRequests, prior: float) -> Tensor:
    """Mean of each signal of each video in these requests, (N, F), shrunk to the usual one."""
    event_P = requests.slate_event_P
    known_PF = requests.event_known_EF[event_P].float()
    signals_PF = requests.event_feedback_EF[event_P] * known_PF
    usual_F = signals_PF.sum(0) / known_PF.sum(0).clamp(min=1)
    sums_NF, counts_NF = (
        part_PF.new_zeros(len(requests.item_features_ND), part_PF.shape[1]).index_add(
            0, requests.event_item_E[event_P], part_PF
        )
        for part_PF in (signals_PF, known_PF)
    )
    return (sums_NF + prior * usual_F) / (counts_NF + prior)


@torch.no_grad()
def start_states(history: DecayedHistory, histories: Histories) -> Tensor:
    """State (U, S) of every user at the end of the histories: the user's code, then the sums."""
    user_U = torch.arange(len(histories.start_U1) - 1)
    sums = [history.encode(*histories.window(user_B, EXACT_WINDOW)) for user_B in torch.split(user_U, _BATCH)]
    return torch.cat([user_U.to(torch.float32).unsqueeze(1), torch.cat(sums)], dim=1)


@torch.no_grad()
def exposure_vectors(towers: ExposureTowers, features_UD: Tensor, histories: Histories) -> Tensor:
    """Vectors (U, d) of every user by what was shown to them up to the end of the histories."""
    users = torch.split(torch.arange(len(features_UD)), _BATCH)
    parts = [towers.of_window(features_UD[user_B], histories.window(user_B, EXACT_WINDOW)[0]) for user_B in users]
    return torch.cat(parts)


def session_of(request: Request, item_vectors_NE: Tensor, slate_places: int) -> Tensor:
    """What the session of each request has shown before it, as far as the history window goes: sums (B, W).

    A window does not say where the session begins: as many of its last videos count as earlier requests of this many
    places have shown.
    """
    sums_BW = item_vectors_NE.new_zeros(len(request.user_B), session_width(item_vectors_NE, slate_places))
    if not slate_places:
        return sums_BW
    age_H = torch.arange(request.history_BH.shape[1] - 1, -1, -1, device=sums_BW.device)
    shown_B1 = slate_places * request.context_BX[:, _REQUEST_INDEX : _REQUEST_INDEX + 1]
    counts_BH = (request.history_BH != NO_ITEM) & (age_H < shown_B1)
    return session_sums.add(sums_BW, item_vectors_NE[request.history_BH.clamp(min=0)], counts_BH)


def session_width(item_vectors_NE: Tensor, slate_places: int) -> int:
    """W: floats of a session's sums."""
    return session_sums.width(item_vectors_NE.shape[1]) if slate_places else 0


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
