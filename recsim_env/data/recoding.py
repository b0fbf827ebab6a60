"""A log in the codes of another: the same users and videos under the row numbers of other tables.

Legend: R rows, N items, U users.
"""

import dataclasses

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsim_env.data.schema import LoggedDataset

UNKNOWN_VIDEOS = "rows_of_unknown_videos"
"""Where ``LoggedDataset.counts`` says how many rows ``recoded`` dropped."""


def recoded(
    log: LoggedDataset, item_ids: NDArray[np.generic], user_ids: NDArray[np.generic] | None = None
) -> LoggedDataset:
    """The log with items, and users where asked for, as rows of other tables.

    Rows, past impressions and logged candidates of videos that these tables lack are dropped; ``counts`` says how many
    rows. What is known of an item beyond its id is dropped, too: it is known under these codes already.

    Args:
        log: a checked log.
        item_ids: ids of all items, (N,), in the order of their codes.
        user_ids: ids of all users, (U,), likewise; ``None`` keeps the log's own.

    Raises:
        ValueError: none of the log's videos is among these, or one of its users is not.
    """
    item_N = pd.Index(item_ids).get_indexer(log.items["item_id"])
    users, user_U = log.users, np.arange(len(log.users))
    if user_ids is not None:
        user_U = pd.Index(user_ids).get_indexer(log.users["user_id"])
        if (user_U < 0).any():
            raise ValueError(
                f"{int((user_U < 0).sum())} of {len(user_U)} users of the log {log.name!r} are not among the "
                f"{len(user_ids)} users here, {_example(log.users['user_id'].to_numpy()[user_U < 0])} for instance; "
                "let them enter a world first, World.users_from"
            )
        users = pd.DataFrame({"user_id": user_ids})
    rows = _known(log.rows, item_N, user_U)
    if not len(rows):
        raise ValueError(
            f"no row of the log {log.name!r} shows one of the {len(item_ids)} videos here: its ids are such as "
            f"{_example(log.items['item_id'].to_numpy())}, those here such as {_example(np.asarray(item_ids))}"
        )
    if "candidates" in rows:
        known = [codes[codes >= 0] for codes in (item_N[codes].astype(np.int32) for codes in rows["candidates"])]
        rows["candidates"] = pd.Series(known, dtype=object)
    return dataclasses.replace(
        log,
        rows=rows,
        users=users,
        items=pd.DataFrame({"item_id": item_ids, "duration": np.full(len(item_ids), np.nan, np.float32)}),
        history=None if log.history is None else _known(log.history, item_N, user_U),
        counts={**log.counts, UNKNOWN_VIDEOS: len(log.rows) - len(rows)},
    )


def _known(rows: pd.DataFrame, item_N: NDArray[np.int64], user_U: NDArray[np.int64]) -> pd.DataFrame:
    """The rows of known videos in the other codes, each user's in their own order."""
    item_R = item_N[rows["item"].to_numpy()]
    user_R = user_U[rows["user"].to_numpy()]
    rows = rows.assign(user=user_R.astype(np.int32), item=item_R.astype(np.int32))[item_R >= 0]
    return rows.sort_values("user", kind="stable", ignore_index=True)


def _example(ids: NDArray[np.generic]) -> str:
    return repr(ids[0].item() if isinstance(ids[0], np.generic) else ids[0])
