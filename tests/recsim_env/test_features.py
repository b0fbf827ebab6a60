"""Feature tables: bounded, named, and blind to the days they describe."""

import numpy as np
import pandas as pd
import pytest

from recsim_env.data.features import BOUND, FeatureTable, item_features, local_hour, user_features
from recsim_env.data.schema import LoggedDataset


def make_log() -> LoggedDataset:
    rows = pd.DataFrame(
        {
            "user": np.int32([0, 0, 1, 1]),
            "item": np.int32([0, 1, 0, 2]),
            "time_ms": pd.to_datetime(["2022-04-25 15:10", "2022-04-26 16:30", "2022-04-25 02:00", "2022-04-27 00:00"])
            .astype("datetime64[ms]")
            .astype(np.int64),
            "date": np.int32([20220425, 20220427, 20220425, 20220427]),
            "watch_time": np.float32([1, 2, 3, 4]),
            "duration": np.float32([10, np.nan, 10, 30]),
            "click": np.int8([1, 0, 0, 1]),
        }
    )
    users = pd.DataFrame(
        {"user_id": [7, 8], "kind": ["a", "b"], "flag": [-124, 1], "fans": [0, 10**6], "fans_range": ["0", "1m"]}
    )
    users = pd.concat(
        [users] + [users.assign(fans=users["fans"] + n, kind="a") for n in range(1, 12)], ignore_index=True
    )
    users["user_id"] = np.arange(len(users))
    items = pd.DataFrame(
        {
            "item_id": [5, 6, 7],
            "duration": np.float32([10, np.nan, 30]),
            "author": [1, 2, 3],
            "tags": [[3], [], [3, 4]],
            "type": ["x", "y", "x"],
        }
    )
    history = pd.DataFrame({"user": [0, 1, 1], "item": [2, 2, 0], "position": [0, 0, 1], "click": np.int8([1, 0, 1])})
    return LoggedDataset("small", rows, users, items, ("watch_time", "click"), history)


def test_values_are_finite_bounded_and_named() -> None:
    log = make_log()
    for table, rows in ((item_features(log, 20220427), 3), (user_features(log), len(log.users))):
        assert table.values.dtype == np.float32
        assert table.values.shape == (rows, len(table.names))
        assert len(set(table.names)) == len(table.names)
        assert np.isfinite(table.values).all()
        assert np.abs(table.values).max() <= BOUND


def test_columns_say_what_is_known_of_items() -> None:
    table = item_features(make_log())
    column = dict(zip(table.names, table.values.T, strict=True))
    assert column["tag=3"].tolist() == [1, 0, 1]
    assert column["tag=4"].tolist() == [0, 0, 1]
    assert column["duration_known"].tolist() == [1, 0, 1]
    assert column["log_duration"].tolist() == pytest.approx([-1, 0, 1], abs=1e-5)
    assert column["type=x"].tolist() == [1, 0, 1]
    assert column["log_popularity"].argsort().tolist() == [1, 0, 2]  # seen 0, 1 and 2 times before the log
    # Clicked once, never shown, clicked once in two: only the first is above the mean.
    assert column["log_odds_click"].argsort().tolist() == [2, 1, 0]


def test_counts_end_before_the_date() -> None:
    log = make_log()
    changed = log.rows.copy()
    changed.loc[changed["date"] >= 20220427, ["item", "click"]] = [0, 1]
    other = LoggedDataset(log.name, changed, log.users, log.items, log.signals, log.history)
    assert np.array_equal(item_features(log, 20220427).values, item_features(other, 20220427).values)
    assert not np.array_equal(item_features(log, 20220428).values, item_features(other, 20220428).values)


def test_unknown_codes_and_repeated_columns_stay_out() -> None:
    names = user_features(make_log()).names
    assert "log_fans" in names or "fans=0" in names
    assert not any("124" in name or name.startswith("fans_range") for name in names)
    assert "log_history_length" in names


def test_a_log_without_user_columns_gives_no_features() -> None:
    log = make_log()
    bare = LoggedDataset(log.name, log.rows, log.users[["user_id"]], log.items, log.signals)
    assert user_features(bare).values.shape == (len(log.users), 0)


def test_hours_are_those_of_the_local_day() -> None:
    assert local_hour(make_log().rows).tolist() == [23, 0, 10, 8]  # 8 hours east of Greenwich


def test_a_table_with_the_wrong_number_of_names_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values of shape \(rows, 1\)"):
        FeatureTable(np.zeros((2, 3), np.float32), ("one",))
