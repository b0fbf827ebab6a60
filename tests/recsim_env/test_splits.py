"""Splits and lists against logs small enough to be split by hand."""

import dataclasses
import hashlib
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsim_env.data import (
    NO_ROW,
    LoggedDataset,
    load_kuairand,
    slates,
    split_by_exposure,
    split_by_time,
    split_by_user,
)

START = 1_650_801_600_000
REAL = os.environ.get("RECSIM_DATA", "")
needs_data = pytest.mark.skipif(not REAL, reason="set RECSIM_DATA to the folder with kuairand_pure and others")


def make_log(users: list[int], num_users: int | None = None, **columns: Any) -> LoggedDataset:
    """A log with the given user codes, a row each millisecond."""
    rows = pd.DataFrame(
        {
            "user": np.int32(users),
            "item": np.arange(len(users), dtype=np.int32),
            "time_ms": START + np.arange(len(users)),
            "date": np.full(len(users), 20220425, dtype=np.int32),
            "watch_time": np.full(len(users), 5, dtype=np.float32),
            "duration": np.full(len(users), 10, dtype=np.float32),
        }
    ).assign(**columns)
    user_ids = pd.DataFrame({"user_id": np.arange(num_users or max(users) + 1) + 1_000})
    items = pd.DataFrame({"item_id": np.arange(len(users)), "duration": np.float32(10)})
    return LoggedDataset("made", rows, user_ids, items, ("watch_time",))


def test_time_split_by_hand() -> None:
    days = np.int32([20220425, 20220502, 20220503, 20220504, 20220505, 20220508, 20220509])
    log = make_log([0, 0, 0, 1, 1, 1, 1], date=days)
    split = split_by_time(log)
    assert np.flatnonzero(split.train_R).tolist() == [0, 1]
    assert np.flatnonzero(split.validation_R).tolist() == [2, 3]
    assert np.flatnonzero(split.fit_R).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(split.test_R).tolist() == [4, 5]
    other = split_by_time(log, train_until=20220425, validation_until=20220503, test_until=20220509)
    assert [int(part.sum()) for part in other] == [1, 2, 3, 4]


def test_time_split_mistakes() -> None:
    log = make_log([0, 1])
    with pytest.raises(ValueError, match=r"no rows in the validation days .* runs from 20220425 to 20220425"):
        split_by_time(log)
    with pytest.raises(ValueError, match="must ascend"):
        split_by_time(log, train_until=20220504, validation_until=20220504)


def test_user_split_follows_the_hash_of_the_id() -> None:
    shares = {"a": 0.45, "judges": 0.45, "stopping": 0.1}
    log = make_log([0, 1], num_users=4_000)
    parts = split_by_user(log, shares)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(4_000))
    for name, share in shares.items():
        assert len(parts[name]) / 4_000 == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 4_000))
    first = int(hashlib.sha256(b"1000").hexdigest()[:12], 16) / 16**12
    holder = "a" if first < 0.45 else "judges" if first < 0.9 else "stopping"
    assert 0 in parts[holder]


def test_user_split_is_stable() -> None:
    """A user stays in its part when others come or go, and another salt is another split."""
    shares = {"a": 0.5, "b": 0.5}
    large = make_log([0, 1], num_users=2_000)
    small = dataclasses.replace(large, users=large.users.iloc[:500])
    whole, part = split_by_user(large, shares), split_by_user(small, shares)
    assert part["a"].tolist() == [code for code in whole["a"] if code < 500]
    salted = split_by_user(large, shares, salt="again")
    overlap = len(np.intersect1d(salted["a"], whole["a"])) / 2_000
    assert overlap == pytest.approx(0.25, abs=0.05)


def test_user_split_leaves_out_what_no_share_claims() -> None:
    parts = split_by_user(make_log([0, 1], num_users=2_000), {"some": 0.3})
    assert len(parts["some"]) / 2_000 == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("shares", [{}, {"a": 0.6, "b": 0.5}, {"a": 0.0}, {"a": -0.1, "b": 0.5}])
