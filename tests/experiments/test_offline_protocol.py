"""The protocol's table: rows by hand, resuming, and refusals."""

import dataclasses
from pathlib import Path

import pytest

from experiments.tables import offline_protocol
from experiments.tables.offline_protocol import METHODS, SORTS, RerankTable, rows_of, run
from recsim_env.files import read_json, write_json
from tests.helpers.planted_ratings import planted_ratings


@pytest.fixture
def table(tmp_path: Path) -> RerankTable:
    folder = tmp_path / "movies"
    folder.mkdir()
    rows = planted_ratings(num_items=300).rows
    ratings = rows.rename(columns={"user": "userId", "item": "movieId"})
    ratings["rating"] = 2.0 + 3.0 * ratings["like"]
    ratings["timestamp"] = ratings["time_ms"] // 1000
    ratings[["userId", "movieId", "rating", "timestamp"]].to_parquet(folder / "ratings.parquet")
    movies = [f"{item},title {item},Genre{item % 4}" for item in range(300)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]))
    return RerankTable(data=str(folder), seeds=2, width=8, max_epochs=1, sigmas=(0.5,), folder=tmp_path / "runs")


def test_rows_hold_both_intervals() -> None:
    runs = [
        {"mean": {"H": 0.2, "AUC": 0.6}, "error": {"H": 0.01}},
        {"mean": {"H": 0.4, "AUC": 0.8}, "error": {"H": 0.03}},
    ]
    hits, auc = rows_of("honest", "PRM", runs)
    assert (hits["mean"], hits["seeds"]) == (pytest.approx(0.3), 2)
    assert hits["high"] - hits["mean"] == pytest.approx(12.706 * 0.1, rel=1e-3)  # t of one degree, standard error 0.1
    assert hits["request_high"] - hits["mean"] == pytest.approx(1.96 * 0.02)
    assert "request_low" not in auc


def test_what_is_finished_is_read_back(table: RerankTable, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {**SORTS, **{name: METHODS[name] for name in ("DNN", "PRM on shuffled labels")}}
    monkeypatch.setattr(offline_protocol, "METHODS", few)
    monkeypatch.setattr(offline_protocol, "SCORE_METHODS", {"DNR, Beta": METHODS["DNR, Beta"]})
    first = run(table)
    settings = dict.fromkeys((row["setting"], row["method"]) for row in first["rows"])
    noisy = [method for setting, method in settings if setting == "honest, score noise 0.5"]
    assert noisy == ["retriever order", "DNR, Beta"]
    assert [method for setting, method in settings if setting == "honest"] == list(few)
    assert len(list(table.folder.glob("*.json"))) == 2 * (len(few) + 2)
    assert all(0 <= row["mean"] <= 1 for row in first["rows"])

    def never(*given: object) -> None:
        raise AssertionError("this was run before")

    monkeypatch.setattr(offline_protocol, "judge", never)
    assert run(table)["rows"] == first["rows"]
    chosen = run(dataclasses.replace(table, methods=("DNN",)))["rows"]
    assert chosen == [row for row in first["rows"] if row["method"] == "DNN"]
    path = next(table.folder.glob("*DNN-0.json"))
    write_json(path, {**read_json(path), "identity": {}})
    with pytest.raises(ValueError, match="of other data or sizes"):
        run(table)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="seeds, width and max_epochs must be at least 1"):
        RerankTable(seeds=0)
    with pytest.raises(ValueError, match=r"methods must be among .* got \['MLP'\]"):
        RerankTable(methods=("DNN", "MLP"))
    with pytest.raises(ValueError, match=r"there is no .*nowhere: give a MovieLens"):
        _ = RerankTable(data="nowhere").log
