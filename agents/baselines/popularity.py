"""Popularity: show the candidates with the most logged impressions (or likes, or any signal).

Shape legend: B requests, C candidates, K places, N items.
"""

import numpy as np
import torch
from torch import Tensor

from recsim_env.data.schema import LoggedDataset
from recsim_env.slates import best_first
from recsim_env.types import Decision, Request


class Popularity:
    """Sorts the candidates by logged counts; deterministic, the same for every user.

    Args:
        count_N: how often each item was shown, or got the signal that counts.
        slate_size: K.

    Example:
        >>> popularity = Popularity(torch.tensor([5, 0, 9]), slate_size=2)
    """

    def __init__(self, count_N: Tensor, slate_size: int):
        self.count_N = count_N
        self.slate_size = slate_size

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        """The most counted candidates first; ties in the retriever's order."""
        count_BC = self.count_N.to(request.candidates_BC.device)[request.candidates_BC]
        return Decision(best_first(request, count_BC, self.slate_size))


def logged_counts(dataset: LoggedDataset, signal: str | None = None, before_date: int | None = None) -> Tensor:
    """Counts (N,) float32 of each item in a log.

    Args:
        dataset: a checked log.
        signal: what is summed, ``watch_time`` in seconds; ``None`` counts impressions.
        before_date: YYYYMMDD; only rows of earlier days count.

    Raises:
        ValueError: a signal that the log does not have.
    """
    if signal is not None and signal not in dataset.signals:
        raise ValueError(f"log {dataset.name!r} has no signal {signal!r}; it has {dataset.signals}")
    rows = dataset.rows if before_date is None else dataset.rows[dataset.rows["date"] < before_date]
    weights = None if signal is None else np.nan_to_num(rows[signal].to_numpy(dtype=np.float64))
    counts = np.bincount(rows["item"].to_numpy(np.int64), weights=weights, minlength=len(dataset.items))
    return torch.from_numpy(counts.astype(np.float32))
