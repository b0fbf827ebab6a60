"""What a log's ranker does over a session and a life is not what its users do: they neither tire nor change by it."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from recsim_env.data.histories import user_histories
from recsim_env.data.requests import logged_requests
from reward_models.exposure import fit_exposure
from reward_models.trainer import QUICK as PACE
from reward_models.trainer import TrainConfig, train
from reward_models.users.fit import fit_response
from reward_models.users.fitting import Fitting
from reward_models.users.replay import Replay
from reward_models.users.satiation import Satiation
from reward_models.users.sequences import read_sequences, sequence_batches
from tests.helpers.chosen_log import (
    LAST_DAY,
    NUM_ITEMS,
    NUM_ROWS,
    NUM_USERS,
    exhausting_log,
    planted_log,
    satiated_log,
)
from tests.reward_models.test_off_the_log import QUICK, contexts

_SESSION = 12


def test_a_ranker_that_runs_out_of_its_best_does_not_make_users_tired() -> None:
    model = fit_response(
        exhausting_log(), train_until=LAST_DAY, config=dataclasses.replace(QUICK, min_batches=200), seed=1
    )
    user_B = torch.arange(NUM_USERS)
    context_BX, state_BS = contexts(NUM_USERS), model.start(user_B)
    items_BK = torch.arange(NUM_ITEMS).expand(NUM_USERS, -1)
    slate_BK = torch.stack([torch.randperm(NUM_ITEMS)[: _SESSION - 1] for _ in user_B])
    signals_BKF = model.expected(state_BS, context_BX, slate_BK)
    after_BS = model.observe(state_BS, context_BX, slate_BK, signals_BKF, torch.ones_like(slate_BK) > 0)
    fresh, later = (float(model.expected(state, context_BX, items_BK)[..., 1].mean()) for state in (state_BS, after_BS))
    assert fresh == pytest.approx(0.2, abs=0.04)
    assert later == pytest.approx(fresh, rel=0.1)
    # The ranker's own choices do get worse, as the log has it.
    chosen = model.as_logged()
    first, last = (float(chosen.expected(s, context_BX, items_BK)[..., 1].mean()) for s in (state_BS, after_BS))
    assert first == pytest.approx(0.8, abs=0.1)
    assert last < 0.5 * first


def test_the_usual_mixture_satisfies_nobody() -> None:
    satiation, generator = Satiation(3, 5), torch.Generator().manual_seed(0)
    satiation.usual_Y.copy_(torch.tensor([0.5, 0.25, 0.25]))
    satiation.pair_GYY.data.copy_(torch.randn(satiation.pair_GYY.shape, generator=generator))
    kind_12 = torch.eye(3)[[0, 1, 0, 2]]
    seen_BK = torch.ones(1, 4, dtype=torch.bool)
    usual_BW = satiation.update(torch.zeros(1, satiation.state_width), satiation.usual_Y.expand(1, 4, -1), seen_BK)
    mixed_BW = satiation.update(torch.zeros(1, satiation.state_width), kind_12.unsqueeze(0), seen_BK)
    with torch.no_grad():
        assert satiation.hidden(usual_BW, kind_12[:1]).abs().max() < 1e-6
        assert satiation.hidden(mixed_BW, satiation.usual_Y.unsqueeze(0)).abs().max() < 1e-6
        assert satiation.hidden(mixed_BW, kind_12[:1]).abs().max() > 1e-3


def test_users_who_were_shown_their_favourites_have_not_come_to_want_others() -> None:
    """A ranker that shows nothing twice works through what suits a user; how well a video suits does not change."""
    rng, half = np.random.default_rng(0), NUM_ITEMS // 2
    items, is_random = [], []
    for user in range(NUM_USERS):
        own = 2 * rng.permutation(half) + user % 2  # first the user's own half, then the rest
        rest = 2 * rng.permutation(half) + 1 - user % 2
        ranked = iter(np.concatenate([own, rest]))
        uniform = np.arange(NUM_ROWS) % 3 == 2
        items += [int(rng.integers(NUM_ITEMS)) if here else int(next(ranked)) for here in uniform]
        is_random.append(uniform)
    log = planted_log(np.array(items), np.full(len(items), 0.5), is_random=np.concatenate(is_random))
    features = (torch.nn.functional.one_hot(torch.arange(NUM_ITEMS) % 2).float(), torch.zeros(NUM_USERS, 0))
    everything_P = torch.ones(len(items), dtype=torch.bool)
    exposure = fit_exposure(read_sequences(log), *features, everything_P, last_date=LAST_DAY, keep=50, epochs=5, seed=0)
    number_P = torch.arange(NUM_ROWS).repeat(NUM_USERS)
    suits_P = torch.tensor(items) % 2 == torch.arange(NUM_USERS).repeat_interleave(NUM_ROWS) % 2
    uniform_P = torch.from_numpy(np.concatenate(is_random))

    def advantage(begin: int, end: int) -> float:
        """By how much the lift of what suits exceeds that of the rest, on uniform rows."""
        here_P = uniform_P & (number_P >= begin) & (number_P < end)
        return float(exposure.lift_P[here_P & suits_P].mean() - exposure.lift_P[here_P & ~suits_P].mean())

    early, late = advantage(6, 12), advantage(12, 18)  # the user's own half lasts until then
    assert early > 1.0
    assert late > 0.7 * early


def test_what_a_session_showed_before_teaches_nothing() -> None:
    log = planted_log(np.tile(np.arange(6), NUM_USERS * 6), np.full(NUM_USERS * NUM_ROWS, 1.0))
    session = np.arange(len(log.rows)) // _SESSION  # each shows six videos twice
    log = dataclasses.replace(log, rows=log.rows.assign(session=session))
    again = np.tile(np.repeat([False, True], 6), len(log.rows) // _SESSION)
    assert (np.isnan(log.feedback).all(1) == again).all()
    assert not log.rows["click"].isna().any()  # the log itself keeps what it was given
    without = dataclasses.replace(log, rows=log.rows.drop(columns="session"))
    assert not np.isnan(without.feedback).any()
    # Both parties read it so.
    sequences = read_sequences(log)
    assert (sequences.known_PF.all(1).numpy() == ~again).all()
    features = (torch.zeros(NUM_ITEMS, 1), torch.zeros(NUM_USERS, 0))
    requests = logged_requests(log, item_features_ND=features[0], user_features_UD=features[1])
    known = torch.cat([batch.known_BKF.flatten(0, 1).all(1) for batch in requests.batches(512)])
    assert int(known.sum()) == int((~again).sum())
    assert int(user_histories(log, before_date=LAST_DAY + 1).known_PF[:, 0].sum()) == int((~again).sum())


def test_a_repeat_in_a_log_changes_nobody() -> None:
    """Users come to their rows, and leave the log, as if the repeats were not in it."""
    again = np.tile(np.repeat([False, True], 6), NUM_USERS * 3)
    session = np.arange(NUM_USERS * NUM_ROWS) // _SESSION
    log = planted_log(np.tile(np.arange(6), NUM_USERS * 6), np.full(len(again), 0.6), session=session)
    without = dataclasses.replace(log, rows=log.rows[~again].reset_index(drop=True))
    features = (torch.eye(NUM_ITEMS), torch.zeros(NUM_USERS, 0))
    label_P = torch.ones(len(log.rows), dtype=torch.bool)
    exposure = fit_exposure(read_sequences(log), *features, label_P, last_date=LAST_DAY, keep=5, epochs=1, seed=0)
    network = Fitting(read_sequences(log), *features, exposure, QUICK, 0).network(label_P)
    with torch.no_grad():
        network.core.satiation.effect.weight.normal_(generator=torch.Generator().manual_seed(1))
    found = []
    for one, kept in ((log, torch.from_numpy(~again)), (without, torch.ones(len(without.rows), dtype=torch.bool))):
        sequences = read_sequences(one)
        (batch,) = sequence_batches(sequences, torch.ones_like(kept), NUM_USERS)
        with torch.no_grad():
            states = network.states(sequences, batch, torch.zeros(len(kept), 3), 5)
        lift_P = torch.zeros(len(kept))
        _, after_US = Replay(network.core, network.tables(), sequences, lift_P, False).run(torch.ones_like(kept), 5)
        found.append((*(part[batch.valid_BT][kept[batch.row_BT[batch.valid_BT]]] for part in states), after_US))
    for with_repeats, alone in zip(*found, strict=True):
        torch.testing.assert_close(with_repeats, alone)
        assert alone.abs().max() > 0.01


def test_users_are_fitted_to_first_showings_alone() -> None:
    """Repeats are never clicked in this log; users click as they do at first."""
    item_P = np.tile(np.arange(6), NUM_USERS * 6)
    again = np.tile(np.repeat([False, True], 6), NUM_USERS * 3)
    log = planted_log(item_P, np.where(again, 0.0, 0.6), session=np.arange(len(item_P)) // _SESSION)
    model = fit_response(log, train_until=LAST_DAY, config=QUICK)
    user_B = torch.arange(NUM_USERS)
    items_BK = torch.arange(6).expand(NUM_USERS, -1)
    click = model.expected(model.start(user_B), contexts(NUM_USERS), items_BK)[..., 1].mean()
    assert float(click) == pytest.approx(0.6, abs=0.05)


def test_those_who_choose_the_epochs_are_read_as_those_who_teach() -> None:
    """The lift of a row of other users is that of the fitted towers, not 0."""
    log, teaches_P = satiated_log(sessions=False), torch.arange(NUM_USERS).repeat_interleave(NUM_ROWS) < NUM_USERS // 2
    even = (log.rows["item"] // 2 * 2).astype(np.int32)
    log = dataclasses.replace(log, rows=log.rows.assign(item=even))
    features = (torch.eye(NUM_ITEMS), torch.zeros(NUM_USERS, 0))
    exposure = fit_exposure(read_sequences(log), *features, teaches_P, last_date=LAST_DAY, keep=50, epochs=2, seed=0)
    others_P = ~teaches_P
    assert float(exposure.lift_P[others_P].abs().min()) > 0.0
    torch.testing.assert_close(exposure.lift_P[others_P], exposure.final_lift_P[others_P])
    assert float(exposure.lift_P[others_P].mean()) == pytest.approx(float(exposure.lift_P[teaches_P].mean()), abs=0.2)


class _TwoLevels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slow, self.far = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))


def test_a_quick_level_gets_where_a_usual_step_does_not() -> None:
    """AdamW moves a parameter by about its step size: twenty steps of 0.002 are 0.04, thirty times that is enough."""
    model, config = _TwoLevels(), TrainConfig(max_epochs=1, learning_rate=2e-3, averaging=0.0, weight_decay=0.0)
    train(
        model,
        batches=lambda _: range(20),
        loss=lambda _, __: (model.slow - 1.0).square() + (model.far - 1.0).square(),
        validate=None,
        config=config,
        seed=0,
        quick=("far",),
    )
    slow, far = model.slow.item(), model.far.item()
    assert slow == pytest.approx(20 * 2e-3, rel=0.05)
    assert far == pytest.approx(1.0, abs=0.25)
    assert PACE * slow > 1.0


def test_what_choices_say_is_brought_to_its_optimum() -> None:
    """At a minimum the gradient vanishes, and everything else is as it was."""
    log = exhausting_log()
    label_P, sequences = torch.ones(len(log.rows), dtype=torch.bool), read_sequences(log)
    features = (torch.zeros(NUM_ITEMS, 1), torch.zeros(NUM_USERS, 0))
    exposure = fit_exposure(sequences, *features, label_P, last_date=LAST_DAY, keep=50, epochs=1, seed=0)
    fitting = Fitting(sequences, *features, exposure, QUICK, 0)
    network = fitting.network(label_P)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def loss() -> torch.Tensor:
        first = fitting.first_layer(network, label_P)
        return fitting.loss(network, first.row_R, network.answer(sequences, first))

    unsettled = loss()
    choices = [network.core.selection_XV, network.core.passed_GV]
    slopes = torch.autograd.grad(unsettled, choices)
    fitting.settle_choices(network, label_P)
    settled = loss()
    rests = torch.autograd.grad(settled, choices)
    assert settled.item() < unsettled.item() - 0.05
    for slope, rest in zip(slopes, rests, strict=True):
        assert float(rest.abs().max()) < 0.05 * float(slope.abs().max())
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"core.selection_XV", "core.passed_GV"}
    # Without uniform rows nothing tells a choice from others.
    alone = read_sequences(dataclasses.replace(log, rows=log.rows.drop(columns="is_random")))
    fitting = Fitting(alone, *features, exposure, QUICK, 0)
    network = fitting.network(label_P)
    fitting.settle_choices(network, label_P)
    assert not network.core.selection_XV.any()
    assert not network.core.passed_GV.any()
