"""Readers of published logs, and ``load_log``, the one front door to them and to any other table.

To add a log, write a loader that finds its files and hands a column map to ``load_table``, and give it a line in
``READERS``. A log that is one table with a header needs no code, only a map (``columns.py``).
"""

import dataclasses
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from recsim_env.data.columns import KUAIRAND, KUAIREC, PRESETS, RATINGS, ColumnMap
from recsim_env.data.schema import LoggedDataset
from recsim_env.data.tables import column_names, load_table, read_features

_UNKNOWN = -124  # how KuaiRand writes an unknown flag of a user
_KUAIRAND_TABLES = ("user_features", "video_features_basic", "user_history")
_RATING_COLUMNS = ["userId", "movieId", "rating", "timestamp"]
_MOVIE_COLUMNS = ["movieId", "title", "genres"]
_NO_GENRE = "(no genres listed)"


def load_kuairand(folder: str | Path, *, request_by_time: bool = False) -> LoggedDataset:
    """Reads a KuaiRand folder (Pure, 1K or 27K), official CSV files or Parquet copies.

    All ``log_standard_*`` and ``log_random_*`` files found are read together; the column ``is_random``
    tells them apart. The monthly statistics of videos are never read: they average over the whole
    month and would leak the test days into features.

    Args:
        folder: ``KuaiRand-X/``, ``KuaiRand-X/data``, the folder above, or a flat folder with the files.
        request_by_time: count rows of one user with equal time as one slate. It holds in 1K and 27K;
            Pure is thinned to a pool of 7,583 videos, so hardly any slate is left whole.

    Returns:
        A checked log. Where present, the columns ``session``, ``request``, ``place``, ``propensity``,
        ``candidates`` and ``pxtr_<signal>`` are taken over: logs drawn from a known world keep what they know.
    """
    logs, tables = _kuairand_files(Path(folder))
    present = set(column_names(logs[0]))
    known = {name: name for name in ("session", "request", "place", "propensity", "candidates") if name in present}
    columns = dataclasses.replace(
        KUAIRAND,
        request_by_time=request_by_time and "request" not in known,
        pxtr={name.removeprefix("pxtr_"): name for name in sorted(present) if name.startswith("pxtr_")},
        **known,  # type: ignore[arg-type]
    )
    return load_table(
        logs,
        columns,
        name=f"kuairand_{_version(logs[0]) or 'log'}",
        users=_kuairand_users(tables["user_features"]),
        items=_kuairand_items(tables["video_features_basic"]),
        history=_kuairand_history(tables["user_history"]),
    )


def load_kuairec(folder: str | Path, matrix: str = "big") -> LoggedDataset:
    """Reads a KuaiRec folder: watch time is its only signal, and none is derived from it.

    Args:
        folder: ``KuaiRec/`` or ``KuaiRec 2.0/``, their ``data``, or the folder above.
        matrix: ``big`` (12.5 M rows as logged) or ``small`` (1,411 users who saw nearly all of 3,327 videos).

    Returns:
        A checked log. Rows without a time (4 % of the small matrix) are left out and counted.
    """
    if matrix not in ("big", "small"):
        raise ValueError(f"matrix must be big or small, got {matrix!r}")
    found = _kuairec_folder(Path(folder))
    if found is None or not _one_copy(found, f"{matrix}_matrix"):
        raise ValueError(f"no {matrix}_matrix.csv in {folder}, its data/ or KuaiRec*/data: check the folder")
    items = _read_all(_one_copy(found, "item_categories"), "video_id", "feat")
    if items is not None:
        items = items.rename(columns={"video_id": "item_id"})
        items["tags"] = _tag_lists(items.pop("feat"))
    return load_table(
        _one_copy(found, f"{matrix}_matrix"),
        KUAIREC,
        name=f"kuairec_{matrix}",
        users=_known_flags(_read_all(_one_copy(found, "user_features"), "user_id")),
        items=items,
    )


def load_movielens(folder: str | Path) -> LoggedDataset:
    """Reads a MovieLens folder: 4 stars and more are a like; what users saw and did not rate is not known.

    Args:
        folder: holds ``ratings`` and ``movies``, each as .parquet, .csv or, without a header, as ML-1M's .dat.

    Returns:
        A checked log without watch times; films carry their genres as ``tags``.

    Raises:
        ValueError: one of the two files is missing, or lacks a column.
    """
    folder = Path(folder)
    found = _movielens_file(folder, "movies")
    movies = read_features(found, _MOVIE_COLUMNS) if found.suffix != ".dat" else _without_header(found, _MOVIE_COLUMNS)
    listed = movies["genres"].where(movies["genres"] != _NO_GENRE).str.split("|")
    code = {genre: number for number, genre in enumerate(sorted(set(listed.explode().dropna())))}
    tags = [[code[genre] for genre in genres] if isinstance(genres, list) else [] for genres in listed]
    items = pd.DataFrame({"item_id": movies["movieId"], "tags": tags})
    return load_ratings(_movielens_file(folder, "ratings"), name=folder.name, items=items)


