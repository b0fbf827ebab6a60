"""Readers against tables whose canonical form is worked out by hand, and against the real logs."""

import dataclasses
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsim_env.data import (
    KUAIRAND,
    OPEN_BANDIT,
    RATINGS,
    AtLeast,
    ColumnMap,
    LoggedDataset,
    load_kuairand,
    load_kuairec,
    load_log,
    load_table,
    parse_map,
)

KUAIRAND_LOG = [
    *("user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_like", "is_follow", "is_comment"),
    *("is_forward", "is_hate", "long_view", "play_time_ms", "duration_ms", "profile_stay_time"),
    *("comment_stay_time", "is_profile_enter", "is_rand", "tab"),
]
NOON = 1_650_801_600_000  # 2022-04-24 12:00 UTC, 20:00 in Beijing
KUAIRAND_BYTES_A_ROW = 37
REAL = os.environ.get("RECSIM_DATA", "")
needs_data = pytest.mark.skipif(not REAL, reason="set RECSIM_DATA to the folder with kuairand_pure and others")


def kuairand_row(user: int, item: int, time_ms: int, **changes: int) -> dict[str, int]:
    row = dict.fromkeys(KUAIRAND_LOG, 0)
    row |= {"user_id": user, "video_id": item, "time_ms": time_ms, "date": 20220424, "tab": 1}
    return row | {"play_time_ms": 5_000, "duration_ms": 20_000} | changes


@pytest.fixture
def kuairand(tmp_path: Path) -> Path:
    """An official folder in miniature, with every trap of the real one."""
    data = tmp_path / "KuaiRand-Pure" / "data"
    data.mkdir(parents=True)
    standard = [
        kuairand_row(7, 30, NOON + 2_000, is_click=1, long_view=1),
        kuairand_row(7, 10, NOON, duration_ms=0),  # unknown here, 12.5 s in the item table
        kuairand_row(3, 20, NOON, duration_ms=0, play_time_ms=0),  # known from another row alone
        kuairand_row(3, 20, NOON, duration_ms=0, play_time_ms=0, hourmin=100),  # logged twice
        kuairand_row(3, 40, NOON, duration_ms=0),  # in no table, known nowhere
    ]
    later = [kuairand_row(3, 20, NOON + 1_000, duration_ms=30_000, date=20220425, is_hate=1)]
    random = [kuairand_row(9, 10, NOON, is_rand=1, tab=0)]
    for name, rows in (
        ("log_standard_4_08_to_4_21_pure", standard),
        ("log_standard_4_22_to_5_08_pure", later),
        ("log_random_4_22_to_5_08_pure", random),
    ):
        pd.DataFrame(rows, columns=KUAIRAND_LOG).to_csv(data / f"{name}.csv", index=False)
    (data / "user_features_pure.csv").write_text(
        "user_id,is_live_streamer,onehot_feat4,user_active_degree\n7,-124,,full_active\n3,1,2.0,\n7,1,9.0,again\n"
    )
    (data / "video_features_basic_pure.csv").write_text(
        'video_id,author_id,video_duration,tag,video_type\n30,5,20000.0,"12,62",NORMAL\n10,6,12500.0,39,AD\n'
        "20,6,,,NORMAL\n50,7,0.0,1,NORMAL\n"
    )
    (data / "video_features_statistic_pure.csv").write_text("video_id,like_cnt\n10,99\n")
    return tmp_path / "KuaiRand-Pure"


