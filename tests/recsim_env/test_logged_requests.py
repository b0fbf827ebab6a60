"""Logged requests against a slow reference that walks over the log row by row."""

import numpy as np
import pandas as pd
import pytest
import torch

from recsim_env.data.requests import logged_requests
from recsim_env.data.schema import LoggedDataset
from recsim_env.types import CONTEXT, NO_ITEM

MONDAY_MIDNIGHT_UTC_MS = 1_650_844_800_000  # 2022-04-25 00:00
SIGNALS = ("watch_time", "click", "like")


def random_log(seed: int, *, request_key: bool, num_users: int = 7, num_items: int = 20) -> LoggedDataset:
    """A log with equal times, unknown watch times and a pre-log history that knows only ``like``."""
    rng = np.random.default_rng(seed)
    count = 120
    # Few distinct moments, so that rows of one user often share theirs.
    rows = pd.DataFrame(
        {
            "user": rng.integers(0, num_users, count).astype(np.int32),
            "item": rng.integers(0, num_items, count).astype(np.int32),
            "time_ms": MONDAY_MIDNIGHT_UTC_MS + rng.integers(0, 25, count) * 3_700_000,
            "watch_time": np.where(rng.random(count) < 0.2, np.nan, rng.random(count) * 50).astype(np.float32),
            "duration": np.full(count, 30.0, dtype=np.float32),
            "click": rng.integers(0, 2, count).astype(np.int8),
            "like": rng.integers(0, 2, count).astype(np.int8),
            "tab": rng.integers(0, 3, count).astype(np.int8),
        }
    )
    rows["date"] = np.int32(20220425) + (rows["time_ms"] - MONDAY_MIDNIGHT_UTC_MS).to_numpy() // 86_400_000
    rows["date"] = rows["date"].astype(np.int32)
    rows = rows.sort_values(["user", "time_ms"], kind="stable").reset_index(drop=True)
    if request_key:
        moments = rows.groupby(["user", "time_ms"]).ngroup()
        rows["request"] = moments.astype(np.int64) + 1000
        rows["place"] = rows.groupby("request").cumcount().astype(np.int8)
        rows["session"] = (moments // 3).astype(np.int64)
    history = pd.DataFrame(
        {
            "user": np.repeat(np.arange(num_users, dtype=np.int32), 4)[::-1],
            "item": rng.integers(0, num_items, 4 * num_users).astype(np.int32),
            "position": np.tile(np.arange(4)[::-1], num_users),
            "like": rng.integers(0, 2, 4 * num_users).astype(np.int8),
        }
    )
    return LoggedDataset(
        "random",
        rows,
        pd.DataFrame({"user_id": np.arange(num_users)}),
        pd.DataFrame({"item_id": np.arange(num_items), "duration": 30.0}),
        SIGNALS,
        history,
    )


def build(dataset: LoggedDataset, **settings):
    items, users = len(dataset.items), len(dataset.users)
    return logged_requests(
        dataset,
        item_features_ND=torch.arange(items, dtype=torch.float32).unsqueeze(1),
        user_features_UD=torch.arange(users, dtype=torch.float32).unsqueeze(1) * 10,
        **{"history_length": 6, **settings},
    )


def reference(dataset: LoggedDataset, length: int) -> list[dict]:
    """What each request must be, by plain loops."""
    rows, shown = dataset.rows.to_dict("records"), set()
    for index, row in enumerate(rows):
        key = (row["user"], row.get("session", -index), row["item"])
        if key in shown:  # what a session showed before tells nothing
            row |= {"watch_time": np.nan, "like": 0}
        shown.add(key)
    keys = [(r["user"], r.get("request", i)) for i, r in enumerate(rows)]
    answers = []
    for key in dict.fromkeys(keys):
        slate = [r for r, k in zip(rows, keys, strict=True) if k == key]
        past = dataset.history[dataset.history["user"] == key[0]].sort_values("position").to_dict("records")
        past += [r for r in rows if r["user"] == key[0] and r["time_ms"] < slate[0]["time_ms"]]
        past = past[-length:]
        answers.append(
            {
                "user": key[0],
                "items": [r["item"] for r in slate],
                "watch": [r["watch_time"] for r in slate],
                "history": [NO_ITEM] * (length - len(past)) + [r["item"] for r in past],
                "likes": [0.0] * (length - len(past)) + [float(r["like"]) for r in past],
                "known": [0] * (length - len(past)) + [int(np.isfinite(r.get("watch_time", np.nan))) for r in past],
                "tab": slate[0]["tab"],
                "time_ms": slate[0]["time_ms"],
            }
        )
    return answers


@pytest.mark.parametrize("request_key", [False, True])
def test_slates_and_histories_equal_the_slow_reference(request_key):
    dataset = random_log(3, request_key=request_key)
    requests, answers = build(dataset), reference(dataset, length=6)
    assert len(requests) == len(answers)
    for index, answer in enumerate(answers):
        batch = requests.batch(torch.tensor([index]))
        request = batch.request
        assert int(request.user_B[0]) == answer["user"]
        assert batch.items_BK[0].tolist() == request.candidates_BC[0].tolist() == answer["items"]
        assert request.history_BH[0].tolist() == answer["history"]
        assert request.history_feedback_BHF[0, :, 2].tolist() == answer["likes"]
        assert request.history_known_BHF[0, :, 0].int().tolist() == answer["known"]
        assert batch.known_BKF[0, :, 0].tolist() == np.isfinite(answer["watch"]).tolist()
        np.testing.assert_allclose(batch.feedback.signals_BKF[0, :, 0], np.nan_to_num(answer["watch"]))
        assert request.candidate_features_BCD[0, :, 0].tolist() == answer["items"]
        assert float(request.user_features_BD[0, 0]) == answer["user"] * 10
        assert float(request.context_BX[0, 0]) == answer["tab"]


def test_no_request_sees_feedback_of_its_own_moment():
    dataset = random_log(5, request_key=False)
    before = [build(dataset).batch(torch.tensor([i])).request for i in range(len(dataset.rows))]
    for i in (10, 40, 80):
        changed = dataset.rows.copy()
        now = (changed["user"] == changed["user"][i]) & (changed["time_ms"] >= changed["time_ms"][i])
        changed.loc[now, ["click", "like"]] = 1 - changed.loc[now, ["click", "like"]]
        altered = LoggedDataset("altered", changed, dataset.users, dataset.items, dataset.signals, dataset.history)
        after = build(altered).batch(torch.tensor([i])).request
        assert all(torch.equal(a, b) for a, b in zip(before[i], after, strict=True))


def test_context_of_a_known_moment_and_of_sessions():
    # Monday 10:30 local (UTC+8), 20 s later, the next day twice; another user around midnight shows the offset.
    seconds = np.array([9_000, 9_020, 95_400, 95_430, 55_800, 59_400])
    rows = pd.DataFrame(
        {
            "user": np.array([0, 0, 0, 0, 1, 1], dtype=np.int32),
            "item": np.arange(6, dtype=np.int32),
            "time_ms": MONDAY_MIDNIGHT_UTC_MS + seconds * 1000,
            "date": np.array([20220425, 20220425, 20220426, 20220426, 20220425, 20220426], dtype=np.int32),
            "watch_time": np.ones(6, dtype=np.float32),
            "duration": np.ones(6, dtype=np.float32),
            "request": np.arange(6, dtype=np.int64),
            "place": np.zeros(6, dtype=np.int8),
            "session": np.array([5, 5, 9, 9, 5, 5], dtype=np.int64),
            "tab": np.ones(6, dtype=np.int8),
        }
    )
    users, items = pd.DataFrame({"user_id": [0, 1]}), pd.DataFrame({"item_id": range(6), "duration": 1.0})
    dataset = LoggedDataset("five", rows, users, items, ("watch_time",))
    batch = next(build(dataset, users=[0]).batches(4))
    fields = dict(zip(CONTEXT, batch.request.context_BX.T.tolist(), strict=True))
    assert fields["hour"] == [10, 10, 10, 10]
    assert fields["weekday"] == [0, 0, 1, 1]
    assert fields["request_index"] == [0, 1, 0, 1]
    assert fields["session_index"] == [0, 0, 1, 1]
    assert fields["seconds_since_request"] == [0, 20, 0, 30]
    assert fields["seconds_since_session"] == [0, 0, 86380, 86380]
    assert batch.feedback.left_B.tolist() == [False, True, False, True]


def test_every_request_comes_once_in_batches_of_one_shape_and_shuffles_by_generator():
    requests = build(random_log(8, request_key=True))

    def visits(generator):
        found = []
        for index_B in requests.batch_indices(4, generator):
            assert len(requests.slate_size_L[index_B].unique()) == 1
            assert len(index_B) <= 4
            found += index_B.tolist()
        return found

    first, again = (visits(torch.Generator().manual_seed(1)) for _ in range(2))
    assert sorted(first) == list(range(len(requests)))
    assert first == again
    assert first != visits(torch.Generator().manual_seed(2))
    assert sum(len(b.items_BK) for b in requests.batches(4)) == len(requests)


def test_days_users_and_logged_candidates():
    dataset = random_log(11, request_key=True)
    dataset.rows["candidates"] = [np.array([item, 19 - item, 7]) for item in dataset.rows["item"]]
    chosen = build(dataset, first_date=20220426, users=[1, 2, 5])
    assert set(chosen.user_L.tolist()) <= {1, 2, 5}
    assert set(chosen.date_L.tolist()) == {20220426}
    for batch in chosen.batches(8):
        first_B = batch.items_BK[:, 0]
        assert torch.equal(batch.request.candidates_BC, torch.stack([first_B, 19 - first_B, first_B * 0 + 7], 1))
    with pytest.raises(ValueError, match="no request lies in days 20230101"):
        build(dataset, first_date=20230101)


def test_models_annotate_batches():
    class Constant:
        def predict_request(self, request, items_BC, chosen_B):
            predicted_BCF = 0.25 * chosen_B.float()[:, None, None].expand(*items_BC.shape, 3)
            return predicted_BCF, torch.full((*items_BC.shape, 3), 0.5)

        def score_request(self, request, items_BC):
            return items_BC.float()

    plain = build(random_log(2, request_key=True))
    batch = next(plain.annotated(Constant(), Constant()).batches(3))
    assert float(batch.request.predicted_BCF.mean()) == 0.25
    assert float(batch.request.predicted_std_BCF.mean()) == 0.5
    assert torch.equal(batch.request.retriever_score_BC, batch.request.candidates_BC.float())
    assert not next(plain.batches(3)).request.predicted_BCF.any()


def test_a_feature_table_of_another_length_is_refused():
    dataset = random_log(2, request_key=False)
    with pytest.raises(ValueError, match="item_features_ND has 3 rows, the log 20 codes"):
        logged_requests(dataset, item_features_ND=torch.zeros(3, 1), user_features_UD=torch.zeros(7, 1))


def test_requests_are_told_apart_by_their_content():
    dataset = random_log(11, request_key=True)
    requests = build(dataset)
    assert build(random_log(11, request_key=True)).digest == requests.digest
    signal = dataset.signals[-1]
    dataset.rows.loc[dataset.rows.index[3], signal] = 1 - dataset.rows[signal].iloc[3]
    assert build(dataset).digest != requests.digest
    assert requests.only(users=[1, 2]).digest != requests.digest