def load_ratings(path: str | Path, *, name: str | None = None, items: pd.DataFrame | None = None) -> LoggedDataset:
    """Reads one table of ratings: 4 stars and more are a like.

    Args:
        path: with MovieLens' header (.csv, .csv.gz, .parquet), or without any: user, item, rating, seconds since 1970,
            as in the ratings-only files of the Amazon reviews (.csv, .csv.gz) and in ML-1M (.dat).
        name: name of the data set; the file's stem by default.
        items: feature table as ``load_table`` takes it.

    Raises:
        ValueError: the file has other columns.
    """
    path = Path(path)
    name = name or path.name.split(".")[0]
    if path.suffix != ".dat" and not _bare_ratings(path):
        return load_table(path, RATINGS, name=name, items=items)
    ratings = _without_header(path, _RATING_COLUMNS)
    if not all(pd.api.types.is_numeric_dtype(ratings[column]) for column in ("rating", "timestamp")):
        raise ValueError(f"{path.name} must hold user, item, rating, seconds since 1970 in every line, some do not")
    with tempfile.TemporaryDirectory() as folder:  # load_table streams files, so the ratings become one
        ratings.to_parquet(Path(folder) / "ratings.parquet")
        return load_table(Path(folder) / "ratings.parquet", RATINGS, name=name, items=items)


class Reader(NamedTuple):
    """One kind of log that ``load_log`` knows by its look."""

    what: str
    """What it is, as messages say it."""
    fits: Callable[[Path], bool]
    """Whether such a log lies at a path that exists."""
    load: Callable[[Path], LoggedDataset]
    """Reads it."""


READERS = (
    Reader("a KuaiRand folder (log_standard_*)", lambda path: _kuairand_folder(path) is not None, load_kuairand),
    Reader("a KuaiRec folder (big_matrix or small_matrix)", lambda path: bool(_kuairec_folder(path)), load_kuairec),
    Reader("a MovieLens folder (ratings, movies)", lambda path: any(path.glob("ratings.*")), load_movielens),
    Reader(
        "a table of ratings with MovieLens' header, or Amazon's with none", lambda path: _is_ratings(path), load_ratings
    ),
)
"""Every log that is known by its look; the first that fits reads."""


def load_log(path: str | Path, columns: ColumnMap | None = None) -> LoggedDataset:
    """Reads whatever log lies at a path.

    Args:
        path: a log that one of ``READERS`` knows (a KuaiRand, KuaiRec or MovieLens folder, a table of ratings), or any
            .csv, .csv.gz or .parquet table.
        columns: the column map of a table; what ``READERS`` know needs none.

    Raises:
        ValueError: nothing known lies there, or a table comes without a map.
    """
    path = Path(path)
    kinds = ", ".join(reader.what for reader in READERS)
    known = f"{kinds}, or any .csv, .csv.gz or .parquet table with a column map"
    if not path.exists():
        raise ValueError(f"no {path} found: give {known}")
    if columns is not None:
        if path.is_dir():
            raise ValueError(f"{path} is a folder and a column map was given: name the table itself")
        return load_table(path, columns)
    for reader in READERS:
        if reader.fits(path):
            return reader.load(path)
    if path.is_dir():
        raise ValueError(f"nothing known lies in {path}: give {known}")
    raise ValueError(
        f"{path.name} needs a column map: name its user, item and time columns and its feedback, or take a preset "
        f"({', '.join(PRESETS)}). It has {', '.join(column_names(path))}. Without a map are read: {kinds}"
    )


def _kuairec_folder(folder: Path) -> Path | None:
    for candidate in (folder, folder / "data", *sorted(folder.glob("KuaiRec*/data"))):
        if _one_copy(candidate, "big_matrix") or _one_copy(candidate, "small_matrix"):
            return candidate
    return None


def _kuairand_folder(folder: Path) -> Path | None:
    candidates = (folder, folder / "data", *sorted(folder.glob("KuaiRand-*/data")))
    return next((candidate for candidate in candidates if _kuairand_logs(candidate)), None)


def _kuairand_logs(folder: Path) -> list[Path]:
    return _one_copy(folder, "log_standard_*") + _one_copy(folder, "log_random_*")


