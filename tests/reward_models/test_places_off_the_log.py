"""What slates that nobody put in order tell of their places, and what a ranker's passing over tells of a video."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from recsim_env.data.schema import LoggedDataset
from reward_models.users.fit import fit_response
from reward_models.users.response import SequenceResponse
from tests.helpers.chosen_log import LAST_DAY, NUM_ITEMS, NUM_ROWS, NUM_USERS, any_items, planted_log
from tests.reward_models.test_off_the_log import QUICK, contexts

_PLACES, _SESSION = 6, 12
_LOSS, _MEMORY = 0.5, 0.8
"""Log-odds that a place takes from the next one, and the share of it that is left one place further."""

_PLACE_P = np.tile(np.arange(_PLACES), NUM_USERS * NUM_ROWS // _PLACES)


def _falling(first: float) -> np.ndarray:
    """Chances of a click by place."""
    lost_K = _LOSS * np.cumsum(np.append(0.0, _MEMORY ** np.arange(_PLACES - 1)))
    return 1.0 / (1.0 + np.exp(lost_K - np.log(first / (1.0 - first))))


def _log_of_slates(*, uniform: bool) -> LoggedDataset:
    """Half of the slates are filled by a ranker, whose videos are clicked alike at all places; the others by chance,
    and each of their places takes from the later ones, whatever it shows."""
    request_P = np.arange(len(_PLACE_P)) // _PLACES
    is_random = np.random.default_rng(2).random(request_P.max() + 1)[request_P] < 0.5
    chance_P = np.where(is_random, _falling(0.5)[_PLACE_P], 0.7)
    columns = {"request": request_P, "place": _PLACE_P.astype(np.int8)}
    if uniform:
        columns["is_random"] = is_random
    return planted_log(any_items(3), chance_P, **columns)


_BRIEFLY = dataclasses.replace(
    QUICK,
    train=dataclasses.replace(QUICK.train, max_epochs=3),
    list_train=dataclasses.replace(QUICK.train, max_epochs=4),
    exposure_epochs=1,
)


def _click_by_place(model: SequenceResponse) -> Tensor:
    user_B = torch.arange(NUM_USERS)
    slate_BK = torch.stack([torch.randperm(NUM_ITEMS)[:_PLACES] for _ in user_B])
    return model.expected(model.start(user_B), contexts(NUM_USERS), slate_BK)[..., 1].mean(0)


def test_slates_that_nobody_ordered_tell_what_every_place_takes_from_later_ones() -> None:
    model = fit_response(_log_of_slates(uniform=True), train_until=LAST_DAY, config=_BRIEFLY)
    assert _click_by_place(model).numpy() == pytest.approx(_falling(0.5), abs=0.05)


def test_where_a_ranker_ordered_all_slates_a_fall_by_place_is_put_down_to_its_order() -> None:
    model = fit_response(_log_of_slates(uniform=False), train_until=LAST_DAY, config=_BRIEFLY)
    click_K = _click_by_place(model)
    assert float(click_K.max() - click_K.min()) < 0.08


def test_what_a_ranker_passed_over_is_worth_more_before_another_one() -> None:
    """Users like half of the videos, another half in every session. The ranker knows, and shows it nothing twice:
    what chance shows late in a session is mostly what it would not have shown."""
    rng = np.random.default_rng(0)
    item, chance, is_random = [], [], []
    for _ in range(NUM_USERS * NUM_ROWS // _SESSION):
        liked = rng.permutation(NUM_ITEMS)[: NUM_ITEMS // 2]
        left = list(range(NUM_ITEMS))
        for number in range(_SESSION):
            by_chance = number % 3 == 2
            wanted = [video for video in left if video in liked]
            shown = int(rng.choice(left if by_chance or not wanted else wanted))
            left.remove(shown)
            item.append(shown)
            is_random.append(by_chance)
            chance.append(0.9 if shown in liked else 0.1)
    log = planted_log(
        np.array(item),
        np.array(chance),
        is_random=np.array(is_random),
        session=np.arange(len(item)) // _SESSION,
    )
    rows = log.rows[log.rows["is_random"]]
    number_P = rows.groupby("session").cumcount()
    early, late = (float(rows["click"][number_P == number].mean()) for number in (0, 3))
    assert early > late + 0.1
    model = fit_response(log, train_until=LAST_DAY, config=dataclasses.replace(QUICK, min_batches=200))
    user_B, context_BX = torch.arange(NUM_USERS), contexts(NUM_USERS)
    items_BK = torch.arange(NUM_ITEMS).expand(NUM_USERS, -1)
    begin_BS = model.start(user_B)
    slate_BK = items_BK[:, : _SESSION - 1]
    shown_BKF = model.expected(begin_BS, context_BX, slate_BK)
    after_BS = model.observe(begin_BS, context_BX, slate_BK, shown_BKF, torch.ones_like(slate_BK) > 0)
    for who, at_the_end in ((model, 0.5), (model.as_logged(uniform=True), late)):
        first, last = (
            float(who.expected(state, context_BX, items_BK)[..., 1].mean()) for state in (begin_BS, after_BS)
        )
        assert first == pytest.approx(0.5, abs=0.06)
        assert last == pytest.approx(at_the_end, abs=0.08)
