"""Logged data in one checked form: canonical columns, units and codes, whatever the source was called.

``rows`` is one logged impression a row, sorted by (user, time_ms, place). Times are epoch milliseconds,
watch time and duration are seconds, users and items are codes: row numbers of ``users`` and ``items``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsim_env.digests import digest_frame, digest_json
from recsim_env.plugins import nearest
from recsim_env.types import WATCH_TIME

USUAL_SIGNALS = (WATCH_TIME, "click", "long_view", "like", "follow", "comment", "forward", "hate")
"""Signals whose order in tensors is fixed, those of KuaiRand; any others that a column map names follow by name."""

REQUIRED = {
    "user": "int32",
    "item": "int32",
    "time_ms": "int64",
    "date": "int32",
    "watch_time": "float32",
    "duration": "float32",
}
"""Columns that every log has, and their types."""
OPTIONAL = {
    "tab": "int8",
    "session": "int64",
    "request": "int64",
    "place": "int8",
    "propensity": "float32",
    "is_random": "bool",
}
"""Columns that a log may have, and their types; besides them ``pxtr_<signal>`` and ``candidates``."""

_MAX_MEDIAN_WATCH_S = 1_000.0
_MIN_MEDIAN_WATCH_S = 0.05
_MAX_MEDIAN_DURATION_S = 20_000.0
_MIN_MEDIAN_DURATION_S = 0.5
_MAX_MEDIAN_RATIO = 50.0
_PLAUSIBLE_MS = (100_000_000_000, 10_000_000_000_000)  # 1973 to 2286: seconds fall below, microseconds above


@dataclass(frozen=True)
class LoggedDataset:
    """A checked log: building one raises ValueError with every sentence of ``check_dataset``."""

    name: str
    rows: pd.DataFrame
    """Required: ``user`` int32, ``item`` int32, ``time_ms`` int64, ``date`` int32 (YYYYMMDD, local day),
    ``watch_time`` float32 (s, NaN unknown), ``duration`` float32 (s, NaN unknown), each further signal
    int8 0/1. Optional: ``tab`` int8, ``session`` int64, ``request`` int64 (equal within one slate),
    ``place`` int8 (0 first), ``propensity`` float32, ``is_random`` bool, ``pxtr_<signal>`` float32,
    ``candidates`` (int32 array of item codes in each row). A KuaiRand log takes 37 bytes a row."""
    users: pd.DataFrame
    """Row = user code. ``user_id`` (as in the source) and raw feature columns."""
    items: pd.DataFrame
    """Row = item code. ``item_id``, ``duration`` (s, NaN unknown), ``author``, ``tags`` (list of ints)
    and raw feature columns."""
    signals: tuple[str, ...]
    """Signals present in ``rows``, in canonical order; ``watch_time`` only where some row knows it."""
    history: pd.DataFrame | None = None
    """Impressions before the log's first day: ``user``, ``item``, ``position`` (0 oldest) and any signals
    recorded then (int8, or float32 for watch time)."""
    counts: dict[str, int] = field(default_factory=dict)
    """What reading did: rows read, rows without a time, duplicates dropped, items without features, ..."""

    def __post_init__(self) -> None:
        problems = check_dataset(self)
        if problems:
            raise ValueError(f"the log {self.name!r} cannot be used. " + " ".join(problems))

    @property
    def digest(self) -> str:
        """Digest of everything the tables hold; it changes with any label, and not with the log's name."""
        tables = {"rows": self.rows, "users": self.users, "items": self.items, "history": self.history}
        content = {name: digest_frame(table) for name, table in tables.items() if table is not None}
        return digest_json({"signals": list(self.signals), **content})

    @property
    def feedback(self) -> NDArray[np.float32]:
        """Feedback on every row, float32 (P, F), NaN where there is none to learn from.

        That is where none was recorded, and where the session has shown the video before: a repeat earns nothing in
        the simulator and changes nobody there, so whatever a log says of it is not what a video is worth.
        """
        feedback_PF = self.rows[list(self.signals)].to_numpy(dtype=np.float32, na_value=np.nan, copy=True)
        if "session" in self.rows:
            feedback_PF[self.rows.duplicated(["user", "session", "item"]).to_numpy()] = np.nan
        return feedback_PF


def canonical_order(signals: Iterable[str]) -> tuple[str, ...]:
    """The usual signals in the order of ``USUAL_SIGNALS``, then any others by name."""
    names = set(signals)
    return tuple([name for name in USUAL_SIGNALS if name in names] + sorted(names.difference(USUAL_SIGNALS)))


def check_dataset(dataset: LoggedDataset) -> list[str]:
    """Says in words what is wrong with a log.

    A log of one user is refused: it cannot teach what users have in common, nor be split by user.

    Returns:
        One sentence a problem, empty for a sound log. Columns and types come first: while they are
        wrong, values are not looked at.
    """
    return list(_form(dataset)) or [*_codes(dataset), *_values(dataset), *_units(dataset.rows)]


