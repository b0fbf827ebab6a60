"""Fitting learned users: planted truths are found again, and a killed fit ends with the same weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from recsim_env.data.features import item_features
from recsim_env.data.schema import LoggedDataset
from recsim_env.types import CONTEXT
from reward_models.exposure import fit_exposure, lift
from reward_models.metrics import auc
from reward_models.trainer import TrainConfig, train
from reward_models.users.fit import fit_response
from reward_models.users.fitting import Fitting, ResponseFitConfig
from reward_models.users.response import SequenceResponse
from reward_models.users.response_core import ResponseConfig
from reward_models.users.sequences import Sequences, read_sequences, sequence_batches

SIGNALS = ("watch_time", "click", "like")
NUM_USERS, NUM_ITEMS, NUM_ROWS, SLATE = 240, 24, 36, 3
FIRST_DAY, LAST_DAY = 20220401, 20220406
QUICK = ResponseFitConfig(
    response=ResponseConfig(width=24, event_width=8, item_width=4),
    train=TrainConfig(max_epochs=10, learning_rate=1e-2, learning_rate_decay=0.9, weight_decay=0.01),
    batch_users=6,
    calibration_folds=2,
)


def planted_log(has_lists: bool = False, seed: int = 0) -> tuple[LoggedDataset, np.ndarray]:
    """Users like one of two tags, which only their feedback shows; with lists, a repeated tag bores them.

    Returns the log and each row's true probability of a click. A click is 20 s of watch time, otherwise 2 s;
    a like comes with 40 % of clicks and never without one.
    """
    generator = np.random.default_rng(seed)
    tag_N = np.arange(NUM_ITEMS) % 2
    taste_U = np.arange(NUM_USERS) // 2 % 2
    user = np.repeat(np.arange(NUM_USERS), NUM_ROWS)
    item = generator.integers(NUM_ITEMS, size=len(user))
    place = np.tile(np.arange(NUM_ROWS) % SLATE, NUM_USERS)
    chance = np.where(tag_N[item] == taste_U[user], 0.8, 0.2)
    if has_lists:
        for back in (1, 2):
            repeated = np.zeros(len(user), bool)
            repeated[back:] = tag_N[item[back:]] == tag_N[item[:-back]]
            chance = np.where(repeated & (place >= back), chance * 0.35, chance)
    click = generator.random(len(user)) < chance
    day = np.tile(np.arange(NUM_ROWS) * (LAST_DAY - FIRST_DAY + 1) // NUM_ROWS, NUM_USERS)
    start_ms = pd.Timestamp(2022, 4, 1).value // 10**6
    minute = np.tile(np.arange(NUM_ROWS) // SLATE * SLATE if has_lists else np.arange(NUM_ROWS), NUM_USERS)
    rows = pd.DataFrame(
        {
            "user": user.astype(np.int32),
            "item": item.astype(np.int32),
            "time_ms": start_ms + day * 86_400_000 + minute * 60_000,
            "date": (FIRST_DAY + day).astype(np.int32),
            "watch_time": np.where(click, 20.0, 2.0).astype(np.float32),
            "duration": np.float32(60.0),
            "click": click.astype(np.int8),
            "like": (click & (generator.random(len(user)) < 0.4)).astype(np.int8),
            "tab": np.int8(1),
        }
    )
    if has_lists:
        rows["request"] = np.arange(len(rows)) // SLATE
        rows["place"] = place.astype(np.int8)
    users = pd.DataFrame({"user_id": np.arange(NUM_USERS)})
    items = pd.DataFrame(
        {"item_id": np.arange(NUM_ITEMS), "duration": np.float32(60.0), "tags": [[int(tag)] for tag in tag_N]}
    )
    return LoggedDataset("planted", rows, users, items, SIGNALS), chance


def contexts(num: int) -> torch.Tensor:
    context_BX = torch.zeros(num, len(CONTEXT))
    context_BX[:, CONTEXT.index("tab")] = 1.0
    return context_BX


@pytest.fixture(scope="module")
def fitted() -> SequenceResponse:
    dataset, _ = planted_log()
    return fit_response(dataset, train_until=LAST_DAY - 1, validation_dates=[LAST_DAY], config=QUICK)


def test_taste_is_learned_from_feedback_alone(fitted: SequenceResponse) -> None:
    user_B = torch.arange(NUM_USERS)
    items_BK = torch.arange(NUM_ITEMS).expand(NUM_USERS, -1)
    click_BK = fitted.expected(fitted.start(user_B), contexts(NUM_USERS), items_BK)[..., 1]
    is_match_BK = (items_BK % 2) == (user_B // 2 % 2).unsqueeze(1)
    assert auc(click_BK.numpy().ravel(), is_match_BK.numpy().ravel()) > 0.97
    assert click_BK[is_match_BK].mean() == pytest.approx(0.8, abs=0.08)
    assert click_BK[~is_match_BK].mean() == pytest.approx(0.2, abs=0.08)


def test_feedback_in_the_simulation_changes_taste(fitted: SequenceResponse) -> None:
    user_B = torch.zeros(1, dtype=torch.int64)  # likes even items
    state_BS, context_BX = fitted.start(user_B), contexts(1)
    odd = torch.tensor([[1]])
    before = float(fitted.expected(state_BS, context_BX, odd)[0, 0, 1])
    for step in range(20):
        item = torch.tensor([[step % NUM_ITEMS]])
        liked = step % 2 == 1  # clicks odd items from now on
        signals = torch.tensor([[[20.0, 1.0, 1.0]]]) if liked else torch.tensor([[[2.0, 0.0, 0.0]]])
        state_BS = fitted.observe(state_BS, context_BX, item, signals, torch.ones(1, 1, dtype=torch.bool))
    after = float(fitted.expected(state_BS, context_BX, odd)[0, 0, 1])
    assert before < 0.4
    assert after > 0.6


@pytest.mark.parametrize("shown", ["disliked", "liked", "uniform"])
def test_poor_slates_do_not_turn_a_user_into_another(fitted: SequenceResponse, shown: str) -> None:
    """Tastes of the planted log never change: after fifty slates every video is worth what it was."""
    user_B = torch.arange(NUM_USERS).repeat(4)
    context_BX, probes_BK = contexts(len(user_B)), torch.arange(NUM_ITEMS).expand(len(user_B), -1)
    is_match_BK = (probes_BK % 2) == (user_B // 2 % 2).unsqueeze(1)
    state_BS, generator = fitted.start(user_B), torch.Generator().manual_seed(0)

    def clicks() -> list[float]:
        click_BK = fitted.expected(state_BS, context_BX, probes_BK)[..., 1]
        return [float(click_BK[is_match_BK].mean()), float(click_BK[~is_match_BK].mean())]

    before = clicks()
    tag_B1 = (user_B // 2 % 2).unsqueeze(1) if shown == "liked" else 1 - (user_B // 2 % 2).unsqueeze(1)
    for _ in range(50):
        number_BK = torch.randint(NUM_ITEMS // 2, (len(user_B), 6), generator=generator)
        any_BK = torch.randint(2, number_BK.shape, generator=generator)
        items_BK = 2 * number_BK + (any_BK if shown == "uniform" else tag_B1)
        uniform_BKJ = torch.rand(*items_BK.shape, fitted.num_draws, generator=generator).clamp(1e-6, 1 - 1e-6)
        signals_BKF = fitted.respond(state_BS, context_BX, items_BK, uniform_BKJ)
        state_BS = fitted.observe(state_BS, context_BX, items_BK, signals_BKF, torch.ones_like(items_BK) > 0)
    assert sum(clicks()) == pytest.approx(sum(before), rel=0.05)
    assert clicks() == pytest.approx(before, abs=0.05)


def make_fitting(sequences: Sequences, item_features_ND: Tensor) -> Fitting:
    """A fit of the planted log, from exposure on."""
    users, everything_P = torch.zeros(NUM_USERS, 0), torch.ones(len(sequences.item_P), dtype=torch.bool)
    dates = {"last_date": LAST_DAY, "keep": QUICK.history_length, "epochs": 1}
    exposure = fit_exposure(sequences, item_features_ND, users, everything_P, seed=0, **dates)
    return Fitting(sequences, item_features_ND, users, exposure, QUICK, seed=0)


@pytest.mark.parametrize("has_lists", [False, True])
def test_training_replays_the_log_as_the_simulation_plays(has_lists: bool) -> None:
    """States after the log: once by ``replay``, once by showing the exported model the log, slate by slate."""
    log, _ = planted_log(has_lists)
    sequences = read_sequences(log, 5)
    features = torch.from_numpy(item_features(log).values)
    fitting = make_fitting(sequences, features)
    # In a fit the lift of a row comes from a model of other users; here from the one that the simulation has.
    user_Ud, item_Nd = fitting.exposure.user_Ud, fitting.exposure.item_Nd
    lift_P = lift(user_Ud[sequences.user_P], item_Nd[sequences.item_P])
    fitting.exposure = dataclasses.replace(fitting.exposure, lift_P=lift_P)
    everything_P = torch.ones(len(log.rows), dtype=torch.bool)
    network = fitting.network(everything_P)
    with torch.no_grad():
        network.core.pair_effects.pair.normal_(generator=torch.Generator().manual_seed(1))
    _, state_US = network.replay(sequences, everything_P, 5)
    model = network.export(sequences, FIRST_DAY, 5)
    user_B = torch.arange(NUM_USERS)
    state_BS, size = model.start(user_B), SLATE if has_lists else 1
    item_UP = sequences.item_P.view(NUM_USERS, -1)
    signals_UPF = sequences.signals_PF.view(NUM_USERS, NUM_ROWS, -1)
    context_BX = contexts(NUM_USERS)
    for begin in range(0, NUM_ROWS, size):
        context_BX[:, CONTEXT.index("hour")] = sequences.hour_P.view(NUM_USERS, -1)[:, begin].float()
        places = slice(begin, begin + size)
        seen_BK = torch.ones(NUM_USERS, size, dtype=torch.bool)
        state_BS = model.observe(state_BS, context_BX, item_UP[:, places], signals_UPF[:, places], seen_BK)
    torch.testing.assert_close(state_BS[:, 1:], state_US, rtol=1e-4, atol=1e-4)


def test_signals_hang_together_as_in_the_log(fitted: SequenceResponse) -> None:
    user_B = torch.arange(NUM_USERS)
    items_BK = torch.arange(NUM_ITEMS).expand(NUM_USERS, -1)
    uniform = torch.rand(NUM_USERS, NUM_ITEMS, fitted.num_draws, generator=torch.Generator().manual_seed(0))
    drawn = fitted.respond(fitted.start(user_B), contexts(NUM_USERS), items_BK, uniform.clamp(1e-6, 1 - 1e-6))
    watch_time, click, like = drawn.flatten(0, 1).unbind(-1)
    assert ((watch_time >= 7.0) == (click == 1)).float().mean() > 0.98
    assert like[click == 1].mean() == pytest.approx(0.4, abs=0.06)
    assert like[click == 0].mean() < 0.03
    assert click.mean() == pytest.approx(0.5, abs=0.05)


def test_lists_are_learned_where_the_log_has_requests() -> None:
    dataset, _ = planted_log(has_lists=True)
    user_B = torch.arange(NUM_USERS)
    own = (user_B // 2 % 2).unsqueeze(1)
    repeated, fresh = own + torch.tensor([[0, 2]]), own + torch.tensor([[1, 2]])  # odd offsets change the tag
    same = other = 0.0
    for seed in (0, 1):  # one fit of seconds is off by a tenth as often as not
        model = fit_response(dataset, train_until=LAST_DAY, config=QUICK, seed=seed)
        state_BS, context_BX = model.start(user_B), contexts(NUM_USERS)
        same += float(model.expected(state_BS, context_BX, repeated)[:, 1, 1].mean()) / 2
        other += float(model.expected(state_BS, context_BX, fresh)[:, 1, 1].mean()) / 2
    assert same < 0.8 * 0.35 + 0.1
    assert other == pytest.approx(0.8, abs=0.12)


def test_labels_never_reach_their_own_prediction() -> None:
    """With the last rows' feedback turned around, users start exactly as before."""
    dataset, _ = planted_log()
    changed = dataset.rows.copy()
    late = changed["date"] == LAST_DAY
    changed.loc[late, "watch_time"] = 33.0
    changed.loc[late, "click"] = 1 - changed.loc[late, "click"]
    config = ResponseFitConfig(response=QUICK.response, train=TrainConfig(max_epochs=1), calibration_folds=0)
    states = [
        fit_response(log, train_until=LAST_DAY - 1, config=config).start(torch.arange(NUM_USERS))
        for log in (dataset, LoggedDataset("planted", changed, dataset.users, dataset.items, SIGNALS))
    ]
    assert torch.equal(*states)