def test_user_split_wants_sensible_shares(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive and add up to 1"):
        split_by_user(make_log([0, 1]), shares)


def test_user_split_refuses_an_empty_part() -> None:
    with pytest.raises(ValueError, match=r"no user falls into part '\w' .* of 2 users"):
        split_by_user(make_log([0, 1]), {"a": 0.4, "b": 0.3, "c": 0.3})


def test_exposure_split() -> None:
    split = split_by_exposure(make_log([0, 0, 1], is_random=[True, False, True]))
    assert split.random_R.tolist() == [True, False, True]
    assert split.standard_R.tolist() == [False, True, False]
    with pytest.raises(ValueError, match="no column 'is_random'"):
        split_by_exposure(make_log([0, 1]))
    with pytest.raises(ValueError, match="holds no randomly exposed rows"):
        split_by_exposure(make_log([0, 1], is_random=[False, False]))


def test_blocks_by_hand() -> None:
    log = make_log([0, 0, 0, 0, 1, 2, 2])
    assert slates(log, 3, mode="blocks").tolist() == [
        [0, 1, 2],
        [3, NO_ROW, NO_ROW],
        [4, NO_ROW, NO_ROW],
        [5, 6, NO_ROW],
    ]


def test_requests_by_hand() -> None:
    """Keys repeat between users, interleave in time, and one request is longer than a list."""
    log = make_log([0, 0, 0, 0, 0, 1, 1], request=np.int64([7, 5, 7, 7, 5, 7, 9]))
    assert slates(log, 2).tolist() == [[0, 2], [1, 4], [5, NO_ROW], [6, NO_ROW]]
    assert slates(log, 3).tolist() == [[0, 2, 3], [1, 4, NO_ROW], [5, NO_ROW, NO_ROW], [6, NO_ROW, NO_ROW]]


def test_lists_hold_every_row_of_random_logs_once() -> None:
    generator = np.random.default_rng(0)
    for _ in range(5):
        users = np.sort(generator.integers(0, 5, 60)).tolist()
        log = make_log(users, num_users=5, request=generator.integers(0, 12, 60))
        for mode, size in (("blocks", 4), ("request", 60)):
            lists = slates(log, size, mode=mode)  # type: ignore[arg-type]
            shown = [[row for row in places if row != NO_ROW] for places in lists.tolist()]
            assert sorted(row for places in shown for row in places) == list(range(60))
            for places in shown:
                assert places == sorted(places)
                keys = log.rows.iloc[places][["user", "request"] if mode == "request" else ["user"]]
                assert len(keys.drop_duplicates()) == 1
            assert all(one[0] < other[0] for one, other in pairwise(shown))


def test_list_mistakes() -> None:
    log = make_log([0, 1])
    with pytest.raises(ValueError, match="no request key"):
        slates(log, 6)
    with pytest.raises(ValueError, match="got size 0"):
        slates(log, 0, mode="blocks")
    with pytest.raises(ValueError, match="mode must be 'request' or 'blocks'"):
        slates(log, 6, mode="time")  # type: ignore[arg-type]


@needs_data
def test_the_real_log_has_hardly_any_slates() -> None:
    log = load_kuairand(Path(REAL) / "kuairand_pure", request_by_time=True)
    places = (slates(log, 6) != NO_ROW).sum(axis=1)
    assert places[places > 1].sum() / len(log.rows) == pytest.approx(0.015, abs=0.001)
    blocks = slates(log, 6, mode="blocks")
    full = blocks[(blocks != NO_ROW).all(axis=1)]
    time_ms = log.rows["time_ms"].to_numpy()
    hours = (time_ms[full[:, -1]] - time_ms[full[:, 0]]) / 3.6e6
    assert np.median(hours) == pytest.approx(74, abs=1)
    split = split_by_time(log)
    assert split.fit_R.sum() + split.test_R.sum() == len(log.rows)