def _form(dataset: LoggedDataset) -> Iterator[str]:
    rows = dataset.rows
    for name, dtype in {**REQUIRED, **OPTIONAL}.items():
        if name in REQUIRED and name not in rows:
            yield f"Column {name!r} is missing{nearest(name, rows.columns)}: add it as {dtype}."
        elif name in rows and str(rows[name].dtype) != dtype:
            yield f"Column {name!r} must be {dtype}, got {rows[name].dtype}: convert it with astype."
    for name in dataset.signals:
        if name not in rows:
            yield f"Signal {name!r} has no column: leave it out of signals or add it as int8."
        elif name != WATCH_TIME and str(rows[name].dtype) != "int8":
            yield f"Signal {name!r} must be int8 (0 or 1), got {rows[name].dtype}: convert it with astype."
    if not dataset.signals:
        yield "No signal is named: a log needs watch_time or at least one 0/1 signal."
    elif dataset.signals != canonical_order(dataset.signals):
        yield f"Signals must be {canonical_order(dataset.signals)}, each once, got {dataset.signals}."
    for label, table, key in (("users", dataset.users, "user_id"), ("items", dataset.items, "item_id")):
        if key not in table:
            yield f"The table {label} needs a column {key!r} with the ids of the source."
    if "duration" not in dataset.items:
        yield "The table items needs a column 'duration' in seconds, NaN where unknown."
    if not len(rows):
        yield "The log has no rows: it needs at least one impression."


def _codes(dataset: LoggedDataset) -> Iterator[str]:
    tables = {"user": dataset.users, "item": dataset.items}
    for source, frame in (("rows", dataset.rows), ("history", dataset.history)):
        if frame is None or not len(frame):
            continue
        for name, table in tables.items():
            if frame[name].min() < 0 or frame[name].max() >= len(table):
                yield (
                    f"Codes {name!r} in {source} must be rows of the table {name}s, 0..{len(table) - 1}, "
                    f"got {frame[name].min()}..{frame[name].max()}."
                )
    for name, table in tables.items():
        repeated = int(table[f"{name}_id"].duplicated().sum())
        if repeated:
            yield f"The table {name}s repeats {repeated} ids: keep one row for each."
    if dataset.rows["user"].min() == dataset.rows["user"].max():
        yield "All rows belong to a single user: give a log of two users or more."


def _values(dataset: LoggedDataset) -> Iterator[str]:
    rows = dataset.rows
    keys = [rows[name].to_numpy() for name in ("user", "time_ms", "place") if name in rows]
    tied = np.ones(len(rows) - 1, dtype=np.bool_)
    falls = np.zeros(len(rows) - 1, dtype=np.bool_)
    for key in keys:
        falls |= tied & (key[1:] < key[:-1])
        tied &= key[1:] == key[:-1]
    if falls.any():
        yield f"Rows must be sorted by (user, time_ms, place): {falls.sum()} are out of order."
    if rows["date"].min() < 1970_01_01 or rows["date"].max() > 2999_12_31:
        yield f"Column 'date' must be YYYYMMDD, got {rows['date'].min()}..{rows['date'].max()}."
    for name in (WATCH_TIME, "duration"):
        wrong = (rows[name] < 0) | np.isinf(rows[name])
        if wrong.any():
            yield f"Column {name!r} is negative or infinite in {wrong.sum()} rows: set unknown times to NaN."
    if (rows["duration"] == 0).any():
        yield "Column 'duration' is 0 in some rows: an unknown duration is NaN."
    for name in dataset.signals:
        if name == WATCH_TIME:
            if rows[name].isna().all():
                yield "Signal 'watch_time' is unknown in every row: leave it out of signals."
        elif rows[name].min() < 0 or rows[name].max() > 1:
            yield f"Signal {name!r} must be 0 or 1, got {rows[name].min()}..{rows[name].max()}."
    if "propensity" in rows:
        outside = ~rows["propensity"].between(0.0, 1.0, inclusive="right")
        if outside.any():
            yield f"Column 'propensity' must lie in (0, 1], {outside.sum()} rows do not: drop them."


def _units(rows: pd.DataFrame) -> Iterator[str]:
    time_ms = float(rows["time_ms"].median())
    if time_ms < _PLAUSIBLE_MS[0]:
        yield f"Times look like seconds, not milliseconds (median {time_ms:.0f}): set time_unit='s'."
    elif time_ms > _PLAUSIBLE_MS[1]:
        yield f"Times look like microseconds, not milliseconds (median {time_ms:.0f}): set time_unit='us'."
    played = rows[WATCH_TIME].to_numpy() > 0
    watched, length = float(rows.loc[played, WATCH_TIME].median()), float(rows["duration"].median())
    ratio = float((rows.loc[played, WATCH_TIME] / rows.loc[played, "duration"]).median())
    if watched > _MAX_MEDIAN_WATCH_S:
        yield f"Watch times look like milliseconds (median {watched:.0f} s): set watch_time_unit='ms'."
    elif watched < _MIN_MEDIAN_WATCH_S:
        yield f"Watch times look too short (median {watched:.2g} s): set watch_time_unit='s'."
    elif ratio > _MAX_MEDIAN_RATIO:
        yield f"Watch time is {ratio:.0f} times the duration at the median: one of the two has another unit."
    if length > _MAX_MEDIAN_DURATION_S:
        yield f"Durations look like milliseconds (median {length:.0f} s): set duration_unit='ms'."
    elif length < _MIN_MEDIAN_DURATION_S:
        yield f"Durations look too short (median {length:.2g} s): set duration_unit='s'."
