"""Logged data: column maps, readers, the checked form they produce, and its splits."""

from recsim_env.data.columns import (
    KUAIRAND,
    KUAIREC,
    OPEN_BANDIT,
    PRESETS,
    RATINGS,
    AtLeast,
    ColumnMap,
    parse_map,
)
from recsim_env.data.readers import load_kuairand, load_kuairec, load_log, load_movielens, load_ratings
from recsim_env.data.schema import USUAL_SIGNALS, LoggedDataset, canonical_order, check_dataset
from recsim_env.data.splits import (
    NO_ROW,
    ExposureSplit,
    TimeSplit,
    slates,
    split_by_exposure,
    split_by_time,
    split_by_user,
)
from recsim_env.data.tables import load_table

__all__ = [
    "KUAIRAND",
    "KUAIREC",
    "NO_ROW",
    "OPEN_BANDIT",
    "PRESETS",
    "RATINGS",
    "USUAL_SIGNALS",
    "AtLeast",
    "ColumnMap",
    "ExposureSplit",
    "LoggedDataset",
    "TimeSplit",
    "canonical_order",
    "check_dataset",
    "load_kuairand",
    "load_kuairec",
    "load_log",
    "load_movielens",
    "load_ratings",
    "load_table",
    "parse_map",
    "slates",
    "split_by_exposure",
    "split_by_time",
    "split_by_user",
]
