"""Best of k lists: propose lists around the pointwise sort, show the one the list evaluator likes best.

The proposals are the sorted list itself and k - 1 Plackett-Luce draws from the pointwise scores. It is the
plainest generator-evaluator ranker, and the second reference that a trained ranker has to beat.

Shape legend: B requests, C candidates, G lists, K places.
"""

import torch
from torch import Tensor

from agents.baselines.pointwise_greedy import PointwiseGreedy
from recsim_env.slates import best_positions, items_at, list_at, sample_lists
from recsim_env.types import Decision, ListEvaluator, Request


class BestOfLists:
    """Samples lists and answers the best one; stochastic, without a probability in closed form.

    Args:
        evaluator: values whole lists.
        slate_size: K.
        num_lists: k, the sorted list included.
        temperature: spread of the draws, in standard deviations of a request's pointwise scores.
        pointwise: scores single candidates; predicted watch time by default.

    Raises:
        ValueError: fewer than one list, or a temperature that is not positive.
    """

    def __init__(
        self,
        evaluator: ListEvaluator,
        slate_size: int,
        num_lists: int = 20,
        temperature: float = 0.5,
        pointwise: PointwiseGreedy | None = None,
    ):
        if num_lists < 1:
            raise ValueError(f"num_lists must be at least 1, got {num_lists}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.evaluator = evaluator
        self.slate_size = slate_size
        self.num_lists = num_lists
        self.temperature = temperature
        self.pointwise = pointwise or PointwiseGreedy(slate_size)

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        """The proposal of highest value; the sorted list wins ties."""
        lists_BGK = self.propose(request, generator)
        value_BG = self.evaluator.score(request, lists_BGK).value_BG
        return Decision(list_at(lists_BGK, value_BG.argmax(dim=1)))

    def propose(self, request: Request, generator: torch.Generator) -> Tensor:
        """Lists (B, G, K) of item codes, the pointwise sort first."""
        positions_BGK = lists_around_sort(
            self.pointwise.score(request), self.num_lists, self.slate_size, self.temperature, generator
        )
        return items_at(request.candidates_BC, positions_BGK)


def lists_around_sort(
    score_BC: Tensor, num_lists: int, slate_size: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """Positions (B, G, K) of the sort by a score and of lists drawn around it.

    Args:
        score_BC: float32; its unit does not matter, for draws look at z-scores over the request's candidates.
        num_lists: G, the sort included.
        slate_size: K.
        temperature: spread of the draws, in standard deviations of the scores: at 0.5 the best of 50 candidates keeps
            its place in most lists, at 1 and above lists hardly know of the sort.
        generator: draws the lists.
    """
    sorted_B1K = best_positions(score_BC, slate_size).unsqueeze(1)
    centred_BC = score_BC - score_BC.mean(dim=1, keepdim=True)
    spread_B1 = score_BC.std(dim=1, keepdim=True, correction=0).clamp(min=1e-9)
    drawn_BGK = sample_lists(centred_BC / spread_B1 / temperature, num_lists - 1, slate_size, generator)
    return torch.cat([sorted_B1K, drawn_BGK], dim=1)
