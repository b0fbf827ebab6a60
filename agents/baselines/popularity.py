"""Popularity: show the candidates with the most logged impressions (or likes, or any signal).

Shape legend: B requests, C candidates, K places, N items.
"""

import torch
from torch import Tensor

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
