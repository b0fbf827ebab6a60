"""A world so small that the best that can be done in it is found by enumeration.

Eight videos of two tags, users of two types. A video is swiped away after two seconds or watched to its end.
The order of a slate matters: another video of a tag already shown is watched less, and after an opener
(dull in itself) everything is watched more. What a slate shows also matters to the next request: users tire
of a tag that held most of the last slate. Users' states follow from the videos shown alone, so the type (a
user feature), the request index and the history, all in the observation, suffice to play optimally.

Shape legend: B sessions, K places, F signals, N items, U users, S state, O outcomes, L lists, R requests.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsim_env.assumptions import DeclaredContext
from recsim_env.candidates import AllCandidates, LogRatePredictor
from recsim_env.data.histories import Histories
from recsim_env.leaving import reached
from recsim_env.recommender import Recommender
from recsim_env.types import CONTEXT, WATCH_TIME, Outcomes
from recsim_env.world import Catalogue, Users, World

TINY_SIZES = {"num_candidates": 8, "slate_size": 3, "max_requests": 3}
"""Sizes that the tiny world is meant for, as keywords of ``Simulator`` and the environments."""

_DURATION = (30.0, 25.0, 20.0, 6.0, 30.0, 25.0, 20.0, 6.0)
_TAG = (0, 0, 0, 0, 1, 1, 1, 1)
_OPENER = (False, False, False, True, False, False, False, True)
_FAVOURITE = (0.9, 0.85, 0.8, 0.3)
_OTHER = (0.6, 0.5, 0.45, 0.3)
_SWIPE_SECONDS = 2.0
_REPEAT = 0.3
"""Each earlier video of the same tag multiplies the chance of watching by this."""
_OPENED = 0.6
"""An earlier opener closes this share of the gap to certain watching."""
_TIRED = 0.3
"""Tiredness of a tag multiplies the chance of watching by this."""


class TinyResponse:
    """The users of the tiny world.

    Args:
        appeal_TN: float32 chance that a fresh user of each type watches each video shown alone.
        type_U: int64 type of each user, 0 or 1.
        duration_N: float32 s.
        tag_N: int64, 0 or 1.
        opener_N: bool.
    """

    signals: tuple[str, ...] = (WATCH_TIME, "click", "long_view")
    num_draws = 1

    def __init__(self, appeal_TN: Tensor, type_U: Tensor, duration_N: Tensor, tag_N: Tensor, opener_N: Tensor):
        self.appeal_TN, self.type_U, self.duration_N = appeal_TN, type_U, duration_N
        self.tag_N, self.opener_N = tag_N, opener_N

    def start(self, user_B: Tensor) -> Tensor:
        """State (B, 3): type, tired of tag 0, tired of tag 1."""
        state_BS = torch.zeros(len(user_B), 3, device=user_B.device)
        state_BS[:, 0] = self.type_U[user_B]
        return state_BS

    def chance(self, state_BS: Tensor, items_BK: Tensor) -> Tensor:
        """Chance (B, K) that the video at each place is watched."""
        tag_BK = self.tag_N[items_BK]
        chance_BK = self.appeal_TN[state_BS[:, :1].long(), items_BK]
        tired_BK = state_BS[:, 1:].gather(1, tag_BK)
        same_BKK = (tag_BK.unsqueeze(2) == tag_BK.unsqueeze(1)).tril(-1)
        repeat_K = _REPEAT ** torch.arange(items_BK.shape[1], device=items_BK.device)
        chance_BK = chance_BK * repeat_K[same_BKK.sum(-1)] * (1.0 - (1.0 - _TIRED) * tired_BK)
        opener_BK = self.opener_N[items_BK].long()
        opened_BK = (opener_BK.cumsum(dim=1) - opener_BK) > 0
        return torch.where(opened_BK, chance_BK + _OPENED * (1.0 - chance_BK), chance_BK)

    def respond(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, uniform_BKJ: Tensor) -> Tensor:
        """Draws signals (B, K, 3); a watched video is a click and a long view."""
        watched_BK = uniform_BKJ[..., 0] < self.chance(state_BS, items_BK)
        seconds_BK = torch.where(watched_BK, self.duration_N[items_BK], _SWIPE_SECONDS)
        return torch.stack([seconds_BK, watched_BK.float(), watched_BK.float()], dim=-1)

    def outcomes(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor) -> Outcomes:
        """The two outcomes of each place: swiped, watched."""
        chance_BK = self.chance(state_BS, items_BK)
        watched_BK = torch.ones_like(chance_BK)
        watched_BKF = torch.stack([self.duration_N[items_BK], watched_BK, watched_BK], dim=-1)
        swiped_BKF = torch.zeros_like(watched_BKF)
        swiped_BKF[..., 0] = _SWIPE_SECONDS
        return Outcomes(
            torch.stack([swiped_BKF, watched_BKF], dim=2),
            torch.stack([1.0 - chance_BK, chance_BK], dim=2),
        )

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        """Users tire of a tag that held most of the places they saw; nothing seen changes nothing."""
        first_BK = (self.tag_N[items_BK] == 0) & seen_BK
        seen_B = seen_BK.sum(dim=1)
        tired_0_B = 2 * first_BK.sum(dim=1) > seen_B
        tired_1_B = 2 * first_BK.sum(dim=1) < seen_B
        after_BS = torch.stack([state_BS[:, 0], tired_0_B.float(), tired_1_B.float()], dim=1)
        return torch.where((seen_B > 0).unsqueeze(1), after_BS, state_BS)

    def config(self) -> dict[str, Any]:
        """No settings."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The truth."""
        names = ("appeal_TN", "type_U", "duration_N", "tag_N", "opener_N")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "TinyResponse":
        """Rebuilds the model."""
        return cls(**tensors)