def test_a_request_is_answered_from_the_state_at_its_beginning() -> None:
    dataset, _ = planted_log(has_lists=True)
    sequences = read_sequences(dataset)
    assert sequences.begin_P[:6].tolist() == [0, 0, 0, 3, 3, 3]
    assert sequences.earlier_PQ is not None
    items = dataset.rows["item"].tolist()
    assert sequences.earlier_PQ[:3].tolist() == [[-1, -1], [items[0], -1], [items[1], items[0]]]


def test_rows_of_one_millisecond_do_not_see_each_other() -> None:
    dataset, _ = planted_log()
    rows = dataset.rows.copy()
    rows.loc[[3, 4, 5], "time_ms"] = rows["time_ms"][3]
    assert rows["user"][2:7].nunique() == 1
    together = LoggedDataset("planted", rows, dataset.users, dataset.items, SIGNALS)
    sequences = read_sequences(together)
    assert sequences.earlier_PQ is None
    assert sequences.begin_P[:8].tolist() == [0, 1, 2, 3, 3, 3, 6, 7]
    features = torch.from_numpy(item_features(dataset).values)
    fitting = make_fitting(sequences, features)
    network = fitting.network(torch.ones(len(rows), dtype=torch.bool))
    label_P = sequences.user_P == rows["user"][0]
    (batch,) = sequence_batches(sequences, label_P, NUM_USERS)
    state_TS = network.states(sequences, batch, network.replay(sequences, label_P, 50)[0], 50)[0][0]
    assert torch.equal(state_TS[3], state_TS[4])
    assert torch.equal(state_TS[3], state_TS[5])
    assert not torch.equal(state_TS[5], state_TS[6])


