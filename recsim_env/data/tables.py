"""Any CSV or Parquet log, read through a column map: streamed, checked and brought to canonical form.

A file is read in batches and only the columns that the map names are kept, in compact types, so memory
grows with the rows kept and nothing else: a KuaiRand log takes 37 bytes a row, at most 111 while its rows
are sorted, beside the batches in flight (0.1 GB) and about 0.1 kB for each distinct user and item.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from tqdm import tqdm

from recsim_env.data import conversions
from recsim_env.data.columns import ColumnMap
from recsim_env.data.conversions import Array
from recsim_env.data.schema import LoggedDataset, canonical_order
from recsim_env.plugins import nearest
from recsim_env.types import WATCH_TIME

_BATCH_ROWS = 1 << 18
_BATCH_BYTES = 1 << 22


def load_table(
    paths: str | Path | Sequence[str | Path],
    columns: ColumnMap,
    *,
    name: str | None = None,
    users: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
    history: pd.DataFrame | None = None,
) -> LoggedDataset:
    """Reads one log from any number of CSV or Parquet files.

    Args:
        paths: one file or several; files end in .csv, .csv.gz or .parquet.
        columns: where each canonical column is found.
        name: name of the data set; the first file's stem by default.
        users: feature table with a ``user_id`` column. Users without a row in it get empty features.
        items: feature table with an ``item_id`` column, and ``duration`` (s), ``author``, ``tags`` if known.
        history: earlier impressions with ``user_id``, ``item_id``, ``position`` and any signals.

    Returns:
        A checked log. Users and items are coded in the order of their ids, whatever the order of the
        files. Rows that repeat (user, item, time, place) are dropped but for the first.

    Raises:
        ValueError: a file, column, unit or value is wrong; the message says which and what to do.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files:
        raise ValueError("no file to read: give at least one .csv or .parquet path")
    reader = _RowReader(columns)
    for file in files:
        reader.read(file)
    return reader.finish(name or files[0].name.split(".")[0], users, items, history)


def column_names(path: Path) -> list[str]:
    """Names of the columns of a CSV or Parquet file, read from its header alone."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}: check the path")
    if path.suffix == ".parquet":
        try:
            return list(pq.read_schema(path).names)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path.name} is no whole Parquet file: {error}. Write it again") from error
    if not path.name.endswith((".csv", ".csv.gz")):
        raise ValueError(f"cannot read {path.name}: logs are .csv, .csv.gz or .parquet files")
    with pa.input_stream(str(path), compression="detect") as stream:
        header = stream.read(1 << 16).decode("utf-8-sig", errors="replace").splitlines()
    if not header:
        raise ValueError(f"{path} is empty: a log needs a header line and rows")
    return next(csv.reader(header[:1]))


def require_columns(names: Sequence[str], present: Sequence[str], path: Path) -> None:
    """Raises ValueError naming the first missing column and its nearest match."""
    for name in names:
        if name not in present:
            raise ValueError(f"{path.name} has no column {name!r}{nearest(name, present)}; it has {', '.join(present)}")


def read_features(path: Path, required: Sequence[str]) -> pd.DataFrame:
    """A whole CSV or Parquet feature table that has the required columns."""
    require_columns(required, column_names(path), path)
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, low_memory=False)


def _batches(path: Path, columns: ColumnMap) -> Iterator[pa.RecordBatch]:
    """Batches of the wanted columns."""
    wanted = columns.source_columns()
    require_columns(wanted, column_names(path), path)
    if path.suffix == ".parquet":
        yield from pq.ParquetFile(path).iter_batches(batch_size=_BATCH_ROWS, columns=list(wanted))
        return
    # Keys, text and flags keep the type they are found in. Other numbers are declared: a first block of
    # whole numbers would misjudge them.
    kept = {columns.item, columns.candidates, columns.session, columns.request, columns.is_random}
    kept |= {source for source in columns.signals.values() if isinstance(source, str)}
    kept |= {columns.user} if isinstance(columns.user, str) else set(columns.user)
    kept |= {columns.time} if columns.time_unit == "timestamp" else set()
    options = pa_csv.ConvertOptions(
        include_columns=list(wanted),
        column_types={name: pa.float64() for name in wanted if name not in kept},
        strings_can_be_null=True,
    )
    blocks = pa_csv.ReadOptions(block_size=_BATCH_BYTES)
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            yield from pa_csv.open_csv(stream, read_options=blocks, convert_options=options)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path.name} cannot be read as a log: {error}. Check the column map") from error


class _Codes:
    """Numbers distinct ids as they arrive; ``ranks`` renumbers them in the order of the ids."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._codes: dict[Any, int] = {}

    def encode(self, column: pa.Array | pa.ChunkedArray) -> Array:
        """Codes (int32) of a column of ids."""
        encoded = conversions.ids(column, self.kind).dictionary_encode()
        codes = self._codes
        lookup = [codes.setdefault(value, len(codes)) for value in encoded.dictionary.to_pylist()]
        result: Array = np.asarray(lookup, dtype=np.int32)[encoded.indices.to_numpy()]
        return result

    def numeric(self) -> bool:
        """Whether the ids seen so far are numbers."""
        return not isinstance(next(iter(self._codes), ""), str)

    def ranks(self) -> tuple[list[Any], Array]:
        """All ids in order, and for each arrival number the id's place in that order."""
        try:
            ids = sorted(self._codes)
        except TypeError as error:
            raise ValueError(f"{self.kind} ids mix numbers and text: use one kind in all files") from error
        arrival = np.fromiter((self._codes[value] for value in ids), dtype=np.int64, count=len(ids))
        rank = np.empty(len(ids), dtype=np.int32)
        rank[arrival] = np.arange(len(ids), dtype=np.int32)
        return ids, rank


