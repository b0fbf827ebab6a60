"""One batch of a source table into canonical numpy columns. Every refusal names the source column."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recsim_env.data.columns import AtLeast, ColumnMap

Array = npt.NDArray[Any]

_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS


def ids(column: pa.Array | pa.ChunkedArray, what: str) -> pa.Array:
    """Ids as whole numbers or text, none missing. Whole numbers may come as floats, as pandas writes them."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    missing = column.null_count
    if pa.types.is_floating(column.type):
        missing += pc.sum(pc.is_nan(column)).as_py() or 0
    if missing:
        raise ValueError(f"{missing} rows have no {what} id: remove them or fill the column")
    if pa.types.is_floating(column.type):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise ValueError(f"{what} ids must be whole numbers or text: {error}") from error
    return column


def user_ids(batch: pa.RecordBatch, user: str | tuple[str, ...]) -> pa.Array:
    """Ids of the users; several columns are joined into one text."""
    if isinstance(user, str):
        return batch.column(user)
    return pc.binary_join_element_wise(*[batch.column(name).cast(pa.string()) for name in user], "|")


def floats(batch: pa.RecordBatch, name: str) -> Array:
    """float64, NaN where empty."""
    column = batch.column(name)
    try:
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        values: Array = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"column {name!r} must hold numbers, got {column.type}") from error
    return values


def whole(batch: pa.RecordBatch, name: str, dtype: type[np.integer[Any]], minus: int = 0) -> Array:
    """Whole numbers less ``minus``, as ``dtype``; refused when they do not fit or are missing."""
    column = batch.column(name)
    # Integers are not taken through floats: keys above 2^53 would lose their last digits.
    exact = pa.types.is_integer(column.type) and not column.null_count
    values = column.to_numpy() if exact else floats(batch, name)
    if np.isnan(values).any():
        raise ValueError(f"column {name!r} is empty in {np.isnan(values).sum()} rows: fill it or leave it out")
    limits = np.iinfo(dtype)
    low, high = limits.min + minus, limits.max + minus
    wrong = values[(values != np.floor(values)) | (values < low) | (values > high)]
    if len(wrong):
        raise ValueError(f"column {name!r} must hold whole numbers from {low} to {high}, got {wrong[0]}")
    return (values - minus).astype(dtype)


def seconds(batch: pa.RecordBatch, name: str | None, unit: str) -> Array:
    """float32 seconds, NaN where empty or where there is no such column."""
    if name is None:
        return np.full(len(batch), np.nan, dtype=np.float32)
    values = floats(batch, name) * (_MILLISECONDS[unit] / 1e3)
    negative = values[values < 0]
    if len(negative):
        raise ValueError(
            f"column {name!r} is negative in {len(negative)} rows (lowest {negative.min():g} s): "
            "leave unknown times empty"
        )
    return values.astype(np.float32)


def zero_one(batch: pa.RecordBatch, source: str | AtLeast) -> Array:
    """int8 0 or 1."""
    name = source.column if isinstance(source, AtLeast) else source
    values = floats(batch, name)
    if np.isnan(values).any():
        raise ValueError(f"column {name!r} is empty in {np.isnan(values).sum()} rows: a signal is 0 or 1 in each")
    if isinstance(source, AtLeast):
        return (values >= source.threshold).astype(np.int8)
    other = values[(values != 0) & (values != 1)]
    if len(other):
        raise ValueError(f"column {name!r} must hold 0 or 1, got {other[0]:g}: for graded feedback use AtLeast")
    return values.astype(np.int8)


def milliseconds(batch: pa.RecordBatch, columns: ColumnMap) -> Array:
    """Epoch milliseconds as float64 (exact to 2^53), NaN where empty."""
    column = batch.column(columns.time)
    if pa.types.is_timestamp(column.type):
        whole_ms = column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False).cast(pa.int64())
        values: Array = whole_ms.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return values
    if columns.time_unit == "timestamp":
        raise ValueError(f"column {columns.time!r} does not hold timestamps, got {column.type}: set time_unit")
    return floats(batch, columns.time) * _MILLISECONDS[columns.time_unit]


def dates(time_ms: Array, utc_offset_hours: float) -> Array:
    """Local days as YYYYMMDD, int32, of int64 epoch milliseconds."""
    days = (time_ms + round(utc_offset_hours * _HOUR_MS)) // _DAY_MS
    calendar = pd.DatetimeIndex(days.astype("datetime64[D]"))
    return np.asarray(calendar.year * 10_000 + calendar.month * 100 + calendar.day, dtype=np.int32)
