"""Pointwise greedy: sort the candidates by what the recommender's own predictor expects of each.

This is the ranker that a list-wise method has to beat: it sees every candidate alone.

Shape legend: B requests, C candidates, K places, F signals.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recsim_env.slates import best_first
from recsim_env.types import WATCH_TIME, Decision, Request


class PointwiseGreedy:
    """Sorts by a weighted sum of predicted signals; deterministic.

    Args:
        slate_size: K.
        weights: weight of each signal, ``watch_time`` in seconds; by default watch time alone.
        signals: the world's signals; needed with ``weights``.

    Raises:
        ValueError: a weight for a signal that the world does not have.

    Example:
        >>> ranker = PointwiseGreedy(6, {"watch_time": 1.0, "like": 20.0}, ("watch_time", "click", "like"))
    """

    def __init__(
        self,
        slate_size: int,
        weights: Mapping[str, float] | None = None,
        signals: Sequence[str] = (WATCH_TIME,),
    ):
        weights = weights or {WATCH_TIME: 1.0}
        unknown = [name for name in weights if name not in signals]
        if unknown:
            raise ValueError(f"no signals {unknown} to weigh; give signals= of the world, got {tuple(signals)}")
        self.slate_size = slate_size
        self._indices = [list(signals).index(name) for name in weights]
        self._weights = list(weights.values())

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        """The candidates with the highest scores, best first."""
        return Decision(best_first(request, self.score(request), self.slate_size))

    def score(self, request: Request) -> Tensor:
        """Weighted predictions (B, C)."""
        weighed_BCF = request.predicted_BCF[..., self._indices]
        return (weighed_BCF * weighed_BCF.new_tensor(self._weights)).sum(dim=-1)
