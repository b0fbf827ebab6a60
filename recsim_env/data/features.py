"""Plain numeric features of items and users, for models and for observations.

Every column is bounded and roughly standardised, so that any learner can take the table as it is.
Legend: N items, U users, D features.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsim_env.data.schema import LoggedDataset
from recsim_env.types import WATCH_TIME

FloatArray = NDArray[np.float32]

BOUND = 4.0
"""No feature leaves [-BOUND, BOUND]."""
USUAL_DURATION_S = 60.0
"""Stands in for the durations of a log that knows none, in seconds."""
UNKNOWN_CODE = -124
"""KuaiRand's mark for an unknown value, read as missing everywhere."""
_LEAST_DEVIATION = 1e-6  # below it a column is constant but for rounding
_HISTORY_LENGTH = "history_length"  # a user's impressions before the log, as if it were a raw column


@dataclass(frozen=True)
class FeatureTable:
    """One row of numbers for each item or user code."""

    values: FloatArray
    """float32 (rows, D), finite, within [-BOUND, BOUND]."""
    names: tuple[str, ...]
    """D column names."""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise ValueError(
                f"FeatureTable needs values of shape (rows, {len(self.names)}), one column a name, "
                f"got shape {self.values.shape}"
            )


@dataclass(frozen=True, kw_only=True)
class FeatureColumn:
    """How one column of numbers comes from a raw one: fitted to one log, applied to any."""

    name: str
    """Of the column of numbers."""
    source: str
    """Of the raw column."""
    level: str | None = None
    """The column is 1 where the raw value reads so; ``None`` for the standardised logarithm of a number."""
    mean: float = 0.0
    """Of the logarithms, where they are known."""
    deviation: float = 1.0
    """Of the logarithms, likewise."""


