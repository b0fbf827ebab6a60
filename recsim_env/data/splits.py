"""Parts of a log by time, by user and by exposure, and the lists that its rows form.

Legend: R rows, U users, L lists, K places.
"""

import hashlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsim_env.data.schema import LoggedDataset

NO_ROW = -1
"""Fills places of a list that is shorter than the others."""


class TimeSplit(NamedTuple):
    """Rows of each period."""

    train_R: NDArray[np.bool_]
    """Rows to fit on while settings are chosen."""
    validation_R: NDArray[np.bool_]
    """Rows for early stopping and for choosing settings; part of the final fit."""
    fit_R: NDArray[np.bool_]
    """Rows of the final fit: training and validation together."""
    test_R: NDArray[np.bool_]
    """Rows that only judge."""


class ExposureSplit(NamedTuple):
    """Rows by how their item was chosen."""

    standard_R: NDArray[np.bool_]
    """Chosen by the production ranker."""
    random_R: NDArray[np.bool_]
    """Chosen at random."""


def split_by_time(
    dataset: LoggedDataset,
    *,
    train_until: int = 20220502,
    validation_until: int = 20220504,
    test_until: int = 20220508,
) -> TimeSplit:
    """Splits rows by local day. The defaults suit KuaiRand-Pure; other logs name their own days.

    Args:
        dataset: a checked log.
        train_until: last day (YYYYMMDD) of training.
        validation_until: last day of validation.
        test_until: last day of testing; later rows belong to no part.

    Raises:
        ValueError: the days are not ascending, or a part has no rows.
    """
    bounds = (train_until, validation_until, test_until)
    if not train_until < validation_until < test_until:
        raise ValueError(f"days must ascend from train to validation to test, got {bounds}")
    date_R = dataset.rows["date"].to_numpy()
    period_R = np.searchsorted(bounds, date_R)
    for period, part in enumerate(("train", "validation", "test")):
        if not (period_R == period).any():
            raise ValueError(
                f"no rows in the {part} days with last days {bounds}: "
                f"the log {dataset.name!r} runs from {date_R.min()} to {date_R.max()}"
            )
    return TimeSplit(train_R=period_R == 0, validation_R=period_R == 1, fit_R=period_R <= 1, test_R=period_R == 2)


def split_by_user(
    dataset: LoggedDataset, shares: Mapping[str, float], *, salt: str = ""
) -> dict[str, NDArray[np.int64]]:
    """Splits users by a hash of their original id, so a user keeps the part whatever else is in the log.

    Args:
        dataset: a checked log.
        shares: name and share of each part, for example ``{"a": 0.45, "judges": 0.45, "stopping": 0.1}``.
            Shares add up to 1 at most; users beyond their sum belong to no part.
        salt: another salt gives another, independent split.

    Returns:
        Ascending user codes of each part.

    Raises:
        ValueError: shares are not positive or exceed 1, or a part is left without users.
    """
    if not shares or min(shares.values()) <= 0.0 or sum(shares.values()) > 1.0 + 1e-9:
        raise ValueError(f"shares must be positive and add up to 1 at most, got {dict(shares)}")
    bounds = np.cumsum(list(shares.values()))
    if bounds[-1] > 1.0 - 1e-9:
        bounds[-1] = 1.0
    point_U = np.array([_unit_hash(f"{salt}{user_id}") for user_id in dataset.users["user_id"].tolist()])
    part_U = np.searchsorted(bounds, point_U, side="right")
    parts = {name: np.flatnonzero(part_U == number) for number, name in enumerate(shares)}
    for name, codes in parts.items():
        if not len(codes):
            raise ValueError(
                f"no user falls into part {name!r} (share {shares[name]:g} of {len(dataset.users)} users): "
                "give a larger share or a log of more users"
            )
    return parts


def split_by_exposure(dataset: LoggedDataset) -> ExposureSplit:
    """Splits rows into those of the production ranker and those shown at random.

    Raises:
        ValueError: the log does not say how items were chosen, or holds one kind alone.
    """
    if "is_random" not in dataset.rows:
        raise ValueError(f"the log {dataset.name!r} has no column 'is_random': map it to split by exposure")
    random_R = dataset.rows["is_random"].to_numpy(dtype=np.bool_)
    if random_R.all() or not random_R.any():
        kind = "only" if random_R.all() else "no"
        raise ValueError(
            f"the log {dataset.name!r} holds {kind} randomly exposed rows, an exposure split needs both "
            "kinds: for KuaiRand put log_random_* and log_standard_* into the folder"
        )
    return ExposureSplit(~random_R, random_R)


def slates(dataset: LoggedDataset, size: int, mode: Literal["request", "blocks"] = "request") -> NDArray[np.int64]:
    """Builds lists from the rows of a log.

    Mode ``request`` takes the log's request key: what was really shown together. A longer request keeps
    its first ``size`` places; nothing is cut into lists that nobody saw.

    Mode ``blocks`` cuts each user's rows into consecutive blocks of ``size``, the last one shorter. It
    gives list-shaped input and **nothing more**: in KuaiRand-Pure such a block spans 74 hours at the
    median, so it says nothing about how the places of a slate act on each other, nor about leaving.

    Args:
        dataset: a checked log.
        size: K, places of a list.
        mode: ``request`` or ``blocks``.

    Returns:
        Row positions (L, K) for ``dataset.rows.iloc``, in the order of the log, ``NO_ROW`` where a list
        is shorter.

    Raises:
        ValueError: no request key, an unknown mode, or a size below 1.
    """
    if size < 1:
        raise ValueError(f"a list needs at least one place, got size {size}")
    user_R = dataset.rows["user"].to_numpy()
    if mode == "blocks":
        place_R = _places([user_R])
        return _lists(np.arange(len(user_R)), place_R % size, size)
    if mode != "request":
        raise ValueError(f"mode must be 'request' or 'blocks', got {mode!r}")
    if "request" not in dataset.rows:
        raise ValueError(
            f"the log {dataset.name!r} has no request key: name its column, or load it with "
            "request_by_time=True if rows of one user with equal time are one request"
        )
    request_R = dataset.rows["request"].to_numpy()
    # Rows of one request need not be neighbours: their times may differ and interleave with another's.
    order_R = np.lexsort([request_R, user_R])
    place_R = _places([user_R[order_R], request_R[order_R]])
    kept_R = place_R < size
    lists_LK = _lists(order_R[kept_R], place_R[kept_R], size)
    return lists_LK[np.argsort(lists_LK[:, 0])]


def _places(keys: list[NDArray[np.int32] | NDArray[np.int64]]) -> NDArray[np.int64]:
    """Position of each row in its run of equal keys."""
    starts_R = np.ones(len(keys[0]), dtype=np.bool_)
    starts_R[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    index_R = np.arange(len(starts_R))
    place_R: NDArray[np.int64] = index_R - np.maximum.accumulate(np.where(starts_R, index_R, 0))
    return place_R


def _lists(row_R: NDArray[np.int64], place_R: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Lays rows out by place; a new list begins wherever the place is 0."""
    list_R = np.cumsum(place_R == 0) - 1
    lists_LK = np.full((int(list_R[-1]) + 1, size), NO_ROW, dtype=np.int64)
    lists_LK[list_R, place_R] = row_R
    return lists_LK


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
