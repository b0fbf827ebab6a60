"""A log of ratings with planted tastes: every user likes the items of one group, whatever their popularity."""

import numpy as np
import pandas as pd

from recsim_env.data import LoggedDataset

GROUPS = 4
BURST = 10
"""Ratings that a user gives within one hour, a minute apart."""
START_MS = 1_600_000_000_000
HOUR_MS = 3_600_000


def planted_ratings(
    num_users: int = 60, num_items: int = 160, per_user: int = 40, seed: int = 0, fidelity: float = 0.8
) -> LoggedDataset:
    """Users rate items without repeats, mostly of their own group (item code modulo GROUPS), and like just those."""
    rng = np.random.default_rng(seed)
    group_U, group_N = np.arange(num_users) % GROUPS, np.arange(num_items) % GROUPS
    popularity_N = rng.pareto(2.0, num_items) + 0.2
    frames = []
    for user in range(num_users):
        own_N = group_N == group_U[user]
        weight_N = popularity_N * np.where(own_N, fidelity, (1 - fidelity) / (GROUPS - 1))
        item = rng.choice(num_items, per_user, replace=False, p=weight_N / weight_N.sum())
        burst = np.sort(rng.choice(2_000, -(-per_user // BURST), replace=False)).repeat(BURST)[:per_user]
        time_ms = START_MS + burst * HOUR_MS + np.arange(per_user) % BURST * 60_000
        frames.append(pd.DataFrame({"user": user, "item": item, "time_ms": time_ms, "like": own_N[item]}))
    return log_of(pd.concat(frames, ignore_index=True), num_users, num_items)


def log_of(frame: pd.DataFrame, num_users: int, num_items: int) -> LoggedDataset:
    """A checked log from the columns user, item, time_ms and like."""
    days = pd.to_datetime(frame["time_ms"], unit="ms").dt.strftime("%Y%m%d")
    rows = pd.DataFrame(
        {
            "user": frame["user"].astype(np.int32),
            "item": frame["item"].astype(np.int32),
            "time_ms": frame["time_ms"].astype(np.int64),
            "date": days.astype(np.int32),
            "watch_time": np.full(len(frame), np.nan, np.float32),
            "duration": np.full(len(frame), np.nan, np.float32),
            "like": frame["like"].astype(np.int8),
        }
    )
    items = pd.DataFrame({"item_id": np.arange(num_items), "duration": np.nan})
    items["tags"] = [[item % GROUPS] for item in range(num_items)]
    users = pd.DataFrame({"user_id": np.arange(num_users)})
    return LoggedDataset(name="planted ratings", rows=rows, users=users, items=items, signals=("like",))