class TinyLeave:
    """Users leave for the time they spend, and more easily after a video that they swiped away or had seen before."""

    def __init__(self, per_place: float = 0.02, per_second: float = 1 / 1200, per_unwatched_place: float = 0.1):
        self.per_place, self.per_second, self.per_unwatched_place = per_place, per_second, per_unwatched_place

    def stay(self, context_BX: Tensor, signals_BKF: Tensor) -> Tensor:
        """Chance of going on after each place; see ``recsim_env.types.LeaveModel``."""
        hazard = self.per_place + self.per_second * signals_BKF[..., 0]
        return torch.exp(-(hazard + self.per_unwatched_place * (1.0 - signals_BKF[..., 2])))

    def config(self) -> dict[str, Any]:
        """The hazards."""
        names = ("per_place", "per_second", "per_unwatched_place")
        return {name: getattr(self, name) for name in names}

    def tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "TinyLeave":
        """Rebuilds the model."""
        return cls(**config)


def tiny_world(*, num_users: int = 16) -> World:
    """Eight videos, two types of users, three requests of three places: use ``TINY_SIZES``.

    Args:
        num_users: users, even numbers of the first type and odd ones of the second.

    Raises:
        ValueError: fewer than 2 users.

    Example:
        >>> round(tiny_optimum(tiny_world()).session_watch_time)
        98
    """
    if num_users < 2:
        raise ValueError(f"the tiny world needs a user of each of its two types, got num_users={num_users}")
    type_U = torch.arange(num_users) % 2
    appeal_TN = torch.tensor([_FAVOURITE + _OTHER, _OTHER + _FAVOURITE])
    duration_N, tag_N = torch.tensor(_DURATION), torch.tensor(_TAG)
    opener_N = torch.tensor(_OPENER)
    response = TinyResponse(appeal_TN, type_U, duration_N, tag_N, opener_N)
    num_items = len(duration_N)
    leave = TinyLeave()
    return World(
        name="tiny",
        signals=response.signals,
        catalogue=Catalogue(
            ids=np.arange(num_items),
            duration_N=duration_N,
            features_ND=torch.stack([tag_N.float(), opener_N.float(), duration_N / 30], dim=1),
            feature_names=("tag", "opener", "duration"),
            tag_N=tag_N,
        ),
        users=Users(
            ids=np.arange(num_users),
            features_UD=type_U.float().unsqueeze(1),
            feature_names=("type",),
            histories=Histories(
                start_U1=torch.zeros(num_users + 1, dtype=torch.int64),
                item_P=torch.zeros(0, dtype=torch.int64),
                feedback_PF=torch.zeros(0, len(response.signals)),
                known_PF=torch.zeros(0, len(response.signals), dtype=torch.bool),
            ),
        ),
        population_P=torch.arange(num_users),
        response=response,
        leave=leave,
        contexts=DeclaredContext(),
        recommender=Recommender(predictor=_counted(response), candidates=AllCandidates(num_items)),
        declared={"leave": leave.config(), "contexts": DeclaredContext().config()},
        provenance={"kind": "synthetic: hand-written users, optimum known by enumeration"},
        defaults={**TINY_SIZES, "history_length": 9},
    )


