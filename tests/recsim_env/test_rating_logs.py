"""Logs of ratings: MovieLens folders in their three forms, Amazon's files, and what is taken for neither."""

import os
from pathlib import Path

import pandas as pd
import pytest

from recsim_env.data import RATINGS, load_log

REAL = os.environ.get("RECSIM_DATA", "")
HEADER = "userId,movieId,rating,timestamp\n"


@pytest.fixture
def movielens(tmp_path: Path) -> Path:
    """ML-1M in miniature: two users, two films, no header."""
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::10::5::978300760\n1::20::3::978300761\n2::10::4::978300762\n")
    (folder / "movies.dat").write_text("10::Öl (1990)::Comedy|Drama\n20::B::Drama\n", encoding="latin-1")
    return folder


def test_movielens_is_read_in_each_of_its_forms(movielens: Path, tmp_path: Path) -> None:
    log = load_log(movielens)
    assert log.name == "ml-1m"
    assert log.signals == ("like",)
    assert log.rows[["user", "item", "like"]].to_numpy().tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert log.rows["time_ms"].tolist() == [978300760000, 978300761000, 978300762000]
    assert log.items["tags"].tolist() == [[0, 1], [1]]
    table, parquet = tmp_path / "csv", tmp_path / "parquet"
    for folder in (table, parquet):
        folder.mkdir()
    (table / "ratings.csv").write_text(HEADER + "1,10,5.0,978300760\n1,20,3.5,978300761\n2,10,4.0,978300762\n")
    (table / "movies.csv").write_text("movieId,title,genres\n10,Oil,Comedy|Drama\n20,B,Drama\n")
    for stem in ("ratings", "movies"):
        pd.read_csv(table / f"{stem}.csv").to_parquet(parquet / f"{stem}.parquet")
    assert load_log(table).digest == load_log(parquet).digest == log.digest


def test_films_without_a_genre_have_no_tags(movielens: Path) -> None:
    (movielens / "movies.dat").write_text("10::A::(no genres listed)\n20::B::Drama\n30::C::Action\n")
    assert load_log(movielens).items["tags"].tolist() == [[], [1], [0]]


def test_a_film_table_that_is_missing_or_lacks_a_column(movielens: Path) -> None:
    (movielens / "movies.dat").unlink()
    with pytest.raises(ValueError, match=r"no movies.dat, movies.csv or movies.parquet in .*ml-1m"):
        load_log(movielens)
    (movielens / "movies.csv").write_text("movieId,title,genre\n10,A,Drama\n")
    with pytest.raises(ValueError, match=r"movies.csv has no column 'genres' \(did you mean 'genre'\?\)"):
        load_log(movielens)


@pytest.mark.parametrize("name", ["books.csv", "books.csv.gz"])
def test_tables_of_ratings_need_no_map(tmp_path: Path, name: str) -> None:
    """Amazon's have no header; one with MovieLens' header is known, too."""
    path = tmp_path / name
    lines = pd.DataFrame([["A1", "B7", 5.0, 1405382400], ["A2", "B7", 1.0, 1405382401]])
    lines.to_csv(path, index=False, header=False)
    bare = load_log(path)
    assert bare.name == "books"
    assert bare.users["user_id"].tolist() == ["A1", "A2"]
    assert bare.rows["like"].tolist() == [1, 0]
    lines.to_csv(path, index=False, header=HEADER.strip().split(","))
    assert load_log(path).digest == load_log(path, RATINGS).digest == bare.digest


def test_ids_of_digits_alone_stay_text_beside_others(tmp_path: Path) -> None:
    """Amazon's items begin with book numbers, leading zeros and all; the first letter comes far down the file."""
    path = tmp_path / "books.csv"
    size = 200_000
    items = ["0001713353"] * (size - 1) + ["B00A"]
    pd.DataFrame({"user": [f"A{i % 9}" for i in range(size)], "item": items, "stars": 5.0, "s": range(size)}).assign(
        s=lambda frame: frame["s"] + 1405382400
    ).to_csv(path, index=False, header=False)
    assert load_log(path).items["item_id"].tolist() == ["0001713353", "B00A"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item,rating,timestamp\nA1,B7,5.0,1405382400\n", "books.csv needs a column map: .* It has user, item"),
        ("A1,B7,1405382400,1\nA2,B7,1405382401,0\n", "books.csv needs a column map"),  # the time comes third
        ("A1,B7,5.0,1405382400\nA2,B7,five,1405382401\n", "seconds since 1970 in every line"),
    ],
)
def test_other_tables_are_not_taken_for_ratings(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "books.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_log(tmp_path / "books.csv")


def test_refusals_name_every_kind_of_log(tmp_path: Path) -> None:
    kinds = "a KuaiRand folder .* a KuaiRec folder .* a MovieLens folder .* a table of ratings .* Amazon"
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "log.csv"):
        with pytest.raises(ValueError, match=kinds):
            load_log(path)


@pytest.mark.skipif(not REAL, reason="set RECSIM_DATA to the folder with ml_latest_small")
def test_the_real_films() -> None:
    log = load_log(Path(REAL) / "ml_latest_small")
    genres = pd.read_parquet(Path(REAL) / "ml_latest_small" / "movies.parquet")["genres"]
    listed = genres[genres != "(no genres listed)"].str.split("|").explode()
    assert len(log.rows) == 100_836
    assert sum(len(tags) for tags in log.items["tags"]) == len(listed)
    assert {tag for tags in log.items["tags"] for tag in tags} == set(range(listed.nunique()))
