"""The inspection of logs whose sessions, slates and rates are planted."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tyro

from experiments.build_world import Arguments
from experiments.build_world import main as build_world
from experiments.inspect import Inspect, main
from recsim_env.data import LoggedDataset
from reward_models.inspection import describe, inspect_log

START = 1_650_801_600_000
MINUTE = 60_000
DAY = 24 * 60 * MINUTE
REAL = os.environ.get("RECSIM_DATA", "")
needs_data = pytest.mark.skipif(not REAL, reason="set RECSIM_DATA to the folder with kuairand_pure and others")


def planted(num_users: int = 20, num_days: int = 8, **columns: Any) -> LoggedDataset:
    """Each user opens the app once a day and watches three slates of two videos, a minute apart."""
    user, day, slate, place = (grid.ravel() for grid in np.indices((num_users, num_days, 3, 2)))
    rows = pd.DataFrame(
        {
            "user": user.astype(np.int32),
            "item": (np.arange(len(user)) % 10).astype(np.int32),
            "time_ms": START + day * DAY + slate * MINUTE,
            "date": (20220401 + day).astype(np.int32),
            "watch_time": np.where(place == 0, 4.0, 12.0).astype(np.float32),
            "duration": np.full(len(user), 10, dtype=np.float32),
            "click": (place == 0).astype(np.int8),
            "like": (np.arange(len(user)) < 199).astype(np.int8),
        }
    ).assign(**columns)
    users = pd.DataFrame({"user_id": np.arange(num_users)})
    items = pd.DataFrame({"item_id": np.arange(10), "duration": np.float32(10)})
    return LoggedDataset("planted", rows, users, items, ("watch_time", "click", "like"), counts={"rows_read": 961})


def verdicts(log: LoggedDataset, **options: float) -> dict[str, str]:
    return {entry["name"]: entry["verdict"] for entry in inspect_log(log, **options)["capabilities"]}


def test_planted_facts_are_found() -> None:
    found = inspect_log(planted())
    assert (found["rows"], found["users"], found["items"]) == (960, 20, 10)
    assert found["days"] == {"first": 20220401, "last": 20220408, "count": 8}
    assert found["sessions"] == {
        "source": "gap",
        "gap_s": 300.0,
        "count": 160,
        "mean_rows": 6.0,
        "one_row_share": 0.0,
    }
    assert found["requests"] == {
        "source": "equal time",
        "count": 480,
        "shared_row_share": 1.0,
        "sizes": {"2": 480},
    }
    assert found["signals"]["click"] == {"rate": 0.5, "positives": 480, "enough": True}
    assert found["signals"]["like"] == {"rate": 199 / 960, "positives": 199, "enough": False}
    assert found["watch_time"]["over_duration_share"] == 0.5
    assert found["watch_time"]["median_ratio"] == pytest.approx(0.8)
    assert found["times"]["first"] == "2022-04-24T12:00:00+00:00"
    assert found["reading"] == {"rows_read": 961}
    assert verdicts(planted()) == {
        "learned worlds": "partly",
        "response model": "partly",
        "watch-time model": "yes",
        "leave model": "partly",
        "return model": "partly",
        "list effect": "partly",
        "place effect": "no",
        "off-policy evaluation": "no",
        "unbiased test": "no",
        "time split": "yes",
        "logged candidate sets": "no",
        "production scores": "no",
    }


def test_a_shorter_gap_cuts_sessions_between_requests() -> None:
    found = inspect_log(planted(), session_gap_s=59.0)
    assert found["sessions"]["count"] == 480
    assert found["sessions"]["mean_rows"] == 2.0


def test_declared_columns_lift_the_verdicts() -> None:
    base = planted().rows
    session = (base["user"].astype("int64") * 8 + base["date"] - 20220401).astype("int64")
    full = planted(
        session=session,
        request=base.groupby(["user", "time_ms"]).ngroup().astype("int64"),
        place=(1 - base["click"]).astype("int8"),
        propensity=np.float32(0.02),
        is_random=np.arange(960) < 96,
        pxtr_click=np.float32(0.5),
        candidates=pd.Series([np.int32([1, 2])] * 960),
    )
    assert set(verdicts(full).values()) == {"yes", "partly"}
    assert [name for name, verdict in verdicts(full).items() if verdict == "partly"] == [
        "learned worlds",
        "response model",
    ]
    found = inspect_log(full)
    assert found["sessions"]["count"] == 160
    assert found["sessions"]["source"] == found["requests"]["source"] == "column"
    assert found["random_exposure"] == {"known": True, "rows": 96, "share": 0.1}
    assert found["propensities"] == {"known_share": 1.0, "lowest": pytest.approx(0.02), "highest": pytest.approx(0.02)}
    assert found["production_scores"] == ["click"]
    assert found["places"] == 2


def test_a_thinned_log_supports_neither_leaving_nor_lists() -> None:
    rows = planted().rows
    alone = planted(time_ms=rows["time_ms"] + rows.groupby("user").cumcount() * 10 * MINUTE)
    found = {entry["name"]: entry for entry in inspect_log(alone)["capabilities"]}
    assert (
        found["leave model"]["verdict"] == found["return model"]["verdict"] == found["list effect"]["verdict"] == "no"
    )
    assert found["leave model"]["reason"].startswith("100% of sessions have one row")
    assert "leave model: no - 100% of sessions have one row" in describe(inspect_log(alone))


def test_missing_watch_time_and_duration() -> None:
    assert verdicts(planted(duration=np.float32(np.nan)))["watch-time model"] == "partly"
    watch = np.full(960, np.nan, dtype=np.float32)
    watch[:10] = 3
    assert verdicts(planted(watch_time=watch))["watch-time model"] == "no"


def test_the_command_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "log.csv"
    planted().rows.rename(columns={"user": "uid", "time_ms": "ts"}).to_csv(table, index=False)
    columns = "user=uid,item=item,time=ts,date=date,watch_time=watch_time,duration=duration,click=click,like=like"
    command = [str(table), "--json", str(tmp_path / "found.json"), "--map"]
    main(tyro.cli(Inspect, args=[*command, columns]))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["capabilities"] == inspect_log(planted())["capabilities"]
    assert capsys.readouterr().out.strip() == describe(found).strip()
    with pytest.raises(ValueError, match=r"^log.csv has no column 'uidd' \(did you mean 'uid'\?\)"):
        main(tyro.cli(Inspect, args=[*command, columns.replace("uid", "uidd")]))


def test_mistakes_end_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no .*nothing.* found"):
        main(Inspect(log=tmp_path / "nothing"))
    with pytest.raises(ValueError, match="session_gap_s must be positive, got 0"):
        Inspect(log=tmp_path, session_gap_s=0)
    with pytest.raises(ValueError, match="is a folder and a column map was given"):
        main(Inspect(log=tmp_path, preset="ratings"))


def test_ratings_are_inspected_and_build_no_world(tmp_path: Path) -> None:
    movielens = tmp_path / "ml-1m"
    movielens.mkdir()
    (movielens / "ratings.dat").write_text("1::10::5::978300760\n1::20::3::978300761\n2::10::4::978300762\n")
    (movielens / "movies.dat").write_text("10::A::Drama\n20::B::Comedy\n")
    found = {entry["name"]: entry for entry in Inspect(log=movielens).run()["capabilities"]}
    assert found["learned worlds"]["verdict"] == "no"
    assert "no row says how long a video was watched" in found["learned worlds"]["reason"]
    with pytest.raises(ValueError, match=r"no worlds can be built from the log 'ml-1m': .*no row says how long"):
        build_world(Arguments(log=movielens, out=tmp_path / "worlds"))
    assert not (tmp_path / "worlds").exists()


@needs_data
@pytest.mark.parametrize(
    ("path", "preset", "expected"),
    [
        ("kuairand_pure", None, {"leave model": "no", "list effect": "no", "watch-time model": "yes"}),
        ("ml_latest_small/ratings.parquet", "ratings", {"watch-time model": "no", "response model": "yes"}),
        ("obd_small/bts_men.parquet", "open_bandit", {"off-policy evaluation": "yes", "place effect": "yes"}),
    ],
)
def test_real_logs(path: str, preset: Any, expected: dict[str, str]) -> None:
    found = Inspect(log=Path(REAL) / path, preset=preset).run()
    named = {entry["name"]: entry["verdict"] for entry in found["capabilities"]}
    assert expected.items() <= named.items()
    if path == "kuairand_pure":
        assert found["sessions"]["one_row_share"] == pytest.approx(0.953, abs=0.002)
        assert found["requests"]["shared_row_share"] == pytest.approx(0.015, abs=0.001)
        few = {name for name, signal in found["signals"].items() if not signal["enough"]}
        assert few == {"forward", "hate"}
