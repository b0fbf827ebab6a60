"""Logs that are wrong are refused in words, and numbers are read for what they are."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsim_env.data import ColumnMap, LoggedDataset, check_dataset, load_log, load_table, parse_map

NOON = 1_650_801_600_000  # 2022-04-24 12:00 UTC

SIMPLE = ColumnMap(
    user="user", item="item", time="time", watch_time="watch", duration="length", signals={"click": "click"}
)


def simple_table(**changes: list[Any]) -> pd.DataFrame:
    columns: dict[str, list[Any]] = {
        "user": [1, 2],
        "item": [5, 6],
        "time": [NOON, NOON + 1],
        "click": [0, 1],
    }
    return pd.DataFrame(columns | {"watch": [3.0, 4.0], "length": [8.0, 9.0]} | changes)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (simple_table().rename(columns={"click": "clikc"}), r"no column 'click' \(did you mean 'clikc'\?\)"),
        (simple_table().iloc[:0], "has no rows"),
        (simple_table(user=[1, 1]), "single user"),
        (simple_table(user=[1, None]), "1 rows have no user id"),
        (simple_table(item=[1.5, 2.5]), "item ids must be whole numbers"),
        (simple_table(time=[NOON, None]), "'time' is empty in 1 rows"),
        (simple_table(time=[NOON // 1000] * 2), "look like seconds"),
        (simple_table(time=[NOON * 1000] * 2), "look like microseconds"),
        (simple_table(click=[0, None]), "'click' is empty in 1 rows"),
        (simple_table(click=[0, 3]), "'click' must hold 0 or 1, got 3"),
        (simple_table(watch=[3000.0, 4000.0], length=[8000.0, 9000.0]), "Watch times look like milliseconds"),
        (simple_table(watch=[0.003, 0.004]), "Watch times look too short"),
        (simple_table(watch=[800.0, 900.0]), "Watch time is 100 times the duration"),
        (simple_table(length=[80_000.0, 90_000.0]), "Durations look like milliseconds"),
        (simple_table(length=[0.08, 0.09]), "Durations look too short"),
        (simple_table(watch=[3.0, -1.0]), "'watch' is negative in 1 rows"),
        (simple_table(watch=[3.0, np.inf]), "'watch_time' is negative or infinite in 1 rows"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_bad_tables_are_refused_in_words(tmp_path: Path, table: pd.DataFrame, message: str, suffix: str) -> None:
    path = tmp_path / f"log{suffix}"
    if suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    with pytest.raises(ValueError, match=message):
        load_table(path, SIMPLE)


def test_bad_files_are_refused_in_words(tmp_path: Path) -> None:
    for name, content, message in (
        ("none.csv", None, "no file"),
        ("empty.csv", "", "is empty"),
        ("log.json", "{}", "are .csv, .csv.gz or .parquet"),
        ("junk.parquet", "PAR1", "is no whole Parquet file"),
        ("short.csv", "user,item,time,watch,length,click\n1,5\n", "Expected 6 columns, got 2"),
        ("text.csv", "user,item,time,watch,length,click\n1,5,today,3,8,0\n", "invalid value 'today'"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            load_table(tmp_path / name, SIMPLE)
    simple_table().to_csv(tmp_path / "log.csv", index=False)
    simple_table(user=["x", "y"]).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(ValueError, match="user ids mix numbers and text"):
        load_table([tmp_path / "log.csv", tmp_path / "other.csv"], SIMPLE)
    with pytest.raises(ValueError, match="needs a column map"):
        load_log(tmp_path / "log.csv")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ColumnMap(user="u", item="i", time="t"), "names no feedback"),
        (lambda: dataclasses.replace(SIMPLE, time_unit="minutes"), "time_unit must be one of us, ms, s"),
        (lambda: dataclasses.replace(SIMPLE, signals={"watch_time": "w"}), "not a 0/1 signal"),
        (lambda: dataclasses.replace(SIMPLE, request="r", request_by_time=True), "not both"),
        (lambda: parse_map("user=uid"), "lacks item and time"),
        (lambda: parse_map("user=u,item=i,time=t,durtion=d"), r"'durtion' .*did you mean 'duration'"),
        (lambda: parse_map("user"), "write field=column"),
    ],
)
def test_bad_maps_are_refused_in_words(build: Callable[[], ColumnMap], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_numbers_may_change_their_look_within_a_file(tmp_path: Path) -> None:
    """Whole numbers in the first block, fractions later; flags written as words."""
    path = tmp_path / "log.csv"
    size = 200_000
    table = pd.DataFrame({"user": np.arange(size) % 50, "item": 1, "time": NOON + np.arange(size)})
    table = table.assign(watch="3", length="8", click=np.where(np.arange(size) % 2, "True", "False"))
    table.loc[size - 1, ["watch", "length"]] = ["2.5", "7.5"]
    table.to_csv(path, index=False)
    assert path.stat().st_size > 1 << 22, "the file must span several blocks"
    rows = load_table(path, SIMPLE).rows
    assert rows["click"].sum() == size // 2
    assert rows.loc[rows["time_ms"].idxmax(), ["watch_time", "duration"]].tolist() == [2.5, 7.5]


def valid_log() -> LoggedDataset:
    rows = pd.DataFrame(
        {
            "user": np.int32([0, 0, 1]),
            "item": np.int32([1, 0, 1]),
            "time_ms": np.int64([NOON, NOON + 5, NOON]),
            "date": np.int32([20220424] * 3),
            "watch_time": np.float32([3, np.nan, 4]),
            "duration": np.float32([10, np.nan, 10]),
            "click": np.int8([1, 0, 1]),
            "propensity": np.float32([0.5, 1.0, 0.1]),
        }
    )
    items = pd.DataFrame({"item_id": [5, 6], "duration": np.float32([np.nan, 10])})
    return LoggedDataset("tiny", rows, pd.DataFrame({"user_id": [8, 9]}), items, ("watch_time", "click"))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user", np.int64([0, 0, 1]), "'user' must be int32, got int64"),
        ("user", np.int32([0, 1, 0]), "sorted by"),
        ("user", np.int32([0, 0, 2]), r"must be rows of the table users, 0..1, got 0..2"),
        ("item", np.int32([-1, 0, 1]), r"rows of the table items, 0..1, got -1..1"),
        ("time_ms", np.int64([NOON + 6, NOON + 5, NOON]), "sorted by .* 1 are out of order"),
        ("date", np.int32([2022, 2022, 2022]), "YYYYMMDD"),
        ("watch_time", np.float32([-3, 0, 4]), "'watch_time' is negative"),
        ("watch_time", np.float32([np.nan] * 3), "unknown in every row"),
        ("duration", np.float32([0, 1, 10]), "an unknown duration is NaN"),
        ("click", np.int8([0, 2, 1]), "'click' must be 0 or 1, got 0..2"),
        ("propensity", np.float32([0, 0.5, np.nan]), "2 rows do not"),
        ("tab", np.int64([0, 0, 0]), "'tab' must be int8"),
    ],
)
def test_checks_name_the_fault(column: str, values: Any, message: str) -> None:
    log = valid_log()
    assert check_dataset(log) == []
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(log, rows=log.rows.assign(**{column: values}))


def test_checks_of_signals_and_tables() -> None:
    log = valid_log()
    for changes, message in (
        ({"signals": ("click", "watch_time")}, "Signals must be"),
        ({"signals": ("watch_time", "like")}, "'like' has no column"),
        ({"signals": ()}, "No signal"),
        (
            {"rows": log.rows.drop(columns="time_ms").rename(columns={"date": "time_m"})},
            "did you mean 'time_m'",
        ),
        ({"users": pd.DataFrame({"user_id": [8, 8]})}, "users repeats 1 ids"),
        ({"items": log.items.drop(columns="duration")}, "needs a column 'duration'"),
        ({"history": pd.DataFrame({"user": [0], "item": [2]})}, "'item' in history"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(log, **changes)  # type: ignore[arg-type]
