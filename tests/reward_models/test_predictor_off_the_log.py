"""What the recommender expects of slates that the log's ranker would not have shown, and of more of the same."""

import numpy as np
import pytest
import torch
from torch import Tensor

from recsim_env.data.histories import user_histories
from recsim_env.data.requests import LoggedBatch, LoggedRequests, logged_requests
from recsim_env.data.schema import LoggedDataset
from recsim_env.types import CONTEXT
from reward_models.exposure import fit_exposure
from reward_models.recommender.encoding import encode_requests, session_of
from reward_models.recommender.predictor import EnsemblePredictor
from reward_models.recommender.predictor_fit import PredictorConfig, fit_predictor
from reward_models.users.sequences import read_sequences
from tests.helpers.chosen_log import (
    LAST_DAY,
    NUM_ITEMS,
    NUM_USERS,
    any_items,
    chosen_log,
    exhausting_log,
    planted_log,
    satiated_log,
)

SMALL = PredictorConfig(factor_width=8, hidden_width=32, max_epochs=60, patience=10, batch_size=256, learning_rate=1e-2)
USERS, ITEMS = torch.arange(NUM_USERS), torch.arange(NUM_ITEMS).expand(NUM_USERS, -1)


def tables(log: LoggedDataset) -> dict[str, Tensor]:
    """Items by their tag; nothing is known of users."""
    tag_ND = torch.nn.functional.one_hot(torch.arange(NUM_ITEMS) % 2, 2).float()
    return {"item_features_ND": tag_ND, "user_features_UD": torch.zeros(NUM_USERS, 0)}


def fit(log: LoggedDataset) -> tuple[EnsemblePredictor, LoggedRequests]:
    features, everything_P = tables(log), torch.ones(len(log.rows), dtype=torch.bool)
    exposure = fit_exposure(
        read_sequences(log), *features.values(), everything_P, last_date=LAST_DAY, keep=50, epochs=5, seed=0
    )
    requests = logged_requests(log, **features)
    encoded = encode_requests(requests, user_histories(log, LAST_DAY + 1), exposure=exposure)
    return fit_predictor(encoded, config=SMALL), requests


def at_start(predictor: EnsemblePredictor) -> Tensor:
    """Chance of a click of every video, for all users as the log leaves them: (U, N)."""
    return predictor.predict(predictor.start(USERS), torch.zeros(NUM_USERS, len(CONTEXT)), ITEMS)[0][..., 1]


def whole(requests: LoggedRequests) -> LoggedBatch:
    return next(requests.batches(len(requests)))


def test_what_a_ranker_chose_is_not_what_any_slate_is_worth() -> None:
    """Nobody likes the half that they are shown: of the videos that nobody chose both are clicked alike."""
    log, is_random = chosen_log()
    predictor, requests = fit(log)
    is_own_UN = USERS.unsqueeze(1) % 2 == ITEMS % 2
    logged = {value: log.rows["click"][is_random == value].mean() for value in (True, False)}
    # Stopped early, before it takes all of the difference for choice: a fifth of it is left.
    free_UN = at_start(predictor)
    for half_UN in (is_own_UN, ~is_own_UN):
        assert (float(free_UN[half_UN].mean()) - logged[True]) / (logged[False] - logged[True]) < 0.35
    assert (float(free_UN.mean()) - logged[True]) / (logged[False] - logged[True]) < 0.25
    # Of the log's own slates it knows who answered.
    batch = whole(requests)
    by_B = predictor.predict_request(batch.request, batch.items_BK, ~batch.uniform_B)[0][:, 0, 1]
    assert float(by_B[batch.uniform_B].mean()) == pytest.approx(logged[True], rel=0.2)
    assert float(by_B[~batch.uniform_B].mean()) == pytest.approx(logged[False], rel=0.06)
    annotated_B = whole(requests.annotated(predictor)).request.predicted_BCF[:, 0, 1]
    torch.testing.assert_close(annotated_B, by_B)


def test_a_log_without_uniform_rows_tells_no_choice_from_another() -> None:
    item_P = any_items()
    predictor, requests = fit(planted_log(item_P, np.full(len(item_P), 0.5)))
    batch = whole(requests)
    free_B, chosen_B = (
        predictor.predict_request(batch.request, batch.items_BK, chosen_B)[0]
        for chosen_B in (None, torch.ones(len(requests), dtype=torch.bool))
    )
    assert torch.equal(free_B, chosen_B)


