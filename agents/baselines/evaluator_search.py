"""Evaluator search: climb to the list that the evaluator values most, one place at a time.

Searching hard on a learned evaluator finds its mistakes: the lists look better to it than they are. The
method stands here to show that gap beside rankers that search less.

Shape legend: B requests, C candidates, G lists, K places.
"""

import torch
from torch import Tensor

from agents.baselines.pointwise_greedy import PointwiseGreedy
from recsim_env.slates import best_positions, items_at, list_at
from recsim_env.types import Decision, ListEvaluator, Request


class EvaluatorSearch:
    """Coordinate ascent from the pointwise sort; deterministic.

    Every step tries all candidates at one place. A candidate that stands elsewhere in the list changes
    places with the one it replaces, so order is searched as well. Values never fall.

    Args:
        evaluator: values whole lists.
        slate_size: K.
        rounds: passes over all places.
        pointwise: where the climb begins; predicted watch time by default.

    Raises:
        ValueError: fewer than one round.
    """

    def __init__(
        self,
        evaluator: ListEvaluator,
        slate_size: int,
        rounds: int = 2,
        pointwise: PointwiseGreedy | None = None,
    ):
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {rounds}")
        self.evaluator = evaluator
        self.slate_size = slate_size
        self.rounds = rounds
        self.pointwise = pointwise or PointwiseGreedy(slate_size)

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        """The list at which the climb ends."""
        positions_BK = best_positions(self.pointwise.score(request), self.slate_size)
        for _ in range(self.rounds):
            before_BK = positions_BK
            for place in range(self.slate_size):
                positions_BK = self._improve(request, positions_BK, place)
            if torch.equal(before_BK, positions_BK):
                break
        return Decision(items_at(request.candidates_BC, positions_BK))

    def _improve(self, request: Request, positions_BK: Tensor, place: int) -> Tensor:
        candidates = request.candidates_BC.shape[1]
        lists_BCK = neighbours(positions_BK, place, candidates)
        items_BCK = items_at(request.candidates_BC, lists_BCK)
        value_BC = self.evaluator.score(request, items_BCK).value_BG
        current_B1 = positions_BK[:, place : place + 1]
        # The present list must win ties, so that the climb ends.
        better_B1 = value_BC.amax(dim=1, keepdim=True) > value_BC.gather(1, current_B1)
        chosen_B1 = torch.where(better_B1, value_BC.argmax(dim=1, keepdim=True), current_B1)
        return list_at(lists_BCK, chosen_B1.squeeze(1))


def neighbours(positions_BK: Tensor, place: int, num_candidates: int) -> Tensor:
    """Lists (B, C, K) that differ at one place: row c has candidate c there, by exchange if need be."""
    offered_C1 = torch.arange(num_candidates, device=positions_BK.device).unsqueeze(1)
    present_B11 = positions_BK[:, None, place : place + 1]
    lists_BCK = positions_BK.unsqueeze(1).expand(-1, num_candidates, -1)
    lists_BCK = torch.where(lists_BCK == offered_C1, present_B11, lists_BCK)
    lists_BCK[:, :, place] = offered_C1.squeeze(1)
    return lists_BCK