class _RowReader:
    """Gathers canonical columns batch by batch, then codes, sorts and cleans them."""

    def __init__(self, columns: ColumnMap) -> None:
        self._map = columns
        self._users = _Codes("user")
        self._items = _Codes("item")
        self._chunks: dict[str, list[Array]] = {}
        self._counts = {"rows_read": 0, "rows_without_time": 0}

    def read(self, path: Path) -> None:
        """Adds one file."""
        with tqdm(desc=path.name, unit=" rows", unit_scale=True, disable=None) as bar:
            for batch in _batches(path, self._map):
                try:
                    chunk = self._canonical(self._with_time(batch))
                except ValueError as error:
                    raise ValueError(f"{path.name}: {error}") from error
                for column, values in chunk.items():
                    self._chunks.setdefault(column, []).append(values)
                bar.update(len(batch))

    def _with_time(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch without rows that lack a time."""
        self._counts["rows_read"] += len(batch)
        missing = np.isnan(conversions.milliseconds(batch, self._map))
        if not missing.any():
            return batch
        if self._map.missing_time == "error":
            raise ValueError(
                f"column {self._map.time!r} is empty in {missing.sum()} rows: remove them, or set missing_time='drop'"
            )
        self._counts["rows_without_time"] += int(missing.sum())
        return batch.filter(pa.array(~missing))

    def _canonical(self, batch: pa.RecordBatch) -> dict[str, Array]:
        columns = self._map
        time_ms = conversions.milliseconds(batch, columns).astype(np.int64)
        rows: dict[str, Array] = {
            "user": self._users.encode(conversions.user_ids(batch, columns.user)),
            "item": self._items.encode(batch.column(columns.item)),
            "time_ms": time_ms,
            "date": conversions.whole(batch, columns.date, np.int32)
            if columns.date
            else conversions.dates(time_ms, columns.utc_offset_hours),
            "watch_time": conversions.seconds(batch, columns.watch_time, columns.watch_time_unit),
            "duration": conversions.seconds(batch, columns.duration, columns.duration_unit),
        }
        rows["duration"][rows["duration"] == 0] = np.nan
        rows |= {signal: conversions.zero_one(batch, source) for signal, source in columns.signals.items()}
        if columns.tab is not None:
            rows["tab"] = conversions.whole(batch, columns.tab, np.int8)
        if columns.session is not None:
            rows["session"] = conversions.whole(batch, columns.session, np.int64)
        if columns.request is not None:
            rows["request"] = conversions.whole(batch, columns.request, np.int64)
        if columns.place is not None:
            rows["place"] = conversions.whole(batch, columns.place, np.int8, minus=columns.first_place)
        if columns.propensity is not None:
            rows["propensity"] = conversions.floats(batch, columns.propensity).astype(np.float32)
        if isinstance(columns.is_random, str):
            rows["is_random"] = conversions.zero_one(batch, columns.is_random).astype(np.bool_)
        elif columns.is_random is not None:
            rows["is_random"] = np.full(len(batch), columns.is_random)
        for signal, source in columns.pxtr.items():
            rows[f"pxtr_{signal}"] = conversions.floats(batch, source).astype(np.float32)
        if columns.candidates is not None:
            rows["candidates"] = self._candidate_codes(batch.column(columns.candidates))
        return rows

    def _candidate_codes(self, lists: pa.Array) -> Array:
        """One array of item codes a row, in arrival numbers."""
        if pa.types.is_string(lists.type) or pa.types.is_large_string(lists.type):
            lists = pc.split_pattern(lists.cast(pa.string()), ",")
            if self._items.numeric():
                lists = lists.cast(pa.list_(pa.int64()))
        codes = self._items.encode(lists.flatten())
        ends = np.cumsum(pc.list_value_length(lists).fill_null(0).to_numpy())
        result = np.empty(len(lists), dtype=object)
        for row, part in enumerate(np.split(codes, ends[:-1])):
            result[row] = part
        return result

    def finish(
        self,
        name: str,
        users: pd.DataFrame | None,
        items: pd.DataFrame | None,
        history: pd.DataFrame | None,
    ) -> LoggedDataset:
        """Builds the checked data set."""
        if not any(len(chunk) for chunk in self._chunks.get("user", ())):
            raise ValueError(f"the log {name!r} has no rows: give a file with at least one impression")
        for codes, table in ((self._users, users), (self._items, items)):
            for frame in (table, history):
                if frame is not None:
                    codes.encode(pa.array(frame[f"{codes.kind}_id"]))
        user_ids, user_rank = self._users.ranks()
        item_ids, item_rank = self._items.ranks()
        rows = {column: np.concatenate(self._chunks.pop(column)) for column in list(self._chunks)}
        rows["user"], rows["item"] = user_rank[rows["user"]], item_rank[rows["item"]]
        for row, codes_of_row in enumerate(rows.get("candidates", ())):
            rows["candidates"][row] = item_rank[codes_of_row]
        self._counts["duplicates_dropped"] = _sort_and_drop_duplicates(rows)
        if self._map.request_by_time:
            rows["request"] = _runs(rows["user"], rows["time_ms"])
        item_table = _item_table(self._features("item", item_ids, items))
        _fill_durations(rows, item_table)
        signals = set(self._map.signals)
        if not np.isnan(rows[WATCH_TIME]).all():
            signals.add(WATCH_TIME)
        return LoggedDataset(
            name=name,
            rows=pd.DataFrame(rows, copy=False),
            users=self._features("user", user_ids, users),
            items=item_table,
            signals=canonical_order(signals),
            history=None if history is None else self._coded_history(history, user_rank, item_rank),
            counts=self._counts,
        )

    def _features(self, kind: str, ids: list[Any], features: pd.DataFrame | None) -> pd.DataFrame:
        """One row of features for each id, empty where the table has none; of repeated rows the first."""
        key = f"{kind}_id"
        if features is None:
            return pd.DataFrame({key: ids})
        unique = features.drop_duplicates(key)
        self._counts[f"{kind}_feature_rows_repeated"] = len(features) - len(unique)
        self._counts[f"{kind}s_without_features"] = len(ids) - len(unique)
        return unique.set_index(key).reindex(pd.Index(ids, name=key)).reset_index()

    def _coded_history(self, history: pd.DataFrame, user_rank: Array, item_rank: Array) -> pd.DataFrame:
        coded = history.drop(columns=["user_id", "item_id"])
        coded.insert(0, "user", user_rank[self._users.encode(pa.array(history["user_id"]))])
        coded.insert(1, "item", item_rank[self._items.encode(pa.array(history["item_id"]))])
        return coded


def _runs(*keys: Array) -> Array:
    """Numbers runs of equal keys in sorted rows: 0, 0, 1, 2, 2, ..."""
    changed = np.zeros(len(keys[0]) - 1, dtype=np.bool_)
    for key in keys:
        changed |= key[1:] != key[:-1]
    return np.concatenate([[0], np.cumsum(changed)])


def _sort_and_drop_duplicates(rows: dict[str, Array]) -> int:
    """Sorts rows by (user, time, place) in place and keeps the first of equal (user, item, time, place)."""
    keys = ["user", "time_ms", "place"] if "place" in rows else ["user", "time_ms"]
    order = np.lexsort([rows[name] for name in reversed(keys)])
    # Only rows that tie in the sorting keys can repeat one another; usually these are few.
    ties = np.ones(len(order) - 1, dtype=np.bool_)
    for name in keys:
        ties &= np.diff(rows[name][order]) == 0
    tied = np.flatnonzero(np.append(ties, False) | np.append(False, ties))
    repeats = pd.DataFrame({name: rows[name][order[tied]] for name in (*keys, "item")}).duplicated()
    order = np.delete(order, tied[repeats.to_numpy()])
    for name in rows:
        rows[name] = rows[name][order]
    return int(repeats.sum())


def _item_table(items: pd.DataFrame) -> pd.DataFrame:
    """Items with ``duration``, ``author`` and ``tags`` in every case."""
    unknown = np.full(len(items), np.nan, dtype=np.float32)
    items["duration"] = np.asarray(items.get("duration", unknown), dtype=np.float32)
    items["author"] = items.get("author", unknown)
    tags = np.asarray(items.get("tags", unknown), dtype=object)
    items["tags"] = [list(tag) if isinstance(tag, list | np.ndarray) else [] for tag in tags]
    return items


def _fill_durations(rows: dict[str, Array], items: pd.DataFrame) -> None:
    """Items that lack a duration take the median of their rows; then rows that lack one take their item's."""
    table = items["duration"].to_numpy(copy=True)
    known = ~np.isnan(rows["duration"])
    lacking = known & np.isnan(table[rows["item"]])
    medians = pd.Series(rows["duration"][lacking]).groupby(rows["item"][lacking]).median()
    table[medians.index] = medians
    items["duration"] = table
    rows["duration"][~known] = table[rows["item"][~known]]