def after_five_of_a_tag(predictor: EnsemblePredictor) -> tuple[float, float]:
    """Chance of a click of both tags' videos after five of the even ones, over the chance at the start."""
    state_BS, context_BX = predictor.start(USERS), torch.zeros(NUM_USERS, len(CONTEXT))
    slate_BK = 2 * torch.arange(5).expand(NUM_USERS, -1)
    expected_BKF, _ = predictor.predict(state_BS, context_BX, slate_BK)
    state_BS = predictor.observe(state_BS, context_BX, slate_BK, expected_BKF, torch.ones_like(slate_BK) > 0)
    after_BN = predictor.predict(state_BS, context_BX, ITEMS)[0][..., 1]
    ratio_N = after_BN.mean(0) / at_start(predictor).mean(0)
    return float(ratio_N[10::2].mean()), float(ratio_N[11::2].mean())


def test_more_of_the_same_is_expected_to_be_liked_less() -> None:
    """In truth five videos leave 0.31 of the chance of the next one with their tag, and all of the other's."""
    predictor, _ = fit(satiated_log(sessions=True))
    own, other = after_five_of_a_tag(predictor)
    assert own < 0.75
    assert 0.25 < own / other < 0.6


def test_a_log_without_sessions_teaches_no_satiation() -> None:
    predictor, _ = fit(satiated_log(sessions=False))
    assert after_five_of_a_tag(predictor) == pytest.approx((1.0, 1.0), abs=0.12)


def test_a_session_played_and_its_window_read_anew_are_the_same() -> None:
    log = satiated_log(sessions=True)
    predictor, requests = fit(log)
    last = next(requests.batches(len(requests))).request
    # The twelfth request of a session: eleven videos of one place each have been shown.
    twelfth_L = (requests.context_LX[:, CONTEXT.index("request_index")] == 11).nonzero().squeeze(1)
    request = last.select(twelfth_L)
    vectors_NE = predictor.history.item_vectors_NE
    anew_BW = session_of(request, vectors_NE, 1)
    state_BS = predictor.start(request.user_B)
    events = zip(request.history_BH[:, -11:].unbind(1), request.history_feedback_BHF[:, -11:].unbind(1), strict=True)
    for item_B, signals_BF in events:
        slate = (item_B.unsqueeze(1), signals_BF.unsqueeze(1), torch.ones(len(item_B), 1, dtype=torch.bool))
        state_BS = predictor.observe(state_BS, request.context_BX, *slate)
    torch.testing.assert_close(state_BS[:, -anew_BW.shape[1] :], anew_BW)
    # A row of another session counts for nothing.
    assert not session_of(request._replace(context_BX=torch.zeros_like(request.context_BX)), vectors_NE, 1).any()


def test_a_ranker_that_runs_out_of_its_best_does_not_make_users_tired() -> None:
    """Clicks of its choices fall from 80 % to 20 % within a session; those of uniform rows stay at 20 %."""
    predictor, requests = fit(exhausting_log())
    state_BS, context_BX = predictor.start(USERS), torch.zeros(NUM_USERS, len(CONTEXT))
    slate_BK = torch.stack([torch.randperm(NUM_ITEMS)[:11] for _ in USERS])
    expected_BKF, _ = predictor.predict(state_BS, context_BX, slate_BK)
    after_BS = predictor.observe(state_BS, context_BX, slate_BK, expected_BKF, torch.ones_like(slate_BK) > 0)
    fresh, later = (
        float(predictor.predict(state, context_BX, ITEMS)[0][..., 1].mean()) for state in (state_BS, after_BS)
    )
    assert fresh == pytest.approx(0.2, abs=0.06)
    assert later > 0.6 * fresh  # a user's recent rates are an input, and still take a part of it for the user's
    # Requests that the ranker answered are expected to be what they were in the log.
    batch = whole(requests)
    ranked_B, place_B = ~batch.uniform_B, batch.request.context_BX[:, CONTEXT.index("request_index")]
    by_B = predictor.predict_request(batch.request, batch.items_BK, ranked_B)[0][:, 0, 1]
    assert float(by_B[ranked_B & (place_B == 0)].mean()) == pytest.approx(0.8, abs=0.12)
    assert float(by_B[ranked_B & (place_B == 11)].mean()) == pytest.approx(0.2, abs=0.12)
