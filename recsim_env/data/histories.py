"""What users did before a given moment, as one ragged table that is cheap to store and to window."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recsim_env.data.schema import LoggedDataset
from recsim_env.types import NO_ITEM


@dataclass(frozen=True)
class Histories:
    """Past impressions of every user, oldest first (P impressions in all)."""

    start_U1: Tensor
    """int64 (U + 1,): user u owns rows ``start[u] : start[u + 1]``."""
    item_P: Tensor
    """int64."""
    feedback_PF: Tensor
    """float32 signals, 0 where unknown."""
    known_PF: Tensor
    """bool."""

    def window(self, user_B: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """The last ``length`` impressions: items (B, H), feedback (B, H, F), known (B, H, F)."""
        if not len(self.item_P):
            shape = (len(user_B), length, self.feedback_PF.shape[1])
            empty = torch.full(shape[:2], NO_ITEM, dtype=torch.int64, device=user_B.device)
            return empty, self.feedback_PF.new_zeros(shape), self.known_PF.new_zeros(shape)
        begin_B1, end_B1 = self.start_U1[user_B].unsqueeze(1), self.start_U1[user_B + 1].unsqueeze(1)
        row_BH = end_B1 - length + torch.arange(length, device=user_B.device)
        absent_BH = row_BH < begin_B1
        row_BH = row_BH.clamp(min=0, max=len(self.item_P) - 1)
        absent_BH1 = absent_BH.unsqueeze(-1)
        return (
            self.item_P[row_BH].masked_fill(absent_BH, NO_ITEM),
            self.feedback_PF[row_BH].masked_fill(absent_BH1, 0.0),
            self.known_PF[row_BH].masked_fill(absent_BH1, False),
        )

    def to(self, device: torch.device | str) -> "Histories":
        """The same table on another device."""
        return Histories(
            self.start_U1.to(device), self.item_P.to(device), self.feedback_PF.to(device), self.known_PF.to(device)
        )


def user_histories(dataset: LoggedDataset, before_date: int | None = None, keep: int = 200) -> Histories:
    """Impressions of every user before a day: ``dataset.history`` first, then the log's own rows.

    Args:
        dataset: a checked log.
        before_date: YYYYMMDD; only rows of earlier days enter. ``None`` takes the pre-log history alone.
        keep: impressions kept for each user, the latest ones.
    """
    columns = ["user", "item", *dataset.signals]
    parts = []
    if dataset.history is not None:
        past = dataset.history.sort_values(["user", "position"], kind="stable")
        parts.append(past.reindex(columns=columns))
    if before_date is not None:
        rows = dataset.rows[["user", "item", "date"]].copy()
        rows[list(dataset.signals)] = dataset.feedback
        parts.append(rows.loc[rows["date"] < before_date, columns])
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    table = table.sort_values("user", kind="stable")  # keeps each user's own order
    table = table.groupby("user", sort=False).tail(keep)
    signals = table[list(dataset.signals)].to_numpy(dtype=np.float32, na_value=np.nan)
    counts = np.bincount(table["user"].to_numpy(dtype=np.int64), minlength=len(dataset.users))
    return Histories(
        start_U1=torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])),
        item_P=torch.from_numpy(table["item"].to_numpy(dtype=np.int64)),
        feedback_PF=torch.from_numpy(np.nan_to_num(signals, nan=0.0)),
        known_PF=torch.from_numpy(~np.isnan(signals)),
    )
