"""A log as one sequence of events for each user, cut into batches of whole users.

Legend: P rows of the log, B users in a batch, T rows of the longest of them, F signals, Q earlier places
of a request, N items, U users.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recsim_env.data.features import known_durations, local_hour
from recsim_env.data.histories import Histories, user_histories
from recsim_env.data.schema import LoggedDataset
from recsim_env.digests import digest_json, digest_tensors
from recsim_env.types import NO_ITEM


@dataclass(frozen=True)
class Sequences:
    """Rows of a log as tensors, in the order of ``LoggedDataset.rows``: by user, time and place."""

    signals: tuple[str, ...]
    """Names of the F signals, ``watch_time`` first."""
    duration_N: Tensor
    """float32 s, see ``known_durations``."""
    start_U1: Tensor
    """int64 (U + 1): user u owns rows ``start[u] : start[u + 1]``."""
    user_P: Tensor
    """int64."""
    item_P: Tensor
    """int64."""
    date_P: Tensor
    """int64 YYYYMMDD."""
    tab_P: Tensor
    """int64, 0 for logs without tabs."""
    hour_P: Tensor
    """int64 0..23, local."""
    signals_PF: Tensor
    """float32, 0 where unknown."""
    known_PF: Tensor
    """bool; nothing is known of what a session showed before, see ``LoggedDataset.feedback``."""
    begin_P: Tensor
    """int64: the row with which this row's request begins; in logs without requests, the first row of the same user
    and millisecond. A user's state is that of the request's beginning for all its places."""
    session_P: Tensor | None
    """int64: the row with which this row's session begins; ``None`` for logs without sessions."""
    earlier_PQ: Tensor | None
    """int64 item codes at earlier places of the same request, ``NO_ITEM`` where there are fewer; ``None``
    for logs without a request key."""
    propensity_P: Tensor
    """float32: chance with which the logging policy put the item there; NaN where the log does not say."""
    uniform_P: Tensor
    """bool: uniform exposure; false where the log does not say."""
    past: Histories
    """What users did before the log's first day."""

    @property
    def digest(self) -> str:
        """Digest of every row, label and duration: a fit goes on only where nothing of it has changed."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        past = {f"past.{name}": value for name, value in vars(self.past).items()}
        return digest_json([list(self.signals), digest_tensors(tensors | past)])


class SequenceBatch(NamedTuple):
    """Some users and all their rows."""

    user_B: Tensor
    """int64."""
    row_BT: Tensor
    """int64 rows of ``Sequences``, oldest first; padding repeats a user's first row."""
    valid_BT: Tensor
    """bool: not padding."""
    label_BT: Tensor
    """bool: rows to be predicted; the others only lead to the state."""


def read_sequences(dataset: LoggedDataset, history_length: int = 50) -> Sequences:
    """Tensors of a whole log.

    Args:
        dataset: a checked log.
        history_length: pre-log impressions kept for each user.
    """
    rows = dataset.rows
    user = rows["user"].to_numpy(np.int64)
    counts = np.bincount(user, minlength=len(dataset.users))
    signals = dataset.feedback
    begin, earlier = _requests(dataset)
    tab = rows["tab"].to_numpy(np.int64) if "tab" in rows else np.zeros(len(rows), np.int64)
    return Sequences(
        signals=dataset.signals,
        duration_N=torch.from_numpy(known_durations(dataset)),
        start_U1=torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])),
        user_P=torch.from_numpy(user),
        item_P=torch.from_numpy(rows["item"].to_numpy(np.int64)),
        date_P=torch.from_numpy(rows["date"].to_numpy(np.int64)),
        tab_P=torch.from_numpy(tab),
        hour_P=torch.from_numpy(local_hour(rows)),
        signals_PF=torch.from_numpy(np.nan_to_num(signals, nan=0.0)),
        known_PF=torch.from_numpy(~np.isnan(signals)),
        begin_P=begin,
        session_P=_first_rows(rows, "session") if "session" in rows else None,
        earlier_PQ=earlier,
        propensity_P=_column(rows, "propensity", np.nan),
        uniform_P=_column(rows, "is_random", 0.0) > 0,
        past=user_histories(dataset, keep=history_length),
    )


def _column(rows: pd.DataFrame, name: str, missing: float) -> Tensor:
    """A column as float32 (P,), ``missing`` where the log lacks it or a value of it."""
    if name not in rows:
        return torch.full((len(rows),), missing)
    return torch.tensor(rows[name].to_numpy(np.float32, na_value=missing))


def _requests(dataset: LoggedDataset) -> tuple[Tensor, Tensor | None]:
    """First row of each row's request, and the items at the places before it."""
    rows = dataset.rows
    row = np.arange(len(rows))
    has_requests = "request" in rows and "place" in rows
    # Without a request key, rows of one millisecond still came together: none is feedback on what another shows.
    begin_P = _first_rows(rows, "request" if has_requests else "time_ms")
    if not has_requests:
        return begin_P, None
    begin = begin_P.numpy()
    place = row - begin
    back = row[:, None] - np.arange(1, max(int(place.max()), 1) + 1)
    item = rows["item"].to_numpy(np.int64)
    earlier = np.where(back >= begin[:, None], item[np.maximum(back, 0)], NO_ITEM)
    return begin_P, torch.from_numpy(earlier)


def _first_rows(rows: pd.DataFrame, name: str) -> Tensor:
    """The first row (P,) of each row's run of equal users and values of a column."""
    key, user = rows[name].to_numpy(), rows["user"].to_numpy()
    is_first = np.ones(len(rows), bool)
    is_first[1:] = (key[1:] != key[:-1]) | (user[1:] != user[:-1])
    return torch.from_numpy(np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0)))


def sequence_batches(
    sequences: Sequences, label_P: Tensor, batch_users: int, generator: torch.Generator | None = None
) -> Iterator[SequenceBatch]:
    """Batches of users of about the same length, each user up to the last row to be predicted.

    Args:
        sequences: the log.
        label_P: bool, rows to be predicted; users without one are left out.
        batch_users: users in a batch.
        generator: shuffles users and batches; ``None`` keeps one fixed order.
    """
    labelled = torch.nonzero(label_P).squeeze(-1)
    end_U = torch.zeros(len(sequences.start_U1) - 1, dtype=torch.int64)
    end_U.scatter_reduce_(0, sequences.user_P[labelled], labelled + 1, "amax")
    length_U = end_U - sequences.start_U1[:-1]
    user_V = torch.nonzero(end_U > 0).squeeze(-1)
    if not len(user_V):
        return
    # A batch is as long as its longest user, so users of about one length go together; the noise keeps batches from
    # being the same ones in every epoch.
    order_key = length_U[user_V].float()
    if generator is not None:
        order_key = order_key * (1.0 + 0.3 * torch.rand(len(user_V), generator=generator))
    chunks = torch.split(user_V[order_key.argsort(stable=True)], batch_users)
    order = range(len(chunks)) if generator is None else torch.randperm(len(chunks), generator=generator).tolist()
    for index in order:
        user_B = chunks[index]
        step_T = torch.arange(int(length_U[user_B].max()))
        valid_BT = step_T < length_U[user_B].unsqueeze(-1)
        row_BT = sequences.start_U1[user_B].unsqueeze(-1) + torch.where(valid_BT, step_T, 0)
        yield SequenceBatch(user_B, row_BT, valid_BT, label_P[row_BT] & valid_BT)