def test_users_start_a_simulation_as_they_come_to_their_next_row() -> None:
    dataset, _ = planted_log()
    features = torch.from_numpy(item_features(dataset).values)
    fitting = make_fitting(read_sequences(dataset, QUICK.history_length), features)
    sequences, is_last_P = fitting.sequences, fitting.sequences.date_P == LAST_DAY
    network = fitting.network(~is_last_P)
    _, begin_BS = network.replay(sequences, ~is_last_P, 50)
    (batch,) = sequence_batches(sequences, is_last_P, NUM_USERS)
    first = batch.label_BT.int().argmax(1)
    state_BTS, _ = network.states(sequences, batch, network.replay(sequences, is_last_P, 50)[0], 50)
    state_BS = state_BTS[torch.arange(NUM_USERS), first]
    torch.testing.assert_close(begin_BS[batch.user_B], state_BS, rtol=1e-5, atol=1e-5)
    assert (begin_BS[:, 0] == NUM_ROWS * 5 // 6).all()  # counts the rows of five days


def test_a_run_is_of_one_log_to_the_last_label() -> None:
    """Run folders are told apart by this: a flipped label is another run, though name and size are the same."""
    dataset, _ = planted_log()
    identities = []
    for label in (0, 1):
        rows = dataset.rows.copy()
        rows.loc[rows.index[11], "like"] = label
        sequences = read_sequences(dataclasses.replace(dataset, rows=rows))
        fitting = make_fitting(sequences, torch.zeros(NUM_ITEMS, 1))
        labels_P = sequences.date_P < LAST_DAY
        identities += [fitting.identity(labels_P, None), fitting.identity(labels_P, ~labels_P)]
        labels_P[5] = False
        identities.append(fitting.identity(labels_P, None))
    assert len({str(identity) for identity in identities}) == 6


def test_batches_hold_every_labelled_row_once() -> None:
    dataset, _ = planted_log()
    sequences = read_sequences(dataset)
    label_P = (sequences.date_P < 20220404) & (sequences.user_P % 3 > 0)
    for generator in (None, torch.Generator().manual_seed(0)):
        rows = [batch.row_BT[batch.label_BT] for batch in sequence_batches(sequences, label_P, 7, generator)]
        assert torch.equal(torch.cat(rows).sort().values, torch.nonzero(label_P).squeeze(-1))


class _KilledError(Exception):
    pass


def _train_a_line(run_dir: Path | None, kill_in_epoch: int | None = None, seed: int = 0) -> torch.Tensor:
    model = torch.nn.Linear(2, 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    y = x @ torch.tensor([[2.0], [-1.0]])
    epochs = []

    def batches(generator: torch.Generator) -> list[torch.Tensor]:
        epochs.append(1)
        return list(torch.randperm(64, generator=generator).split(16))

    def loss(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if len(epochs) - 1 == kill_in_epoch:
            raise _KilledError
        noise = 0.01 * torch.randn(len(batch), 1, generator=generator)
        return ((model(x[batch]) - y[batch] + noise) ** 2).mean()

    def validate() -> float:
        return float(((model(x) - y) ** 2).mean())

    config = TrainConfig(max_epochs=20, learning_rate=0.1, learning_rate_decay=0.95, weight_decay=0.0)
    train(model, batches=batches, loss=loss, validate=validate, config=config, seed=seed, run_dir=run_dir)
    return torch.cat([model.weight.detach().flatten(), model.bias.detach()])


@pytest.mark.parametrize("kill_in_epoch", [0, 1, 5])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, kill_in_epoch: int) -> None:
    whole = _train_a_line(None)
    with pytest.raises(_KilledError):
        _train_a_line(tmp_path, kill_in_epoch)
    assert torch.equal(_train_a_line(tmp_path), whole)
    assert torch.equal(_train_a_line(tmp_path), whole)  # a finished run is only read
    torch.testing.assert_close(whole, torch.tensor([2.0, -1.0, 0.0]), atol=0.15, rtol=0)


def test_a_run_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    _train_a_line(tmp_path)
    with pytest.raises(ValueError, match=r"holds other work \(seed was 0, now 1\)"):
        _train_a_line(tmp_path, seed=1)


def test_days_outside_the_log_are_refused() -> None:
    dataset, _ = planted_log()
    with pytest.raises(ValueError, match="the log covers 20220401 to 20220406"):
        fit_response(dataset, train_until=20210101)
    with pytest.raises(ValueError, match=r"0 rows to choose by on \[20230101\], .* choose days and users with rows"):
        fit_response(dataset, train_until=LAST_DAY, validation_dates=[20230101])
