"""Parts of a log as logs of their own, with codes of their own."""

import dataclasses

import numpy as np
import pandas as pd

from recsim_env.data import LoggedDataset


def of_users(log: LoggedDataset, codes: np.ndarray, seed: int = 0) -> LoggedDataset:
    """What some users did, under other codes of users and items.

    User ``codes[i]`` gets code i; items are shuffled.
    """
    user_U = np.full(len(log.users), -1)
    user_U[codes] = np.arange(len(codes))
    order_N = np.random.default_rng(seed).permutation(len(log.items))
    item_N = np.argsort(order_N)

    def part(rows: pd.DataFrame) -> pd.DataFrame:
        user_R = user_U[rows["user"]]
        coded = rows.assign(user=user_R.astype(np.int32), item=item_N[rows["item"]].astype(np.int32))[user_R >= 0]
        return coded.sort_values("user", kind="stable", ignore_index=True)

    return dataclasses.replace(
        log,
        name=f"{log.name}_part",
        rows=part(log.rows),
        users=log.users.iloc[codes].reset_index(drop=True),
        items=log.items.iloc[order_N].reset_index(drop=True),
        history=None if log.history is None else part(log.history),
    )


def only_rows(log: LoggedDataset, keep_R: np.ndarray) -> LoggedDataset:
    """Some of the log's rows."""
    return dataclasses.replace(log, rows=log.rows[keep_R].reset_index(drop=True))