def test_kuairand_traps(kuairand: Path) -> None:
    log = load_kuairand(kuairand)
    assert log.name == "kuairand_pure"
    assert log.users["user_id"].tolist() == [3, 7, 9]
    assert log.items["item_id"].tolist() == [10, 20, 30, 40, 50]
    rows = log.rows
    assert rows["user"].tolist() == [0, 0, 0, 1, 1, 2]
    assert rows["item"].tolist() == [1, 3, 1, 0, 2, 0]
    assert (rows["time_ms"] - NOON).tolist() == [0, 0, 1_000, 0, 2_000, 0]
    assert rows["date"].tolist() == [20220424, 20220424, 20220425, 20220424, 20220424, 20220424]
    np.testing.assert_array_equal(rows["duration"], np.float32([30, np.nan, 30, 12.5, 20, 20]))
    np.testing.assert_array_equal(rows["watch_time"], np.float32([0, 5, 5, 5, 5, 5]))
    assert rows["is_random"].tolist() == [False] * 5 + [True]
    assert rows["tab"].tolist() == [1, 1, 1, 1, 1, 0]
    assert rows["hate"].tolist() == [0, 0, 1, 0, 0, 0]
    assert log.signals == ("watch_time", "click", "long_view", "like", "follow", "comment", "forward", "hate")
    assert log.counts == {
        "rows_read": 7,
        "rows_without_time": 0,
        "duplicates_dropped": 1,
        "item_feature_rows_repeated": 0,
        "items_without_features": 1,
        "user_feature_rows_repeated": 1,
        "users_without_features": 1,
    }


def test_kuairand_features(kuairand: Path) -> None:
    log = load_kuairand(kuairand)
    assert log.items["tags"].tolist() == [[39], [], [12, 62], [], [1]]
    np.testing.assert_array_equal(log.items["duration"], np.float32([12.5, 30, 20, np.nan, np.nan]))
    np.testing.assert_array_equal(log.items["author"], [6, 6, 5, np.nan, 7])
    assert "like_cnt" not in log.items, "monthly statistics leak the test days"
    np.testing.assert_array_equal(log.users["is_live_streamer"], [1, np.nan, np.nan])
    np.testing.assert_array_equal(log.users["onehot_feat4"], [2, np.nan, np.nan])


def same_log(one: LoggedDataset, other: LoggedDataset) -> None:
    pd.testing.assert_frame_equal(one.rows, other.rows)
    assert one.items["tags"].tolist() == other.items["tags"].tolist()
    for table in ("users", "items"):
        assert getattr(one, table).iloc[:, 0].tolist() == getattr(other, table).iloc[:, 0].tolist()


def test_every_kuairand_layout_gives_the_same_log(kuairand: Path, tmp_path: Path) -> None:
    expected = load_kuairand(kuairand)
    same_log(load_kuairand(kuairand / "data"), expected)
    same_log(load_kuairand(kuairand.parent), expected)
    same_log(load_log(kuairand), expected)
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (kuairand / "data").glob("*.csv"):
        pd.read_csv(path).to_parquet(flat / f"{path.stem}.parquet")
    same_log(load_kuairand(flat), expected)
    (flat / "log_random_4_22_to_5_08_pure.csv").write_text("a CSV file beside its Parquet copy is not read")
    same_log(load_kuairand(flat), expected)


def test_kuairand_history_and_extra_columns(kuairand: Path) -> None:
    data = kuairand / "data"
    history = {"user_id": [9, 9, 11], "pos": [0, 1, 0], "video_id": [60, 10, 10], "is_like": [0, 1, 1]}
    pd.DataFrame(history).to_parquet(data / "user_history_4_09.parquet")
    pd.DataFrame({"user_id": [9], "history_len": [2]}).to_csv(data / "user_history_summary.csv", index=False)
    for path in data.glob("log_*.csv"):
        rows = pd.read_csv(path)
        rows["propensity"], rows["pxtr_click"], rows["request"] = 0.25, 0.5, 2**62 + 1
        rows.to_csv(path, index=False)
    log = load_kuairand(kuairand, request_by_time=True)
    assert log.history is not None
    assert log.users["user_id"].tolist() == [3, 7, 9, 11]
    assert log.items["item_id"].tolist() == [10, 20, 30, 40, 50, 60]
    assert log.history["user"].tolist() == [2, 2, 3]
    assert log.history["item"].tolist() == [5, 0, 0]
    assert log.history["like"].tolist() == [0, 1, 1]
    assert (log.rows["propensity"] == 0.25).all()
    assert (log.rows["pxtr_click"] == 0.5).all()
    assert (log.rows["request"] == 2**62 + 1).all(), "an explicit key wins over equal times, to its last digit"


