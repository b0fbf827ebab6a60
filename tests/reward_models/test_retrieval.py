"""The candidate source against brute force and a planted taste."""

import os

import numpy as np
import pandas as pd
import pytest
import torch

from recsim_env.data.histories import user_histories
from recsim_env.data.requests import logged_requests
from recsim_env.data.schema import LoggedDataset
from recsim_env.types import NO_ITEM, Request
from reward_models.recommender.encoding import EncodedRequests, encode_requests
from reward_models.recommender.retrieval import RetrievalConfig, TwoTowerCandidates, fit_retrieval, held_out_hits

NUM_USERS, NUM_ITEMS, NUM_TAGS, NUM_COLD = 200, 600, 5, 100
ITEM_FEATURES_ND = torch.nn.functional.one_hot(torch.arange(NUM_ITEMS) % NUM_TAGS, NUM_TAGS).float()
USER_FEATURES_UD = torch.zeros(NUM_USERS, 1)
FEATURES = {"item_features_ND": ITEM_FEATURES_ND, "user_features_UD": USER_FEATURES_UD}


def planted_log(seed: int = 0, rows_per_user: int = 60) -> LoggedDataset:
    """Each user clicks on one tag only; some items are popular, the last hundred were never shown."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(NUM_USERS), rows_per_user)
    popularity = 1.0 / np.arange(1, NUM_ITEMS - NUM_COLD + 1)
    popularity = rng.permutation(popularity / popularity.sum())
    item = rng.choice(NUM_ITEMS - NUM_COLD, size=len(user), p=popularity)
    loved = user % NUM_TAGS == item % NUM_TAGS
    day = np.tile(np.arange(rows_per_user) // (rows_per_user // 4), NUM_USERS)
    seconds = day * 86_400 + np.tile(np.arange(rows_per_user), NUM_USERS) * 60
    rows = pd.DataFrame(
        {
            "user": user.astype(np.int32),
            "item": item.astype(np.int32),
            "time_ms": 1_650_844_800_000 + seconds * 1000,
            "date": (20220425 + day).astype(np.int32),
            "watch_time": np.where(loved, 20.0, 2.0).astype(np.float32),
            "duration": np.full(len(user), 60.0, dtype=np.float32),
            "click": (loved & (rng.random(len(user)) < 0.8)).astype(np.int8),
        }
    )
    users = pd.DataFrame({"user_id": np.arange(NUM_USERS)})
    items = pd.DataFrame({"item_id": np.arange(NUM_ITEMS), "duration": 60.0})
    return LoggedDataset("planted", rows, users, items, ("watch_time", "click"))


@pytest.fixture(scope="module")
def source() -> TwoTowerCandidates:
    config = RetrievalConfig(num_negatives=256, batch_size=256, hidden_width=32)
    return fit_retrieval(encode(planted_log()), config=config, seed=0)


def encode(dataset: LoggedDataset, until: int = 20220427, **features: torch.Tensor) -> EncodedRequests:
    requests = logged_requests(dataset, **(features or FEATURES), last_date=until)
    return encode_requests(requests, user_histories(dataset, until + 1))


def request_at_the_end_of_the_fitted_log(user_B: torch.Tensor) -> Request:
    """Only what a source reads of a request is filled."""
    history = user_histories(planted_log(), 20220428).window(user_B, 100)
    unread = torch.zeros(0)
    return Request(user_B, USER_FEATURES_UD[user_B], unread, *history, *(5 * (unread,)))


def nothing_shown(batch: int) -> torch.Tensor:
    return torch.full((batch, 3), NO_ITEM)


def popularity_source(
    source: TwoTowerCandidates, dataset: LoggedDataset, signal: str, last_date: int
) -> TwoTowerCandidates:
    """The same machinery with item levels alone: log counts of positives up to a day."""
    rows = dataset.rows[(dataset.rows["date"] <= last_date) & (dataset.rows[signal] == 1)]
    items_Nd = torch.zeros_like(source.tensors()["items_Nd"])
    items_Nd[:, -1] = torch.log1p(torch.from_numpy(np.bincount(rows["item"], minlength=len(items_Nd))).float())
    return TwoTowerCandidates({**source.config(), "exploration": 0.0}, {**source.tensors(), "items_Nd": items_Nd})


def test_candidates_are_the_brute_force_top_without_the_items_shown(source):
    quiet = source.with_exploration(0.0)
    user_B = torch.arange(40)
    shown_BM = torch.randint(-1, NUM_ITEMS, (40, 80), generator=torch.Generator().manual_seed(0))
    items_BC, score_BC = quiet.retrieve(quiet.start(user_B), shown_BM, torch.full((40,), 0.5), 30)
    request = request_at_the_end_of_the_fitted_log(user_B)
    every_BN = quiet.score_request(request, torch.arange(NUM_ITEMS).expand(40, -1))
    for row in range(40):
        allowed = [i for i in every_BN[row].argsort(descending=True).tolist() if i not in set(shown_BM[row].tolist())]
        assert set(items_BC[row].tolist()) == set(allowed[:30])
        torch.testing.assert_close(score_BC[row], every_BN[row, items_BC[row]], rtol=1e-4, atol=1e-4)
        assert bool((score_BC[row].diff() <= 0).all())


def test_items_already_shown_return_only_when_nothing_else_is_left(source):
    shown_BM = torch.arange(NUM_ITEMS - 5).unsqueeze(0)
    items_BC, score_BC = source.retrieve(source.start(torch.tensor([0])), shown_BM, torch.tensor([0.3]), 8)
    assert set(items_BC[0, :5].tolist()) == set(range(NUM_ITEMS - 5, NUM_ITEMS))
    assert len(set(items_BC[0].tolist())) == 8
    assert bool(torch.isfinite(score_BC).all())
    everything, _ = source.retrieve(source.start(torch.tensor([0])), shown_BM, torch.tensor([0.3]), NUM_ITEMS)
    assert sorted(everything[0].tolist()) == list(range(NUM_ITEMS))


def test_rows_do_not_depend_on_the_batch(source):
    user_B = torch.arange(120)
    draws_B = torch.rand(120, generator=torch.Generator().manual_seed(1))
    whole = source.retrieve(source.start(user_B), nothing_shown(120), draws_B, 50)
    for batch in (1, 2, 3, 7, 15, 64):
        part = source.retrieve(source.start(user_B[:batch]), nothing_shown(batch), draws_B[:batch], 50)
        assert all(torch.equal(a, b[:batch]) for a, b in zip(part, whole, strict=True)), batch


def test_noise_is_addressed_and_dialled(source):
    state_BS = source.start(torch.tensor([3, 3, 3]))
    draws_B = torch.tensor([0.2, 0.2, 0.7])
    items_BC, _ = source.with_exploration(1.0).retrieve(state_BS, nothing_shown(3), draws_B, 40)
    assert torch.equal(items_BC[0], items_BC[1])
    assert not torch.equal(items_BC[0], items_BC[2])
    quiet_BC, _ = source.with_exploration(0.0).retrieve(state_BS, nothing_shown(3), draws_B, 40)
    assert torch.equal(quiet_BC[0], quiet_BC[2])


def test_at_temperature_one_candidates_are_drawn_from_the_softmax_of_the_scores(source):
    """Gumbel noise on log-probabilities: the best item is a draw; its frequencies are known."""
    noisy = source.with_exploration(1.0)
    draws = 6000
    user_B = torch.full((draws,), 11)
    uniform_B = torch.rand(draws, generator=torch.Generator().manual_seed(5))
    items_BC, _ = noisy.retrieve(noisy.start(user_B), nothing_shown(draws), uniform_B, 1)
    by_tag = torch.bincount(items_BC[:, 0] % NUM_TAGS, minlength=NUM_TAGS) / draws
    quiet = source.with_exploration(0.0)
    items_BC, score_BC = quiet.retrieve(quiet.start(user_B[:1]), nothing_shown(1), uniform_B[:1], NUM_ITEMS)
    chance_N = torch.zeros(NUM_ITEMS).scatter(0, items_BC[0], torch.softmax(score_BC[0], dim=0))
    expected = torch.stack([chance_N[torch.arange(NUM_ITEMS) % NUM_TAGS == tag].sum() for tag in range(NUM_TAGS)])
    torch.testing.assert_close(by_tag, expected, rtol=0, atol=0.08)  # the table has 600 distinct stretches


def test_a_planted_taste_is_found_and_cold_items_follow_their_content(source):
    quiet = source.with_exploration(0.0)
    user_B = torch.arange(NUM_USERS)
    items_BC, _ = quiet.retrieve(quiet.start(user_B), nothing_shown(NUM_USERS), torch.zeros(NUM_USERS), 50)
    share = float((items_BC % NUM_TAGS == user_B.unsqueeze(1) % NUM_TAGS).float().mean())
    assert share > 0.8  # chance: 0.2
    cold_BC = torch.arange(NUM_ITEMS - NUM_COLD, NUM_ITEMS).expand(NUM_USERS, -1)
    score_BC = quiet.score_request(request_at_the_end_of_the_fitted_log(user_B), cold_BC)
    best_cold_B = score_BC.argmax(dim=1) + NUM_ITEMS - NUM_COLD
    assert float((best_cold_B % NUM_TAGS == user_B % NUM_TAGS).float().mean()) > 0.8


def test_recall_of_the_future_is_above_popularity(source):
    future = logged_requests(planted_log(), **FEATURES, first_date=20220428)
    hits, users = held_out_hits(source.with_exploration(0.0), future, 20, "click")
    by_counts = popularity_source(source, planted_log(), "click", last_date=20220427)
    popular, same_users = held_out_hits(by_counts, future, 20, "click")
    assert torch.equal(users, same_users)
    assert float(hits.float().mean()) > float(popular.float().mean()) + 0.05


def test_saved_and_restored_candidates_are_the_same(source):
    copy = TwoTowerCandidates.restore(source.config(), {k: v.clone() for k, v in source.tensors().items()})
    user_B, draws_B = torch.arange(9), torch.linspace(0.1, 0.9, 9)
    first = source.retrieve(source.start(user_B), nothing_shown(9), draws_B, 50)
    second = copy.retrieve(copy.start(user_B), nothing_shown(9), draws_B, 50)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_bad_settings_and_requests_are_named(source):
    with pytest.raises(ValueError, match=r"num_candidates must lie in 1..600"):
        source.retrieve(source.start(torch.tensor([0])), nothing_shown(1), torch.tensor([0.5]), 601)
    with pytest.raises(ValueError, match="exploration must be at least 0"):
        RetrievalConfig(exploration=-1.0)
    log = planted_log()
    unwatched = LoggedDataset("unwatched", log.rows, log.users, log.items, ("click",))
    with pytest.raises(ValueError, match="none of positive_signals"):
        fit_retrieval(encode(unwatched), config=RetrievalConfig(positive_signals=("follow",)))


@pytest.mark.slow
def test_recall_on_the_real_log_is_above_popularity():
    folder = os.environ.get("RECSIM_DATA")
    if not folder:
        pytest.skip("RECSIM_DATA is not set: no real log to fit")
    from recsim_env.data.features import item_features, user_features
    from recsim_env.data.readers import load_kuairand

    dataset = load_kuairand(f"{folder}/kuairand_pure")
    features = {
        "item_features_ND": torch.as_tensor(item_features(dataset, None).values),
        "user_features_UD": torch.as_tensor(user_features(dataset).values),
    }
    source = fit_retrieval(encode(dataset, 20220504, **features)).with_exploration(0.0)
    future = logged_requests(dataset, **features, first_date=20220505)
    hits, users = held_out_hits(source, future, 50, "long_view")
    popular, _ = held_out_hits(popularity_source(source, dataset, "long_view", 20220504), future, 50, "long_view")
    gain_R = (hits.float() - popular.float()).numpy()
    codes = np.unique(users.numpy(), return_inverse=True)[1]
    gain_U, count_U = np.bincount(codes, gain_R), np.bincount(codes)
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(count_U), len(count_U)) for _ in range(500)]
    low = np.percentile([gain_U[d].sum() / count_U[d].sum() for d in draws], 2.5)
    assert low > 0
