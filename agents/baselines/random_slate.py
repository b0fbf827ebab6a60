"""Uniformly random slates: every ordered choice of K different candidates is equally likely.

Shape legend: B requests, C candidates, K places.
"""

import torch
from torch import Tensor

from recsim_env.slates import items_at, sample_lists
from recsim_env.types import Decision, Request


class RandomSlate:
    """Draws each slate uniformly from the candidates, without repeats.

    Args:
        slate_size: K.
    """

    def __init__(self, slate_size: int):
        self.slate_size = slate_size

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        """Draws slates and says how likely they were."""
        flat_BC = torch.zeros_like(request.retriever_score_BC)
        positions_BK = sample_lists(flat_BC, 1, self.slate_size, generator)[:, 0]
        items_BK = items_at(request.candidates_BC, positions_BK)
        return Decision(items_BK, self.log_prob(request, items_BK))

    def log_prob(self, request: Request, items_BK: Tensor) -> Tensor:
        """Log-probability (B, K) of each place given those before it: one over the candidates left."""
        left_K = request.candidates_BC.shape[1] - torch.arange(items_BK.shape[1], device=items_BK.device)
        return -torch.log(left_K.to(torch.float32)).expand(items_BK.shape)