def test_equal_times_become_requests_only_when_asked(kuairand: Path) -> None:
    assert "request" not in load_kuairand(kuairand).rows
    assert load_kuairand(kuairand, request_by_time=True).rows["request"].tolist() == [0, 0, 1, 2, 3, 4]


def test_parts_of_the_large_version_are_read_together(tmp_path: Path) -> None:
    for part, user in ((1, 5), (2, 6)):
        rows = pd.DataFrame([kuairand_row(user, part, NOON)], columns=KUAIRAND_LOG)
        rows.to_csv(tmp_path / f"log_standard_4_08_to_4_21_27k_part{part}.csv", index=False)
    log = load_kuairand(tmp_path)
    assert log.name == "kuairand_27k"
    assert len(log.rows) == 2
    assert log.items["tags"].tolist() == [[], []]


def test_kuairand_folder_mistakes(kuairand: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no log_standard"):
        load_kuairand(tmp_path / "nowhere")
    (tmp_path / "KuaiRand-1K" / "data").mkdir(parents=True)
    (tmp_path / "KuaiRand-1K" / "data" / "log_standard_4_08_to_4_21_1k.csv").write_text("x\n")
    with pytest.raises(ValueError, match="several KuaiRand versions"):
        load_kuairand(tmp_path)
    (kuairand / "data" / "log_standard_4_08_to_4_21_1k.csv").write_text("x\n")
    with pytest.raises(ValueError, match=r"several KuaiRand versions \(1k, pure\)"):
        load_kuairand(kuairand)


def test_a_feature_table_without_its_columns(kuairand: Path) -> None:
    (kuairand / "data" / "video_features_basic_pure.csv").write_text("video_id,author_id,video_length,tag\n10,1,5,1\n")
    with pytest.raises(ValueError, match=r"video_features_basic_pure.csv has no column 'video_duration'"):
        load_kuairand(kuairand)


def test_kuairec(tmp_path: Path) -> None:
    data = tmp_path / "KuaiRec 2.0" / "data"
    data.mkdir(parents=True)
    (data / "small_matrix.csv").write_text(
        "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
        "14,148,4381,6067,2020-07-05 05:27:48.378,20200705.0,1593898068.378,0.722\n"
        "14,183,11635,6100,2020-07-05 05:28:00.057,20200705.0,1593898080,1.907\n"
        "19,148,9000,6067,,,,1.483\n"
        "19,183,100,6100,,,1593900000.5,0.016\n"
    )
    (data / "item_categories.csv").write_text('video_id,feat\n148,[8]\n183,"[27, 9]"\n')
    log = load_kuairec(tmp_path, matrix="small")
    assert log.signals == ("watch_time",)
    assert log.rows["time_ms"].tolist() == [1593898068378, 1593898080000, 1593900000500]
    assert log.rows["date"].tolist() == [20200705] * 3  # 21:27 UTC on the 4th is the 5th in Beijing
    np.testing.assert_allclose(log.rows["watch_time"], [4.381, 11.635, 0.1], rtol=1e-6)
    assert log.counts["rows_without_time"] == 1
    assert log.items["tags"].tolist() == [[8], [27, 9]]
    same_log(load_kuairec(tmp_path / "KuaiRec 2.0", matrix="small"), log)
    with pytest.raises(ValueError, match="no big_matrix"):
        load_kuairec(tmp_path)


EVERYTHING = ColumnMap(
    user=("country", "cohort"),
    item="vid",
    time="shown",
    time_unit="timestamp",
    watch_time="watched",
    duration="length",
    signals={"share": "shared", "like": AtLeast(column="stars", threshold=4)},
    session="visit",
    request="page",
    place="slot",
    first_place=1,
    propensity="chance",
    is_random=False,
    candidates="pool",
    pxtr={"like": "predicted"},
)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_map_of_every_column(tmp_path: Path, suffix: str) -> None:
    pool = ["b,a", "a,c,b"]
    table = pd.DataFrame(
        {
            "country": ["cn", "cn"],
            "cohort": [2, 1],
            "vid": ["b", "a"],
            "shown": ["2022-04-25 00:00:01", "2022-04-25 00:00:02.500"],
            "watched": [3.5, None],
            "length": [10.0, 0.0],
            "shared": [0, 1],
            "stars": [4.0, 3.5],
            "visit": [2**60 + 1, 2],
            "page": [5, 5],
            "slot": [2, 1],
            "chance": [0.5, 0.25],
            "pool": pool,
            "predicted": [0.1, 0.2],
            "ignored": ["not", "a number"],
        }
    )
    path = tmp_path / f"log{suffix}"
    if suffix == ".parquet":
        table["shown"], table["pool"] = (
            pd.to_datetime(table["shown"], format="ISO8601"),
            [p.split(",") for p in pool],
        )
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    log = load_table(path, EVERYTHING)
    assert log.name == "log"
    assert log.users["user_id"].tolist() == ["cn|1", "cn|2"]
    assert log.items["item_id"].tolist() == ["a", "b", "c"]
    expected = {
        "user": [0, 1],
        "item": [0, 1],
        "time_ms": [1650844802500, 1650844801000],
        "date": [20220425, 20220425],
        "watch_time": [np.nan, 3.5],
        "duration": [np.nan, 10.0],
        "share": [1, 0],
        "like": [0, 1],
        "session": [2, 2**60 + 1],
        "request": [5, 5],
        "place": [0, 1],
        "propensity": [0.25, 0.5],
        "is_random": [False, False],
        "pxtr_like": np.float32([0.2, 0.1]),
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(log.rows[name], values, err_msg=name)
    assert [codes.tolist() for codes in log.rows["candidates"]] == [[0, 2, 1], [1, 0]]
    assert log.signals == ("watch_time", "like", "share")


@pytest.mark.parametrize(("unit", "time"), [("s", 1650844801.25), ("ms", 1650844801250), ("us", 1650844801250999)])
def test_units_of_time(tmp_path: Path, unit: Any, time: float) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"u,i,t,y\n1,1,{time},1\n2,1,{time},0\n")
    columns = ColumnMap(user="u", item="i", time="t", time_unit=unit, utc_offset_hours=-8, signals={"click": "y"})
    log = load_table(path, columns)
    assert log.rows["time_ms"].tolist() == [1650844801250] * 2
    assert log.rows["date"].tolist() == [20220424] * 2, "a minute past midnight UTC is the day before, further west"


def test_a_map_from_the_command_line() -> None:
    text = "user=country+cohort,item=vid,time=shown,time_unit=timestamp,watch_time=watched,duration=length,"
    text += "signals.share=shared,like=stars>=4,session=visit,request=page,place=slot,first_place=1,"
    text += "propensity=chance,is_random=false,candidates=pool,pxtr.like=predicted"
    assert parse_map(text) == EVERYTHING
    assert parse_map("is_random=true", OPEN_BANDIT) == dataclasses.replace(OPEN_BANDIT, is_random=True)
    assert parse_map("tab=page", KUAIRAND).signals == KUAIRAND.signals


def write_large_log(folder: Path, num_rows: int, num_files: int, seed: int = 0) -> None:
    """A KuaiRand folder of random rows in time order, its files one after another."""
    generator = np.random.default_rng(seed)
    size = num_rows // num_files
    for number in range(num_files):
        rows = {name: generator.integers(0, 2, size) for name in KUAIRAND_LOG}
        rows |= {"user_id": generator.integers(0, 1000, size), "video_id": generator.integers(0, 5000, size)}
        rows |= {
            "time_ms": NOON + np.arange(number * size, (number + 1) * size),
            "date": np.full(size, 20220424),
        }
        rows |= {"play_time_ms": generator.integers(0, 60_000, size), "duration_ms": np.full(size, 30_000)}
        pd.DataFrame(rows).to_csv(folder / f"log_standard_{number:02}_1k.csv", index=False)


def test_memory_grows_with_the_columns_kept(tmp_path: Path) -> None:
    peaks = []
    for num_rows in (60_000, 180_000):
        folder = tmp_path / str(num_rows)
        folder.mkdir()
        write_large_log(folder, num_rows, num_files=3)
        tracemalloc.start()
        log = load_kuairand(folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(log.rows) == num_rows
        assert log.rows.memory_usage(index=False).sum() == num_rows * KUAIRAND_BYTES_A_ROW
    bytes_a_row = (peaks[1] - peaks[0]) / 120_000
    assert KUAIRAND_BYTES_A_ROW < bytes_a_row < 3 * KUAIRAND_BYTES_A_ROW


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_five_million_rows_in_several_files(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    write_large_log(folder, 5_000_000, num_files=5)
    program = (
        "import re, time\n"
        "from pathlib import Path\n"
        "from recsim_env.data import load_kuairand\n"
        # Not ru_maxrss: a child inherits its parent's.
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak()\n"
        "begin = time.perf_counter()\n"
        f"rows = load_kuairand({str(folder)!r}).rows\n"
        "print(len(rows), (peak() - before) * 1024, time.perf_counter() - begin)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    num_rows, peak, seconds = (float(word) for word in run.stdout.split())
    print(f"{num_rows:,.0f} rows, peak {peak / 2**20:.0f} MiB above import, {seconds:.1f} s")
    assert num_rows == 5_000_000
    # Rows, what sorting them takes, and the batches in flight.
    assert peak < 3 * KUAIRAND_BYTES_A_ROW * num_rows + 100 * 2**20


@needs_data
def test_the_real_log() -> None:
    log = load_kuairand(Path(REAL) / "kuairand_pure")
    assert len(log.rows) == 166_898
    assert log.counts["duplicates_dropped"] == 171_229 - 166_898
    assert (len(log.users), len(log.items)) == (20_462, 7_583)
    published = {"click": 0.4512, "long_view": 0.3184, "like": 0.0175, "comment": 0.0026, "hate": 0.0009}
    for name, rate in published.items():
        assert log.rows[name].mean() == pytest.approx(rate, abs=6e-5)
    watch = log.rows.loc[log.rows["tab"] == 1, "watch_time"]
    assert watch.median() == pytest.approx(6.26, rel=0.02)
    assert watch.mean() == pytest.approx(24.5, rel=0.02)
    assert log.items["duration"].isna().sum() == 239
    assert sum(not tags for tags in log.items["tags"]) == 96
    assert log.history is not None
    assert len(log.history) == 613_449
    assert list(log.history.columns) == ["user", "item", "position", "long_view", "like"]
    assert log.users["is_live_streamer"].isna().mean() == pytest.approx(0.77, abs=0.02)
    assert not any("cnt" in str(name) for name in log.items)


@needs_data
def test_the_official_layout() -> None:
    folder = Path(REAL) / "kuairand_pure_mini"
    log = load_kuairand(folder)
    assert log.counts["rows_read"] == 621 + 801
    assert (len(log.users), len(log.items)) == (127, 962)
    assert log.rows["date"].min() < 20220422 < log.rows["date"].max()
    same_log(load_kuairand(folder / "KuaiRand-Pure" / "data"), log)


@needs_data
def test_ratings_and_open_bandit_through_their_maps() -> None:
    ratings = load_log(Path(REAL) / "ml_latest_small" / "ratings.parquet", RATINGS)
    raw = pd.read_parquet(Path(REAL) / "ml_latest_small" / "ratings.parquet")
    assert len(ratings.rows) == len(raw) == 100_836
    assert ratings.signals == ("like",)
    assert ratings.rows["like"].sum() == (raw["rating"] >= 4).sum()
    assert ratings.rows["time_ms"].min() == raw["timestamp"].min() * 1000
    bandit = load_log(Path(REAL) / "obd_small" / "random_men.parquet", dataclasses.replace(OPEN_BANDIT, is_random=True))
    assert len(bandit.rows) == 10_000
    assert np.allclose(bandit.rows["propensity"], 1 / 34)
    assert set(bandit.rows["place"]) == {0, 1, 2}
    assert bandit.rows["is_random"].all()