@dataclass(frozen=True)
class UserEncoder:
    """Turns raw columns of users into numbers as it did for the log that it was fitted to.

    A value that this log did not have is read as unknown: 0 in every column of its own.
    """

    columns: tuple[FeatureColumn, ...]
    """One for each column of numbers."""

    @classmethod
    def fitted(cls, dataset: LoggedDataset, max_levels: int = 16) -> "UserEncoder":
        """What ``user_features`` says of the users of this log."""
        users = dataset.users
        repeated = {f"{name}_range" for name in users.columns}
        columns = _fit_columns(users, {"user_id"} | repeated, max_levels)
        lengths = _history_lengths(dataset)
        if lengths is not None:
            columns.append(_logarithm(_HISTORY_LENGTH, f"log_{_HISTORY_LENGTH}", lengths))
        return cls(tuple(columns))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of numbers."""
        return tuple(column.name for column in self.columns)

    def encode(self, dataset: LoggedDataset) -> FeatureTable:
        """The same numbers for the users of another log.

        Args:
            dataset: a log whose table of users has the raw columns of the first one. Where it has no pre-log history,
                how long that is counts as unknown.

        Returns:
            Table of one row a user code.

        Raises:
            ValueError: a raw column is missing, or holds text where the first log had numbers.
        """
        users = dataset.users
        lengths = _history_lengths(dataset)
        length_U = np.full(len(users), np.nan) if lengths is None else lengths
        users = users.assign(**{_HISTORY_LENGTH: length_U})
        missing = sorted({column.source for column in self.columns} - set(users.columns))
        if missing:
            raise ValueError(
                f"the users of the log {dataset.name!r} lack the columns {', '.join(missing)}, which features were "
                "made of: add them to its table of users, empty where nothing is known"
            )
        return _table(_encoded(users, self.columns), len(users))

    def config(self) -> list[dict[str, Any]]:
        """The columns as JSON values."""
        return [asdict(column) for column in self.columns]

    @classmethod
    def restore(cls, config: Iterable[dict[str, Any]]) -> "UserEncoder":
        """Rebuilds the encoder from what ``config`` returned."""
        return cls(tuple(FeatureColumn(**column) for column in config))


def item_features(
    dataset: LoggedDataset,
    before_date: int | None = None,
    *,
    users: NDArray[np.int64] | None = None,
    max_tags: int = 40,
    max_levels: int = 16,
) -> FeatureTable:
    """Describes every item: duration, tags, type columns, popularity and signal rates.

    Counts come from ``dataset.history`` and from rows of days before ``before_date`` alone, so a model
    that is fitted on rows from ``before_date`` on never sees its own labels in its inputs.

    Args:
        dataset: a checked log.
        before_date: YYYYMMDD; ``None`` counts the pre-log history alone.
        users: codes of the users whose feedback is counted; all by default. A model that is to know nothing of some
            users must not read of them here either.
        max_tags: the most frequent tags of the catalogue get a column each.
        max_levels: raw columns with at most this many values become one column a value.

    Returns:
        Table of N rows.
    """
    items = dataset.items
    duration = items["duration"].to_numpy(dtype=np.float64, na_value=np.nan)
    columns = {
        "log_duration": _standardised(np.log(np.where(duration > 0, duration, np.nan))),
        "duration_known": np.isfinite(duration).astype(np.float32),
    }
    if "tags" in items:
        columns |= _multi_hot(items["tags"], max_tags)
    columns |= _encoded(items, _fit_columns(items, {"item_id", "duration", "tags", "author", "music_id"}, max_levels))
    columns |= _past_counts(dataset, before_date, users)
    return _table(columns, len(items))


def user_features(dataset: LoggedDataset, *, max_levels: int = 16) -> FeatureTable:
    """Describes every user by the raw columns of ``dataset.users`` and the size of the pre-log history.

    Counts become standardised logarithms, columns of at most ``max_levels`` values one column a value.
    A ``<name>_range`` column is left out where ``<name>`` itself is there. A log without user columns
    gives a table of no columns.

    Returns:
        Table of U rows.
    """
    return UserEncoder.fitted(dataset, max_levels).encode(dataset)


def known_durations(dataset: LoggedDataset) -> NDArray[np.float32]:
    """Seconds of every item, float32 (N,): the median of the known ones where one is unknown.

    Where a log knows no duration at all every item gets ``USUAL_DURATION_S``: watch times can still be learned, but
    not what a user makes of a long video or a short one.
    """
    duration = dataset.items["duration"].to_numpy(dtype=np.float32, na_value=np.nan)
    known = np.isfinite(duration) & (duration > 0)
    middle = np.median(duration[known]) if known.any() else USUAL_DURATION_S
    return np.where(known, duration, middle).astype(np.float32)


def _table(columns: dict[str, FloatArray], num_rows: int) -> FeatureTable:
    if not columns:
        return FeatureTable(np.zeros((num_rows, 0), dtype=np.float32), ())
    values = np.stack(list(columns.values()), axis=1).astype(np.float32)
    return FeatureTable(np.clip(values, -BOUND, BOUND), tuple(columns))


def _standardised(values: NDArray[np.float64]) -> FloatArray:
    """Mean 0, deviation 1 over the known values; unknown ones get 0."""
    return _scaled(values, *_moments(values))


def _moments(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and deviation of the known values."""
    known = np.isfinite(values)
    if not known.any():
        return 0.0, 0.0
    mean = values[known].mean()
    return float(mean), float((values - mean)[known].std())


def _scaled(values: NDArray[np.float64], mean: float, deviation: float) -> FloatArray:
    """Values less the mean, over the deviation; 0 where unknown, and throughout where nothing ever deviated."""
    if deviation < _LEAST_DEVIATION:
        return np.zeros(len(values), dtype=np.float32)
    return np.where(np.isfinite(values), (values - mean) / deviation, 0.0).astype(np.float32)


def _multi_hot(tag_lists: pd.Series, max_tags: int) -> dict[str, FloatArray]:
    tags = tag_lists.reset_index(drop=True).explode().dropna()
    item = np.arange(len(tag_lists))
    return {
        f"tag={int(tag)}": np.isin(item, tags.index[tags == tag]).astype(np.float32)
        for tag in tags.value_counts().index[:max_tags]
    }


def _fit_columns(frame: pd.DataFrame, skip: set[str], max_levels: int) -> list[FeatureColumn]:
    """One-hots of columns with few values, logarithms of the other numeric ones; constants say nothing."""
    columns: dict[str, FeatureColumn] = {}
    for name in frame.columns.difference(sorted(skip), sort=False):
        values = frame[name].replace(UNKNOWN_CODE, np.nan)
        counts = values.value_counts().sort_index()
        if len(counts) <= max_levels:
            levels = [_label(level) for level, count in counts.items() if 0 < count < len(values)]
            columns |= {
                f"{name}={level}": FeatureColumn(name=f"{name}={level}", source=name, level=level) for level in levels
            }
        elif pd.api.types.is_numeric_dtype(values):
            columns[f"log_{name}"] = _logarithm(name, f"log_{name}", values.to_numpy(np.float64, na_value=np.nan))
    return list(columns.values())


