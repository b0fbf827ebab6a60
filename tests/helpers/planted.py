"""A world whose every expectation is a closed form, for tests of policies, evaluation and checkers."""

import numpy as np
import torch
from torch import Tensor

from recsim_env.assumptions import DeclaredContext, DeclaredLeave
from recsim_env.candidates import LogRatePredictor, UniformCandidates
from recsim_env.data.histories import Histories
from recsim_env.recommender import Recommender
from recsim_env.types import ListValue, Outcomes, Request
from recsim_env.world import Catalogue, Users, World

SIGNALS = ("watch_time", "like")


class PlantedResponse:
    """Watch time of an item is uniform in (0, 2 * seconds); a like is independent of it."""

    signals = SIGNALS
    num_draws = 2

    def __init__(self, seconds_N: Tensor, like_N: Tensor):
        self.seconds_N = seconds_N
        self.like_N = like_N

    def start(self, user_B: Tensor) -> Tensor:
        return torch.zeros(len(user_B), 1)

    def respond(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, uniform_BKJ: Tensor) -> Tensor:
        watch_BK = 2 * self.seconds_N[items_BK] * uniform_BKJ[..., 0]
        like_BK = (uniform_BKJ[..., 1] < self.like_N[items_BK]).float()
        return torch.stack([watch_BK, like_BK], dim=2)

    def outcomes(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> Outcomes:
        like_BK, seconds_BK = self.like_N[items_BK], self.seconds_N[items_BK]
        pair = [torch.stack([seconds_BK, torch.full_like(seconds_BK, like)], dim=2) for like in (0.0, 1.0)]
        return Outcomes(torch.stack(pair, dim=2), torch.stack([1 - like_BK, like_BK], dim=2))

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        return state_BS + (signals_BKF[..., 0] * seen_BK).sum(1, keepdim=True)


class PlantedEvaluator:
    """Says ``slope`` times the seconds of the list, plus ``bonus`` for each place of an even item."""

    def __init__(self, seconds_N: Tensor, slope: float = 1.0, bonus: float = 0.0):
        self.seconds_N, self.slope, self.bonus = seconds_N, slope, bonus

    def score(self, request: Request, items_BGK: Tensor) -> ListValue:
        per_place = self.slope * self.seconds_N[items_BGK] + self.bonus * (items_BGK % 2 == 0)
        return ListValue(per_place.sum(2), per_place, torch.zeros(items_BGK.shape[:2]))


def planted_world(
    *, num_items: int = 30, hazard: float = 0.1, seconds: float | None = None, slope: float = 1.0
) -> World:
    """Item i has duration 2 * seconds, tag i % 3 and a like rate between 0.1 and 0.5.

    Args:
        num_items: N.
        hazard: a user goes on after a place with probability exp(-hazard).
        seconds: expected watch time of every item; by default item i has 1 + i seconds.
        slope: what the evaluator makes of a second.
    """
    seconds_N = torch.arange(num_items) + 1.0 if seconds is None else torch.full((num_items,), seconds)
    like_N = 0.1 + 0.4 * torch.rand(num_items, generator=torch.Generator().manual_seed(0))
    known_NF = torch.stack([seconds_N, like_N], dim=1)
    features_ND = torch.randn(num_items, 3, generator=torch.Generator().manual_seed(1))
    past = 4
    return World(
        name="planted",
        signals=SIGNALS,
        catalogue=Catalogue(
            ids=np.arange(num_items),
            duration_N=2 * seconds_N,
            features_ND=features_ND,
            feature_names=("a", "b", "c"),
            tag_N=torch.arange(num_items) % 3,
        ),
        users=Users(
            ids=np.arange(7),
            features_UD=torch.zeros(7, 2),
            feature_names=("x", "y"),
            histories=Histories(
                start_U1=torch.arange(8) * past,
                item_P=torch.arange(7 * past) % 5,
                feedback_PF=torch.zeros(7 * past, 2),
                known_PF=torch.ones(7 * past, 2, dtype=torch.bool),
            ),
        ),
        population_P=torch.arange(7),
        response=PlantedResponse(seconds_N, like_N),
        leave=DeclaredLeave(per_place=hazard, per_second=0.0, per_dull_place=0.0),
        contexts=DeclaredContext(),
        recommender=Recommender(
            predictor=LogRatePredictor(known_NF, torch.zeros_like(known_NF)),
            candidates=UniformCandidates(torch.zeros(num_items)),
            evaluator=PlantedEvaluator(seconds_N, slope),
        ),
        defaults={"num_candidates": 10, "slate_size": 3, "history_length": 4, "max_requests": 60},
    )
