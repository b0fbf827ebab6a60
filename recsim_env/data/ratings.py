"""Readers of rating tables: MovieLens folders and Amazon's ratings-only files.

A rating of 4 stars and more counts as a like; what users saw and did not rate is not known.
"""

import tempfile
from pathlib import Path

import pandas as pd

from recsim_env.data.columns import RATINGS
from recsim_env.data.readers import load_log
from recsim_env.data.schema import LoggedDataset
from recsim_env.data.tables import load_table

_COLUMNS = ["userId", "movieId", "rating", "timestamp"]
_NO_GENRE = "(no genres listed)"


def load_interactions(path: str | Path) -> LoggedDataset:
    """Reads whatever log or rating table lies at a path.

    Args:
        path: a MovieLens folder (``ratings`` and ``movies`` as .dat, .csv or .parquet), a table of Amazon
            ratings (.csv or .csv.gz without a header: user, item, rating, seconds since 1970), or a KuaiRand or
            KuaiRec folder.

    Returns:
        A checked log; films carry their genres as ``tags``.

    Raises:
        ValueError: nothing known lies there.
    """
    path = Path(path)
    if path.is_file():
        return load_amazon_ratings(path)
    if not path.exists():
        raise ValueError(
            f"there is no {path}: give a MovieLens, KuaiRand or KuaiRec folder or a file of ratings, or the name of "
            "one in the folder that the environment variable RECSIM_DATA names"
        )
    if any(path.glob("ratings.*")):
        return load_movielens(path)
    return load_log(path)


def load_movielens(folder: str | Path) -> LoggedDataset:
    """Reads a MovieLens folder: ``ratings`` and ``movies`` as ML-1M's .dat, or as .csv or .parquet.

    Raises:
        ValueError: one of the two files is missing.
    """
    folder = Path(folder)
    movies = _read(folder, "movies", ["movieId", "title", "genres"])
    listed = movies["genres"].where(movies["genres"] != _NO_GENRE).str.split("|")
    code = {genre: number for number, genre in enumerate(sorted(set(listed.explode().dropna())))}
    tags = [[code[genre] for genre in genres] if isinstance(genres, list) else [] for genres in listed]
    items = pd.DataFrame({"item_id": movies["movieId"], "tags": tags})
    return _log(_read(folder, "ratings", _COLUMNS), folder.name, items)


def load_amazon_ratings(path: str | Path) -> LoggedDataset:
    """Reads one table of ratings: user, item, rating, seconds since 1970.

    The Amazon reviews' ratings-only files have no header line; one as MovieLens has it is understood too.

    Raises:
        ValueError: the file has other columns.
    """
    path = Path(path)
    has_header = list(pd.read_csv(path, nrows=0).columns) == _COLUMNS
    ratings = pd.read_csv(path) if has_header else pd.read_csv(path, names=_COLUMNS)
    if not all(pd.api.types.is_numeric_dtype(ratings[name]) for name in ("rating", "timestamp")):
        raise ValueError(
            f"{path.name} must have the columns user, item, rating, timestamp (s), without a header line or with "
            f"{','.join(_COLUMNS)}; for another table read it with load_table and a column map"
        )
    return _log(ratings, path.name.split(".")[0], None)


def _read(folder: Path, stem: str, columns: list[str]) -> pd.DataFrame:
    for name, read in (
        (f"{stem}.parquet", pd.read_parquet),
        (f"{stem}.csv", pd.read_csv),
        (f"{stem}.dat", lambda path: pd.read_csv(path, sep="::", engine="python", encoding="latin-1", names=columns)),
    ):
        if (folder / name).exists():
            return read(folder / name)[columns]
    raise ValueError(f"no {stem}.dat, {stem}.csv or {stem}.parquet in {folder}: give a MovieLens folder")


def _log(ratings: pd.DataFrame, name: str, items: pd.DataFrame | None) -> LoggedDataset:
    # The table reader works through files of any size, batch by batch, so the ratings become one that it can read.
    with tempfile.TemporaryDirectory() as folder:
        ratings.to_parquet(Path(folder) / "ratings.parquet")
        return load_table(Path(folder) / "ratings.parquet", RATINGS, name=name, items=items)
