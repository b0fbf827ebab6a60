"""What users do with slates that the log's ranker would not have shown, and what its choices say of users."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from recsim_env.data.schema import LoggedDataset
from recsim_env.types import CONTEXT
from reward_models.declared import PUBLISHED_SHARES, declare_drop, uniform_rates
from reward_models.exposure import Exposure, fit_exposure, lift
from reward_models.plan import BuildConfig, obstacles
from reward_models.session_sums import DECAYS
from reward_models.trainer import TrainConfig
from reward_models.users.calibrate import set_levels
from reward_models.users.fit import fit_response
from reward_models.users.fitting import Fitting, ResponseFitConfig
from reward_models.users.response import SequenceResponse
from reward_models.users.response_core import ResponseConfig
from reward_models.users.satiation import Satiation
from reward_models.users.sequences import read_sequences
from tests.helpers.chosen_log import (
    LAST_DAY,
    NUM_ITEMS,
    NUM_ROWS,
    NUM_USERS,
    any_items,
    chosen_log,
    planted_log,
    satiated_log,
)
from tests.helpers.learned import small_log, small_truth

QUICK = ResponseFitConfig(
    response=ResponseConfig(width=24, event_width=8, item_width=4),
    train=TrainConfig(max_epochs=7, learning_rate=1e-2, learning_rate_decay=0.8, weight_decay=0.01),
    batch_users=6,
    min_batches=80,
    calibration_folds=0,
)


def exposure_of(log: LoggedDataset, epochs: int = 1) -> Exposure:
    """Fitted to all rows; neither users nor videos have features."""
    everything_P = torch.ones(len(log.rows), dtype=torch.bool)
    features = (torch.zeros(NUM_ITEMS, 1), torch.zeros(NUM_USERS, 0))
    return fit_exposure(
        read_sequences(log), *features, everything_P, last_date=LAST_DAY, keep=50, epochs=epochs, seed=0
    )


def contexts(num_users: int) -> Tensor:
    """Of the rows of the log: one tab, at midnight."""
    context_BX = torch.zeros(num_users, len(CONTEXT))
    context_BX[:, CONTEXT.index("tab")] = 1.0
    return context_BX


def clicks(model: SequenceResponse, user_B: Tensor, items_BK: Tensor) -> Tensor:
    return model.expected(model.start(user_B), contexts(len(user_B)), items_BK)[..., 1]


def test_what_a_user_was_shown_tells_what_the_ranker_thinks_of_them() -> None:
    """Nine in ten videos are of the user's own half of the catalogue: 1.8 and 0.2 times a uniform choice."""
    generator = np.random.default_rng(1)
    half_P = np.repeat(np.arange(NUM_USERS) % 2, NUM_ROWS)
    own_P = generator.random(len(half_P)) < 0.9
    item_P = 2 * (any_items() // 2) + np.where(own_P, half_P, 1 - half_P)
    log = planted_log(item_P, np.full(len(item_P), 0.5))
    found = exposure_of(log, epochs=5)
    lift_UN = lift(found.user_Ud.unsqueeze(1), found.item_Nd)
    is_own_UN = torch.arange(NUM_USERS).unsqueeze(1) % 2 == torch.arange(NUM_ITEMS) % 2
    assert float(lift_UN[is_own_UN].mean()) == pytest.approx(np.log(1.8), abs=0.15)
    assert float(lift_UN[~is_own_UN].mean()) == pytest.approx(np.log(0.2), abs=0.5)
    # Feedback plays no part.
    flipped = log.rows.assign(click=1 - log.rows["click"], watch_time=22.0 - log.rows["watch_time"])
    one, other = (exposure_of(dataclasses.replace(log, rows=rows)).lift_P for rows in (log.rows, flipped))
    assert torch.equal(one, other)


def test_a_row_does_not_speak_for_itself() -> None:
    """A user's rows say nothing to the model that says something of them, or of the others of their quarter."""
    item_P = any_items()
    lifts_PX = []
    for first in (item_P[:NUM_ROWS], (item_P[:NUM_ROWS] + 5) % NUM_ITEMS):
        changed_P = np.concatenate([first, item_P[NUM_ROWS:]])
        lifts_PX.append(exposure_of(planted_log(changed_P, np.full(len(item_P), 0.5))).lift_P)
    same_U = (lifts_PX[0] == lifts_PX[1]).view(NUM_USERS, NUM_ROWS).all(1)
    assert not same_U[0]
    assert int(same_U.sum()) == NUM_USERS // 4 - 1


def test_what_the_ranker_knew_is_not_taken_for_what_videos_are_worth() -> None:
    """Nobody likes the half that they are shown: of the videos that nobody chose both are clicked alike."""
    log, is_random = chosen_log()
    model = fit_response(log, train_until=LAST_DAY, config=QUICK)
    user_B, items_BK = torch.arange(NUM_USERS), torch.arange(NUM_ITEMS).expand(NUM_USERS, -1)
    is_own_BK = user_B.unsqueeze(1) % 2 == items_BK % 2
    logged = {value: log.rows["click"][is_random == value].mean() for value in (True, False)}
    free_BK, chosen_BK = (clicks(users, user_B, items_BK) for users in (model, model.as_logged()))
    assert float(free_BK[is_own_BK].mean()) == pytest.approx(logged[True], rel=0.15)
    assert float(free_BK[~is_own_BK].mean()) == pytest.approx(logged[True], rel=0.15)
    assert float(chosen_BK[is_own_BK].mean()) == pytest.approx(logged[False], rel=0.05)


def test_levels_are_those_of_the_rows_whatever_the_network() -> None:
    """Of a network that has learned nothing yet: on uniform rows and on the ranker's, each its own rate."""
    log, is_random = chosen_log()
    sequences, features = read_sequences(log), (torch.zeros(NUM_ITEMS, 1), torch.zeros(NUM_USERS, 0))
    fitting = Fitting(sequences, *features, exposure_of(log), QUICK, seed=0)
    everything_P = torch.ones(len(is_random), dtype=torch.bool)
    network = fitting.network(everything_P)
    set_levels(network, fitting, everything_P)
    model = network.export(sequences, LAST_DAY + 1, 50)
    user_B, items_BK = torch.arange(NUM_USERS), torch.arange(NUM_ITEMS).expand(NUM_USERS, -1)
    is_own_BK = user_B.unsqueeze(1) % 2 == items_BK % 2
    # The ranker's rows are of the own half alone, so what is said of its rows is asked there.
    for users, value, asked_BK in ((model, True, torch.ones_like(is_own_BK)), (model.as_logged(), False, is_own_BK)):
        rate = log.rows["click"][is_random == value].mean()
        assert float(clicks(users, user_B, items_BK)[asked_BK].mean()) == pytest.approx(rate, rel=0.03)


def test_a_declared_drop_is_reached_by_uniform_slates_and_spares_the_rankers() -> None:
    half_P = np.repeat(np.arange(NUM_USERS) % 2, NUM_ROWS)
    own_P = np.random.default_rng(3).random(len(half_P)) < 0.9
    item_P = 2 * (any_items() // 2) + np.where(own_P, half_P, 1 - half_P)
    log = planted_log(item_P, np.full(len(item_P), 0.5))
    model = fit_response(log, train_until=LAST_DAY, config=QUICK)
    user_B, items_BK = torch.arange(NUM_USERS), torch.arange(NUM_ITEMS).expand(NUM_USERS, -1)
    before_BK = clicks(model, user_B, items_BK)
    declare_drop(model, read_sequences(log), torch.ones(len(item_P), dtype=torch.bool), {"click": 0.35})
    after_BK = clicks(model, user_B, items_BK)
    assert float(after_BK.mean()) == pytest.approx(0.35, rel=0.05)
    torch.testing.assert_close(clicks(model.as_logged(), user_B, items_BK), before_BK)
    is_own_BK = user_B.unsqueeze(1) % 2 == items_BK % 2
    torch.testing.assert_close(after_BK[is_own_BK].mean(), before_BK[is_own_BK].mean(), rtol=0.05, atol=0.0)


def test_uniform_rates_are_shares_of_the_rankers_own() -> None:
    item_P = any_items()
    log = planted_log(item_P, np.full(len(item_P), 0.5))
    users, rate = np.arange(NUM_USERS), log.rows["click"].mean()
    full = uniform_rates(log, users, LAST_DAY, None)
    assert full == {"click": pytest.approx(rate * PUBLISHED_SHARES["click"])}
    half = uniform_rates(log, users, LAST_DAY, 0.5)["click"]
    assert half == pytest.approx((rate + full["click"]) / 2)
    assert uniform_rates(log, users, LAST_DAY, 0.0) == {}
    nobody = dataclasses.replace(log, rows=log.rows.assign(click=np.int8(0)))
    assert uniform_rates(nobody, users, LAST_DAY, None) == {}, "a signal without a positive"


def test_a_drop_is_refused_where_it_has_no_effect_or_no_meaning() -> None:
    with pytest.raises(ValueError, match="uniform_drop is a share, from 0"):
        BuildConfig(uniform_drop=1.5)
    log = small_log(small_truth())
    some = np.arange(len(log.rows)) < 10
    log = dataclasses.replace(log, rows=log.rows.assign(is_random=some))
    (problem,) = obstacles(log, BuildConfig(uniform_drop=0.5, test_days=2))
    assert "log has such rows" in problem
    seconds = dataclasses.replace(small_log(small_truth()), signals=("watch_time", "like"))
    assert obstacles(seconds, BuildConfig(uniform_drop=0.5, test_days=2)) == [problem]
    assert obstacles(log, BuildConfig(test_days=2)) == []


def test_sums_of_a_session_are_the_same_row_by_row_and_at_once() -> None:
    """A twin by loops: what was shown earlier in the session, each later video taking its share."""
    satiation, generator = Satiation(3, 5), torch.Generator().manual_seed(0)
    event_BTE = torch.randn(2, 9, 3, generator=generator)
    valid_BT = torch.ones(2, 9, dtype=torch.bool)
    valid_BT[1, 7:] = False
    begin_T = torch.tensor([0, 1, 1, 3, 3, 5, 6, 7, 8])  # rows 1 and 2 are one request, and so are 3 and 4
    session_T = torch.tensor([0, 0, 0, 0, 0, 5, 5, 5, 5])
    at_once_BTW = satiation.scan(event_BTE, valid_BT, begin_T.expand(2, -1), session_T.expand(2, -1))
    for user in range(2):
        for row in range(7):
            by_hand_GX = torch.zeros(len(DECAYS), 4)
            for earlier in range(int(session_T[row]), int(begin_T[row])):
                shown = 0.1 * torch.cat([event_BTE[user, earlier], torch.ones(1)])
                by_hand_GX = torch.tensor(DECAYS).unsqueeze(1) * by_hand_GX + shown
            torch.testing.assert_close(at_once_BTW[user, row], by_hand_GX.flatten())
    # Slate by slate, with a place that nobody saw.
    state_BW = torch.zeros(2, satiation.state_width)
    seen_BK = torch.tensor([[True, True, True, False], [True, True, True, False]])
    state_BW = satiation.update(state_BW, event_BTE[:, :4], seen_BK)
    state_BW = satiation.update(state_BW, event_BTE[:, 3:5], seen_BK[:, :2])
    torch.testing.assert_close(state_BW, _after(satiation, event_BTE[:, :5]))


def _after(satiation: Satiation, event_BTE: Tensor) -> Tensor:
    """State after these videos, one at a time."""
    state_BW = torch.zeros(len(event_BTE), satiation.state_width)
    for event_BE in event_BTE.unbind(1):
        state_BW = satiation.update(state_BW, event_BE.unsqueeze(1), torch.ones(len(event_BTE), 1))
    return state_BW


def test_more_of_the_same_is_liked_less_where_the_log_has_sessions() -> None:
    log = satiated_log(sessions=True)
    model = fit_response(log, train_until=LAST_DAY, config=dataclasses.replace(QUICK, min_batches=200))
    user_B = torch.arange(NUM_USERS)
    context_BX, state_BS = contexts(NUM_USERS), model.start(user_B)
    probe_B2 = torch.tensor([[20, 21]]).expand(NUM_USERS, -1)
    # In truth three videos leave 0.46 of the chance and five 0.31, and all of the other tag's. How much a session takes
    # from both is not learned; what it takes from one beyond the other is, and a fit of seconds finds most of it.
    for videos, least in ((3, 0.35), (5, 0.25)):
        slate_BK = 2 * torch.arange(videos).expand(NUM_USERS, -1)
        signals_BKF = model.expected(state_BS, context_BX, slate_BK)
        after_BS = model.observe(state_BS, context_BX, slate_BK, signals_BKF, torch.ones_like(slate_BK) > 0)
        fresh_2, tired_2 = (model.expected(s, context_BX, probe_B2)[..., 1].mean(0) for s in (state_BS, after_BS))
        own, other = (tired_2 / fresh_2).tolist()
        assert own < 0.75
        assert least < own / other < 0.6
    # A log without sessions teaches nothing of the kind.
    assert read_sequences(satiated_log(sessions=False)).session_P is None