class TinyOptimum(NamedTuple):
    """The best that can be done in the tiny world."""

    session_watch_time: float
    """Expected seconds of a session, mean over the world's population."""
    watch_time_U: Tensor
    """float64: the same for each user."""
    slates_URK: Tensor
    """int64 best slate of each user at each request; states follow from slates, so no more is needed."""


def tiny_optimum(world: World, *, slate_size: int = 3, horizon: int = 3) -> TinyOptimum:
    """The exact optimum of expected session watch time, over all slates without repeats.

    Args:
        world: a tiny world; users' states must follow from the items shown alone.
        slate_size: K.
        horizon: requests after which a session is cut.
    """
    slates_LK = torch.tensor(list(itertools.permutations(range(len(world.catalogue)), slate_size)))
    start_US = world.response.start(torch.arange(len(world.users)))
    shown_N = torch.zeros(len(world.catalogue), dtype=torch.bool)
    solved: _Solved = {}
    found = [_best(world, state_S, shown_N, slates_LK, 0, horizon, solved) for state_S in start_US]
    watch_time_U = torch.tensor([value for value, _ in found], dtype=torch.float64)
    best_UR = torch.tensor([slates for _, slates in found])
    mean = float(watch_time_U[world.population_P].mean())
    return TinyOptimum(mean, watch_time_U, slates_LK[best_UR])


_Solved = dict[tuple[float, ...], tuple[float, list[int]]]
"""Request, user's state and videos shown before to the best from there on."""


def _best(
    world: World,
    state_S: Tensor,
    shown_N: Tensor,
    slates_LK: Tensor,
    request_index: int,
    horizon: int,
    solved: _Solved,
) -> tuple[float, list[int]]:
    """Best expected watch time from a state to the horizon, and the slates (row numbers) that reach it."""
    if request_index == horizon:
        return 0.0, []
    key = (request_index, *state_S.tolist(), *shown_N.tolist())
    if key in solved:
        return solved[key]
    lists = len(slates_LK)
    state_LS = state_S.expand(lists, -1)
    context_LX = torch.zeros(lists, len(CONTEXT))
    context_LX[:, CONTEXT.index("request_index")] = request_index
    outcomes = world.response.outcomes(state_LS, context_LX, slates_LK)
    first_LK = ~shown_N[slates_LK]
    signals_LKOF = outcomes.signals_BKOF * first_LK[..., None, None]  # a video earns once in a session
    probability_LKO = outcomes.probability_BKO.double()
    stay_LK = (world.leave.stay(context_LX, signals_LKOF) * probability_LKO).sum(-1)
    seconds_LK = (signals_LKOF[..., 0] * probability_LKO).sum(-1)
    survived_LK = stay_LK.cumprod(dim=1)
    value_L = (reached(stay_LK) * seconds_LK).sum(dim=1)

    mean_LKF = (signals_LKOF * outcomes.probability_BKO.unsqueeze(-1)).sum(dim=2)
    after_LS = world.response.observe(state_LS, context_LX, slates_LK, mean_LKF, first_LK)
    shown_LN = shown_N.expand(lists, -1).scatter(1, slates_LK, True)
    after, state_L = np.unique(torch.cat([after_LS, shown_LN.float()], 1).numpy(), axis=0, return_inverse=True)
    later = [
        _best(world, row[: len(state_S)], row[len(state_S) :] > 0, slates_LK, request_index + 1, horizon, solved)
        for row in torch.from_numpy(after)
    ]
    value_L = value_L + survived_LK[:, -1] * torch.tensor([value for value, _ in later]).double()[state_L]
    best = int(value_L.argmax())
    solved[key] = float(value_L[best]), [best, *later[int(state_L[best])][1]]
    return solved[key]


def _counted(response: TinyResponse, impressions: int = 200) -> LogRatePredictor:
    """Rates as a log of every video, shown alone to both types, would teach them."""
    num_items = len(response.duration_N)
    generator = torch.Generator().manual_seed(0)
    items_P = torch.arange(num_items).repeat(impressions)
    type_P1 = torch.randint(2, (len(items_P), 1), generator=generator)
    state_PS = torch.cat([type_P1.float(), torch.zeros(len(items_P), 2)], dim=1)
    context_PX = torch.zeros(len(items_P), len(CONTEXT))
    uniform_P11 = torch.rand(len(items_P), 1, 1, generator=generator)
    signals_P1F = response.respond(state_PS, context_PX, items_P.unsqueeze(1), uniform_P11)
    return LogRatePredictor.count(items_P, signals_P1F.squeeze(1), num_items)
