"""Retriever order: show the candidates that the retriever liked best, in its order.

Shape legend: B requests, C candidates, K places.
"""

import torch

from recsim_env.slates import check_room
from recsim_env.types import Decision, Request


class RetrieverOrder:
    """Shows the first K candidates; deterministic.

    Args:
        slate_size: K.
    """

    def __init__(self, slate_size: int):
        self.slate_size = slate_size

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        """The head of the candidate set, which a request holds best first."""
        check_room(request.candidates_BC, self.slate_size)
        return Decision(request.candidates_BC[:, : self.slate_size])
