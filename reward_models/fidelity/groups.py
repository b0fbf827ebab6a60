"""Groups of held-out rows: by duration, tab, activity, exposures of the video, rows of the user already seen.

Shape legend: R rows, N videos, U users.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsim_env.data.schema import LoggedDataset
from recsim_env.session_metrics import bucket_names

Array = NDArray[np.float64]
Grouping = tuple[list[str], NDArray[np.int64]]
"""Names of groups, and the group of each row."""

DURATION_EDGES = (7.0, 18.0, 30.0, 60.0, 120.0)
"""Seconds between the duration buckets."""
PAST_EDGES = (1, 2, 5, 10, 20, 50)
"""Rows between the groups by what a user has done so far."""
EXPOSURE_EDGES = (1, 10, 30, 100, 300, 1000)
"""Showings between the groups of videos."""


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What a log says of its videos before the days that are held out."""

    duration_N: Array
    """Seconds, NaN where the log does not know."""
    exposures_N: NDArray[np.int64]
    """Showings to anyone, those of before the log among them."""

    @classmethod
    def of(cls, dataset: LoggedDataset, before_date: int) -> "VideoFacts":
        """Reads them off a log; ``before_date`` (YYYYMMDD) is the first day that does not count."""
        shown = [dataset.rows.loc[dataset.rows["date"] < before_date, "item"]]
        if dataset.history is not None:
            shown.append(dataset.history["item"])
        counts_N = np.bincount(pd.concat(shown).to_numpy(np.int64), minlength=len(dataset.items))
        duration_N = dataset.items["duration"].to_numpy(np.float64, na_value=np.nan)
        return cls(duration_N=np.where(duration_N > 0, duration_N, np.nan), exposures_N=counts_N)


def groupings(
    item_R: Array, tab_R: Array, before_R: Array, past_R: Array, videos: VideoFacts | None
) -> dict[str, Grouping]:
    """Every grouping of some rows, by name.

    Args:
        item_R: video of each row.
        tab_R: its page.
        before_R: showings of the row's user before the held-out days.
        past_R: rows of the row's user before this one.
        videos: without it, rows are not grouped by what videos are.
    """
    tabs, tab_code_R = np.unique(tab_R, return_inverse=True)
    found: dict[str, Grouping] = {}
    if videos is not None:
        duration_R = videos.duration_N[item_R.astype(np.int64)]
        code_R = np.digitize(duration_R, DURATION_EDGES)
        names = [*bucket_names(DURATION_EDGES), "unknown"]
        found["duration"] = names, np.where(np.isnan(duration_R), len(names) - 1, code_R)
    found["tab"] = [f"{tab:g}" for tab in tabs], tab_code_R
    found["activity"] = _counted(before_R, PAST_EDGES)
    if videos is not None:
        found["exposures"] = _counted(videos.exposures_N[item_R.astype(np.int64)], EXPOSURE_EDGES)
    found["rows seen"] = _counted(past_R, PAST_EDGES)
    return found


def _counted(count_R: Array | NDArray[np.int64], edges: Sequence[int]) -> Grouping:
    ends = [f"{low}-{high - 1}" if high - low > 1 else f"{low}" for low, high in itertools.pairwise([0, *edges])]
    return [*ends, f"{edges[-1]}+"], np.digitize(count_R, edges)


def ratio_and_error(expected_R: Array, logged_R: Array, user_R: Array) -> tuple[float | None, float | None]:
    """Sum of what was expected over the sum of what was logged, and the standard error of this ratio over users.

    None for both where nothing was logged, for the error where one user tells nothing of others. Rows of one user are
    not independent, so users are the units.
    """
    total = float(logged_R.sum())
    if not total > 0:
        return None, None
    ratio = float(expected_R.sum()) / total
    _, code_R = np.unique(user_R, return_inverse=True)
    move_U = np.bincount(code_R, expected_R - ratio * logged_R) / total
    users = len(move_U)
    return ratio, float(np.sqrt((move_U**2).sum() * users / (users - 1))) if users > 1 else None