def _logarithm(source: str, name: str, values: NDArray[np.float64]) -> FeatureColumn:
    mean, deviation = _moments(_log(values))
    return FeatureColumn(name=name, source=source, mean=mean, deviation=deviation)


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of the size, signs kept."""
    return np.sign(values) * np.log1p(np.abs(values))


def _encoded(frame: pd.DataFrame, columns: Iterable[FeatureColumn]) -> dict[str, FloatArray]:
    """The columns of numbers, by name.

    Raises:
        ValueError: text where a number is needed.
    """
    encoded: dict[str, FloatArray] = {}
    labels: dict[str, pd.Series] = {}
    for column in columns:
        values = frame[column.source].replace(UNKNOWN_CODE, np.nan)
        if column.level is not None:
            if column.source not in labels:
                # Compared as text: a file may hold 1 where another, for an unknown value somewhere, holds 1.0.
                labels[column.source] = values.map(_label)
            encoded[column.name] = (labels[column.source] == column.level).to_numpy().astype(np.float32)
            continue
        try:
            numbers = pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise ValueError(f"column {column.source!r} must hold numbers, it does not: {error}") from error
        encoded[column.name] = _scaled(_log(numbers), column.mean, column.deviation)
    return encoded


def _history_lengths(dataset: LoggedDataset) -> NDArray[np.float64] | None:
    """Impressions of every user before the log, (U,); ``None`` where the log has no such history."""
    if dataset.history is None:
        return None
    return np.bincount(dataset.history["user"], minlength=len(dataset.users)).astype(np.float64)


def _label(level: object) -> str:
    return str(int(level)) if isinstance(level, float) and level.is_integer() else str(level)


def _past_counts(
    dataset: LoggedDataset, before_date: int | None, users: NDArray[np.int64] | None, prior: float = 20.0
) -> dict[str, FloatArray]:
    """Log popularity and, for each binary signal recorded, the log-odds of its rate shrunk to the mean."""
    wanted = ["user", "item", *(name for name in dataset.signals if name != WATCH_TIME)]
    parts = [] if dataset.history is None else [dataset.history.reindex(columns=wanted)]
    if before_date is not None:
        parts.append(dataset.rows.loc[dataset.rows["date"] < before_date, wanted])
    past = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=wanted)
    if users is not None:
        past = past[past["user"].isin(users)]
    if past.empty:
        return {}
    num_items = len(dataset.items)
    item = past["item"].to_numpy(dtype=np.int64)
    columns = {"log_popularity": _standardised(np.log1p(np.bincount(item, minlength=num_items)))}
    for name in wanted[2:]:
        signal = past[name].to_numpy(dtype=np.float64, na_value=np.nan)
        known = np.isfinite(signal)
        if len(np.unique(signal[known])) < 2:
            continue
        shown = np.bincount(item[known], minlength=num_items)
        positive = np.bincount(item[known], weights=signal[known], minlength=num_items)
        rate = (positive + prior * signal[known].mean()) / (shown + prior)
        columns[f"log_odds_{name}"] = _standardised(np.log(rate) - np.log1p(-rate))
    return columns


def local_hour(rows: pd.DataFrame) -> NDArray[np.int64]:
    """Hour of the local day, 0..23, of each row of ``LoggedDataset.rows``."""
    return (rows["time_ms"].to_numpy(np.int64) // 3_600_000 + utc_offset_hours(rows)) % 24


def utc_offset_hours(rows: pd.DataFrame) -> int:
    """Local time minus UTC of ``LoggedDataset.rows``.

    ``time_ms`` is UTC and ``date`` is local: the whole number of hours under which they agree for most rows.
    """
    hours = rows["time_ms"].to_numpy(np.int64) // 3_600_000
    date = pd.to_datetime(rows["date"].astype(str), format="%Y%m%d")
    day = (date - pd.Timestamp(1970, 1, 1)).dt.days.to_numpy()
    return max(range(-12, 15), key=lambda shift: (np.mean((hours + shift) // 24 == day), -abs(shift)))