def _kuairand_files(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Log files, and the files of each feature table, from the first folder that holds a log."""
    found = _kuairand_folder(folder)
    if found is None:
        raise ValueError(
            f"no log_standard_* or log_random_* file (.csv or .parquet) in {folder}, its data/ or "
            "KuaiRand-*/data: give the folder of one KuaiRand version"
        )
    logs = _kuairand_logs(found)
    siblings = [other for other in folder.glob("KuaiRand-*/data") if _one_copy(other, "log_*")]
    versions = sorted({version for log in logs if (version := _version(log))})
    if len(siblings) > 1 or len(versions) > 1:
        names = versions if len(versions) > 1 else sorted(other.parent.name for other in siblings)
        raise ValueError(f"{folder} holds several KuaiRand versions ({', '.join(names)}): give the folder of one")
    tables = {kind: _one_copy(found, f"{kind}_*") for kind in _KUAIRAND_TABLES}
    tables["user_history"] = [path for path in tables["user_history"] if "summary" not in path.name]
    return logs, tables


def _one_copy(folder: Path, stem: str) -> list[Path]:
    """Files with such a stem; where a CSV file has a Parquet copy, the copy."""
    found = {path.name.split(".")[0]: path for path in sorted(folder.glob(f"{stem}.csv*"))}
    found |= {path.stem: path for path in folder.glob(f"{stem}.parquet")}
    return [found[name] for name in sorted(found)]


def _version(log: Path) -> str | None:
    match = re.search(r"_(pure|1k|27k)(?=[._])", log.name)
    return match.group(1) if match else None


def _read_all(paths: list[Path], *required: str) -> pd.DataFrame | None:
    return pd.concat([read_features(path, required) for path in paths], ignore_index=True) if paths else None


def _known_flags(users: pd.DataFrame | None) -> pd.DataFrame | None:
    """Users with NaN where the source writes its code for unknown."""
    return None if users is None else users.mask(users == _UNKNOWN)


def _kuairand_users(paths: list[Path]) -> pd.DataFrame | None:
    return _known_flags(_read_all(paths, "user_id"))


def _kuairand_items(paths: list[Path]) -> pd.DataFrame | None:
    items = _read_all(paths, "video_id", "author_id", "video_duration", "tag")
    if items is None:
        return None
    items = items.rename(columns={"video_id": "item_id", "author_id": "author"})
    duration = items.pop("video_duration").to_numpy(np.float64, na_value=np.nan) / 1e3
    items["duration"] = np.where(duration > 0, duration, np.nan).astype(np.float32)
    items["tags"] = _tag_lists(items.pop("tag"))
    return items


def _tag_lists(texts: pd.Series) -> list[list[int]]:
    """Tags of each item. Sources write ``12,62``, ``[12, 62]``, a lone number, or nothing."""
    known = {text: [int(float(part)) for part in re.findall(r"[\d.]+", str(text))] for text in texts.unique()}
    return [known[text] if not pd.isna(text) else [] for text in texts]


def _kuairand_history(paths: list[Path]) -> pd.DataFrame | None:
    history = _read_all(paths, "user_id", "video_id", "pos")
    if history is None:
        return None
    flags = {str(source): signal for signal, source in KUAIRAND.signals.items()}
    history = history.rename(columns={"video_id": "item_id", "pos": "position", **flags})
    types = {"position": np.int32} | {signal: np.int8 for signal in flags.values() if signal in history}
    return history.astype(types)


def _movielens_file(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.{suffix}" for suffix in ("parquet", "csv", "dat")):
        if path.exists():
            return path
    raise ValueError(f"no {stem}.dat, {stem}.csv or {stem}.parquet in {folder}: give a MovieLens folder")


def _without_header(path: Path, names: list[str]) -> pd.DataFrame:
    """A table without a header line: Amazon's commas, or ML-1M's double colons and Latin letters."""
    if path.suffix == ".dat":
        return pd.read_csv(path, sep="::", engine="python", encoding="latin-1", names=names)
    return pd.read_csv(path, names=names, low_memory=False)  # else ids of digits alone would be numbers in some parts


def _is_ratings(path: Path) -> bool:
    return path.is_file() and (column_names(path) == _RATING_COLUMNS or _bare_ratings(path))


def _bare_ratings(path: Path) -> bool:
    """Whether the first line of a file is no header but a rating: user, item, up to 5 stars, seconds since 1970."""
    return re.fullmatch(r"[^,]+,[^,]+,[0-5](\.\d+)?,\d{9,10}", ",".join(column_names(path))) is not None
