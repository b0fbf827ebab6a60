"""The reranking protocol: what lists are made of, and that nothing of the answer leaks."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from agents.offline.controls import with_noisy_scores, with_shuffled_labels, without_scores
from agents.offline.data import RerankData
from agents.offline.protocol import HistoryScorer, ProtocolConfig, build_rerank_data
from agents.offline.retriever import FactorisationConfig, fit_matrix_factorisation
from recsim_env.data import load_log
from recsim_env.data.features import item_features
from recsim_env.types import NO_ITEM
from tests.helpers.planted_ratings import HOUR_MS, START_MS, log_of, planted_ratings

REAL = os.environ.get("RECSIM_DATA", "")
PROTOCOLS = ["papers", "honest"]


def small_config(protocol: str, **changes: object) -> ProtocolConfig:
    return ProtocolConfig(protocol=protocol, positive="like", num_candidates=20, **changes)


def fit(user_R: torch.Tensor, item_R: torch.Tensor, num_items: int) -> HistoryScorer:
    return fit_matrix_factorisation(user_R, item_R, num_items, FactorisationConfig(vector_width=6, sweeps=3))


@pytest.fixture(scope="module", params=PROTOCOLS)
def data(request: pytest.FixtureRequest) -> RerankData:
    return build_rerank_data(planted_ratings(), fit, small_config(request.param))


def lists_by_hand(rows: pd.DataFrame) -> dict[tuple[int, int], pd.DataFrame]:
    """Each user's rows in sixes from the last one; the key is the user and the first row's time."""
    found = {}
    for user, own in rows.groupby("user"):
        for last in range(len(own), 6, -6):
            found[user, int(own["time_ms"].iloc[last - 6])] = own.iloc[last - 6 : last]
    return found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_requests_are_the_users_last_sixes_after_what_came_before(protocol: str) -> None:
    dataset = planted_ratings()
    data = build_rerank_data(dataset, fit, small_config(protocol))
    by_hand = lists_by_hand(dataset.rows)
    hours = {}
    for part in (data.train, data.validation, data.test):
        batch = part.all()
        for b in range(len(part)):
            user = int(batch.request.user_B[b])
            history = [i for i in batch.request.history_BH[b].tolist() if i != NO_ITEM]
            own = dataset.rows[dataset.rows["user"] == user]
            last_seen = own["time_ms"][own["item"] == history[-1]].item()
            start = int(own["time_ms"][own["time_ms"] > last_seen].min())
            target = by_hand[user, start]
            earlier = own[own["time_ms"] < start]
            assert history == earlier["item"].tolist()[-20:]
            assert batch.request.history_feedback_BHF[b, -len(history) :, 0].tolist() == earlier["like"].tolist()[-20:]
            liked = set(target["item"][target["like"] == 1])
            found = set(batch.request.candidates_BC[b, batch.label_BC[b] == 1].tolist())
            candidates = set(batch.request.candidates_BC[b].tolist())
            assert found == liked & candidates
            assert batch.num_positives_B[b] == len(liked) > 0
            assert not candidates & set(earlier["item"])
            assert len(candidates) == 20
            if protocol == "papers":
                assert set(target["item"]) <= candidates
            hours[user, start] = part
    assert len(hours) == len(data.train) + len(data.validation) + len(data.test) == data.counts["lists"]
    latest = {
        name: max(t for (_, t), p in hours.items() if p is getattr(data, name)) for name in ("train", "validation")
    }
    first_test = min(t for (_, t), part in hours.items() if part is data.test)
    assert max(latest.values()) < first_test
    if protocol == "honest":
        assert latest["train"] < min(t for (_, t), part in hours.items() if part is data.validation)
    else:
        assert not set(data.train.user_L.tolist()) & set(data.validation.user_L.tolist())


def test_candidates_stand_in_random_order(data: RerankData) -> None:
    batch = data.train.all()
    place = torch.arange(20.0).expand_as(batch.label_BC)[batch.label_BC == 1]
    assert abs(place.mean() - 9.5) < 4 * np.sqrt(399 / 12 / len(place))
    best = batch.request.retriever_score_BC.argmax(dim=1).float()
    assert abs(best.mean() - 9.5) < 4 * np.sqrt(399 / 12 / len(best))


def test_scores_are_scaled_within_requests(data: RerankData) -> None:
    score = data.test.all().request.retriever_score_BC
    assert (score.amin(dim=1) == 0).all()
    assert (score.amax(dim=1) == 1).all()


def test_item_features_count_what_came_before_their_stage(data: RerankData) -> None:
    dataset = planted_ratings()
    rows = dataset.rows
    stage = int(data.test.stage_L[-1])
    shown = data.test.batch(torch.where(data.test.stage_L == stage)[0])
    begins = []
    for user, items, label in zip(shown.request.user_B, shown.request.candidates_BC, shown.label_BC, strict=True):
        found = rows[(rows["user"] == int(user)) & rows["item"].isin(items[label == 1].tolist())]
        begins.append(int(found["date"].min()))
    day = min(begins)
    cut = dataclasses.replace(dataset, rows=rows[rows["date"] < day].reset_index(drop=True))
    expected = torch.from_numpy(item_features(cut, day).values)
    assert torch.equal(data.test.tables.item_features_SND[stage], expected)


def test_labels_can_be_dealt_anew(data: RerankData) -> None:
    control = with_shuffled_labels(data, torch.Generator().manual_seed(0))
    assert torch.equal(control.train.label_LC.sum(dim=1), data.train.label_LC.sum(dim=1))
    kept = (control.train.label_LC * data.train.label_LC).sum() / data.train.label_LC.sum()
    assert abs(kept - (data.train.label_LC.mean())) < 0.05
    assert control.test is data.test


def test_scores_can_be_made_noisy_or_hidden(data: RerankData) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = data.test.score_LC
    torch.testing.assert_close(with_noisy_scores(data, 0.0, generator).test.score_LC, clean)
    little, much = (with_noisy_scores(data, sigma, generator).test.score_LC for sigma in (0.05, 5.0))
    correlation = [float(torch.corrcoef(torch.stack([clean.flatten(), s.flatten()]))[0, 1]) for s in (little, much)]
    assert correlation[0] > 0.9
    assert abs(correlation[1]) < 0.2
    assert much.amin() == 0
    assert much.amax() == 1
    assert without_scores(data).test.score_LC.abs().max() == 0
    with pytest.raises(ValueError, match="sigma must be at least 0"):
        with_noisy_scores(data, -1.0, generator)


def with_last_list_replaced(protocol: str) -> tuple[RerankData, RerankData, int]:
    """The data before and after the last list of the latest user got other items, and that user."""
    dataset = planted_ratings()
    rows = dataset.rows
    user = int(rows["user"][rows["time_ms"].idxmax()])
    own = rows[rows["user"] == user]
    unseen = np.setdiff1d(np.arange(160), own["item"])[:6].astype(np.int32)
    changed = rows.copy()
    changed.loc[own.index[-6:], "item"] = unseen
    changed.loc[own.index[-6:], "like"] = np.int8(1)
    config = small_config(protocol)
    after = dataclasses.replace(dataset, rows=changed)
    return build_rerank_data(dataset, fit, config), build_rerank_data(after, fit, config), user


def test_a_list_changes_nothing_that_it_is_judged_with() -> None:
    before, after, user = with_last_list_replaced("honest")
    assert len(before.test) == len(after.test)
    last = torch.where(before.test.user_L == user)[0][-1:]
    ours, theirs = before.test.batch(last), after.test.batch(last)
    assert all(torch.equal(a, b) for a, b in zip(ours.request, theirs.request, strict=True))
    assert theirs.num_positives_B == 6 != ours.num_positives_B
    for name in ("train", "validation"):
        for a, b in zip(getattr(before, name).all().request, getattr(after, name).all().request, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_retriever_is_fitted_on_what_came_before_its_stage(protocol: str) -> None:
    rows = planted_ratings().rows
    asked = []

    def spy(user_R: torch.Tensor, item_R: torch.Tensor, num_items: int) -> HistoryScorer:
        asked.append(set(zip(user_R.tolist(), item_R.tolist(), strict=True)))
        return fit(user_R, item_R, num_items)

    data = build_rerank_data(planted_ratings(), spy, small_config(protocol))
    time_of = {(u, i): t for u, i, t in rows[["user", "item", "time_ms"]].itertuples(index=False)}
    liked = {(u, i) for u, i in rows.loc[rows["like"] == 1, ["user", "item"]].itertuples(index=False)}
    assert len(asked) == 10
    for part in (data.train, data.validation, data.test):
        batch = part.all()
        for b in range(len(part)):
            shown = batch.request.candidates_BC[b, batch.label_BC[b] == 1].tolist()
            pairs = asked[int(part.stage_L[b])]
            assert pairs <= liked
            assert all(max(time_of[pair] for pair in pairs) < time_of[int(part.user_L[b]), i] for i in shown)
    stage = int(data.test.stage_L[-1])
    count = torch.bincount(torch.tensor([item for _, item in asked[stage]]), minlength=160).float()
    assert torch.equal(data.popularity_SN[stage], count)


def test_moments_do_not_see_each_other() -> None:
    """Seven ratings of one moment: the last six are the list, and the first is not in its history."""
    rows = planted_ratings().rows
    frame = rows[["user", "item", "time_ms", "like"]].copy()
    own = frame.index[frame["user"] == 0]
    moment = START_MS + 2_001 * HOUR_MS
    frame.loc[own[-7:], ["time_ms", "like"]] = [moment, 1]
    data = build_rerank_data(log_of(frame, 60, 160), fit, small_config("honest"))
    batch = data.test.batch(torch.where(data.test.user_L == 0)[0][-1:])
    assert batch.num_positives_B == 6
    assert batch.request.history_BH[0].tolist() == frame.loc[own[-27:-7], "item"].tolist()


def test_the_core_filter_leaves_enough_of_everyone() -> None:
    kept = []

    def spy(user_R: torch.Tensor, item_R: torch.Tensor, num_items: int) -> HistoryScorer:
        kept.append(item_R.unique())
        return fit(user_R, item_R, num_items)

    rows = planted_ratings().rows
    rare = set(rows["item"].value_counts().loc[lambda count: count < 12].index)
    assert rare
    build_rerank_data(planted_ratings(), spy, small_config("papers", core=12))
    assert not rare & set(torch.cat(kept).tolist())


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="protocol must be one of"):
        ProtocolConfig(protocol="both")
    with pytest.raises(ValueError, match="num_candidates >= list_size, got 5 and 6"):
        ProtocolConfig(num_candidates=5)
    with pytest.raises(ValueError, match="honest protocol has no core filter"):
        ProtocolConfig(protocol="honest", core=5)
    with pytest.raises(ValueError, match="shares between 0 and 1"):
        ProtocolConfig(background=1.0)
    with pytest.raises(ValueError, match=r"one of \['like'\] .* got 'click'"):
        build_rerank_data(planted_ratings(), fit, ProtocolConfig(positive="click"))
    with pytest.raises(ValueError, match="no interaction is left by core=500"):
        build_rerank_data(planted_ratings(), fit, small_config("papers", core=500))
    with pytest.raises(ValueError, match="fewer than 200 items to choose from"):
        build_rerank_data(planted_ratings(), fit, ProtocolConfig(positive="like", num_candidates=200))
    with pytest.raises(ValueError, match="needs 10 at least"):
        build_rerank_data(planted_ratings(num_users=2, per_user=12), fit, small_config("honest"))


@pytest.mark.skipif(not REAL, reason="set RECSIM_DATA to the folder with ml_latest_small")
def test_the_papers_protocol_gives_positives_away() -> None:
    """Its negatives are the retriever's favourites, so sorting by the lowest score finds most positives."""
    log = load_log(Path(REAL) / "ml_latest_small")
    config = ProtocolConfig(protocol="papers", positive="like", core=5)
    batch = build_rerank_data(log, fit, config).test.all()
    lowest = (-batch.request.retriever_score_BC).topk(6).indices
    assert batch.label_BC.gather(1, lowest).sum() / batch.num_positives_B.sum() > 0.6
