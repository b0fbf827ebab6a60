"""Logs of 240 users and 24 videos whose chances of a click are planted, by a ranker that knew them or by nobody."""

import numpy as np
import pandas as pd

from recsim_env.data.schema import LoggedDataset

NUM_USERS, NUM_ITEMS, NUM_ROWS = 240, 24, 36
FIRST_DAY, LAST_DAY = 20220401, 20220406
SIGNALS = ("watch_time", "click")


def planted_log(item: np.ndarray, chance: np.ndarray, **columns: np.ndarray) -> LoggedDataset:
    """36 rows a user, a minute apart, of these videos and chances of a click; even and odd videos have a tag each."""
    generator = np.random.default_rng(7)
    click = generator.random(len(item)) < chance
    user, number = np.repeat(np.arange(NUM_USERS), NUM_ROWS), np.tile(np.arange(NUM_ROWS), NUM_USERS)
    day = number * (LAST_DAY - FIRST_DAY + 1) // NUM_ROWS
    rows = pd.DataFrame(
        {
            "user": user.astype(np.int32),
            "item": item.astype(np.int32),
            "time_ms": pd.Timestamp(2022, 4, 1).value // 10**6 + day * 86_400_000 + number * 60_000,
            "date": (FIRST_DAY + day).astype(np.int32),
            "watch_time": np.where(click, 20.0, 2.0).astype(np.float32),
            "duration": np.float32(60.0),
            "click": click.astype(np.int8),
            "tab": np.int8(1),
            **columns,
        }
    )
    users = pd.DataFrame({"user_id": np.arange(NUM_USERS)})
    tags = [[number % 2] for number in range(NUM_ITEMS)]
    items = pd.DataFrame({"item_id": np.arange(NUM_ITEMS), "duration": np.float32(60.0), "tags": tags})
    return LoggedDataset("planted", rows, users, items, SIGNALS)


def any_items(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(NUM_ITEMS, size=NUM_USERS * NUM_ROWS)


def chosen_log() -> tuple[LoggedDataset, np.ndarray]:
    """The ranker shows a user one half of the catalogue, clicked at 60 %; a fifth is uniform, clicked at 20 %."""
    is_random = np.random.default_rng(2).random(NUM_USERS * NUM_ROWS) < 0.2
    half_P = np.repeat(np.arange(NUM_USERS) % 2, NUM_ROWS)
    item_P = np.where(is_random, any_items(), 2 * (any_items() // 2) + half_P)
    return planted_log(item_P, np.where(is_random, 0.2, 0.6), is_random=is_random), is_random


def satiated_log(sessions: bool) -> LoggedDataset:
    """Each video of a session of twelve takes a quarter of the chance of the next one with its tag, less of later."""
    item_P = any_items(5)
    number_P = np.tile(np.arange(NUM_ROWS), NUM_USERS)
    same_P = np.zeros(len(item_P))
    for back in range(1, 12):
        is_same_P = (item_P[back:] % 2 == item_P[:-back] % 2) & (number_P[back:] % 12 >= back)
        same_P[back:] += 0.9 ** (back - 1) * is_same_P
    columns = {"session": np.arange(len(item_P)) // 12} if sessions else {}
    return planted_log(item_P, 0.7 * 0.75**same_P, **columns)


def exhausting_log() -> LoggedDataset:
    """A ranker whose choices are clicked at 80 % when a session begins and at 20 % when it ends; a third is uniform
    and clicked at 20 % throughout."""
    is_random = np.random.default_rng(2).random(NUM_USERS * NUM_ROWS) < 1 / 3
    number_P = np.tile(np.arange(NUM_ROWS), NUM_USERS) % 12
    chosen_P = 0.8 - 0.6 * number_P / 11
    session = np.arange(len(number_P)) // 12
    return planted_log(any_items(3), np.where(is_random, 0.2, chosen_P), is_random=is_random, session=session)
