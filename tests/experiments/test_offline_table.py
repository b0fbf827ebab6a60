"""The protocol's table: settings and methods, scores by hand, resuming, and refusals."""

import dataclasses
from pathlib import Path

import pytest

from agents.offline.methods import METHODS, SORTS, Budget
from agents.offline.training import request_quality
from experiments.tables import offline
from experiments.tables.offline import OfflineTable
from experiments.tables.runner import RunOptions, complete
from tests.helpers.planted_ratings import planted_ratings


@pytest.fixture
def table(tmp_path: Path) -> OfflineTable:
    folder = tmp_path / "movies"
    folder.mkdir()
    rows = planted_ratings(num_items=300).rows
    ratings = rows.rename(columns={"user": "userId", "item": "movieId"})
    ratings["rating"] = 2.0 + 3.0 * ratings["like"]
    ratings["timestamp"] = ratings["time_ms"] // 1000
    ratings[["userId", "movieId", "rating", "timestamp"]].to_parquet(folder / "ratings.parquet")
    movies = [f"{item},title {item},Genre{item % 4}" for item in range(300)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]))
    run = RunOptions(results=tmp_path / "results", jobs=1)
    return OfflineTable(data=str(folder), seeds=2, width=8, max_epochs=1, sigmas=(0.5,), run=run)


def test_what_is_finished_is_read_back(table: OfflineTable, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {**SORTS, **{name: METHODS[name] for name in ("DNN", "PRM on shuffled labels", "DNR, Beta")}}
    monkeypatch.setattr(offline, "METHODS", few)
    monkeypatch.setattr(offline, "SCORE_METHODS", {"DNR, Beta": METHODS["DNR, Beta"]})
    first = complete(table.outline, table.runs(), table.run)
    assert {setting: result.policies for setting, result in first.results.items()} == {
        "movies, honest": tuple(few),
        "movies, honest, score noise 0.5": ("retriever order", "DNR, Beta"),
    }
    rows = [row for result in first.results.values() for row in result.rows()]
    assert all(0 <= row.mean <= 1 and row.seeds == 2 for row in rows)
    learned = first.results["movies, honest"].row("DNN", "test lists", "NDCG")
    assert learned.low < learned.mean < learned.high

    def never(*given: object) -> None:
        raise AssertionError("this was run before")

    monkeypatch.setattr(offline, "scored_on", never)
    assert complete(table.outline, table.runs(), table.run).to_json()["rows"] == first.to_json()["rows"]
    one = complete(table.outline, dataclasses.replace(table, methods=("DNN",)).runs(), table.run)
    assert [result.policies for result in one.results.values()] == [("DNN",)]
    with pytest.raises(ValueError, match="width was 8, now 16"):
        complete(table.outline, dataclasses.replace(table, width=16).runs(), table.run)


def test_a_ranker_is_scored_request_by_request(table: OfflineTable) -> None:
    data = offline.rerank_data(table.data, "honest", 0.0)
    cell = offline.scored_on(SORTS["retriever order"](Budget(), data, 0), data, 0)
    quality = request_quality(SORTS["retriever order"](Budget(), data, 0).policy, data.test, 0)
    assert cell.num_sessions == len(data.test)
    assert {name: cell.value(name)[0] for name in cell.ratios} == pytest.approx(
        {name: float(value_L.double().mean()) for name, value_L in quality.items()}
    )
    assert 0.5 < cell.value("AUC")[0] < 1, "the retriever knows something of planted tastes"
    assert "AUC" not in offline.scored_on(SORTS["random"](Budget(), data, 0), data, 0).totals


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="seeds, width and max_epochs must be at least 1"):
        OfflineTable(seeds=0)
    with pytest.raises(ValueError, match=r"methods must be among .* got 'DN' \(did you mean 'DNN'\?\)"):
        OfflineTable(methods=("PRM", "DN"))
    with pytest.raises(ValueError, match=r"no .*nowhere found: give .* a MovieLens folder"):
        list(OfflineTable(data="nowhere").runs())
