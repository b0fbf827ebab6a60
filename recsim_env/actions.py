"""Action forms: what a learner's action looks like and which slate it means.

================  =====================================================  =================================
form              action space (single environment)                      meaning
================  =====================================================  =================================
``slate``         MultiDiscrete, K positions in the candidate set        those candidates, in this order
``pick``          Discrete, one position; needs slate_size=1             that candidate
``items``         MultiDiscrete, K item codes                            any videos of the catalogue
``scores``        Box [-1, 1], one score for each of C candidates        the K best scores, best first
``weights``       Box [-1, 1], one weight for each of F signals          K best weighted predicted signals
``hyper``         Box [-1, 1], one vector in candidate-feature space     K best inner products
================  =====================================================  =================================
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from recsim_env.plugins import nearest
from recsim_env.simulator import Simulator
from recsim_env.slates import items_at
from recsim_env.types import Request


@dataclass(frozen=True)
class ActionForm:
    """One way of naming a slate."""

    space: gym.Space[np.ndarray]
    decode: Callable[[Request, Tensor], Tensor]
    """(request, actions) -> item codes (B, K)."""


def action_form(name: str, simulator: Simulator) -> ActionForm:
    """The action form of a name, sized for a simulator.

    Raises:
        ValueError: an unknown name.
    """
    if name not in _FORMS:
        raise ValueError(f"unknown action form {name!r}{nearest(name, _FORMS)}; allowed: {sorted(_FORMS)}")
    return _FORMS[name](simulator)


def _slate(simulator: Simulator) -> ActionForm:
    def decode(request: Request, positions_BK: Tensor) -> Tensor:
        return items_at(request.candidates_BC, positions_BK)

    sizes = np.full(simulator.slate_size, simulator.num_candidates, dtype=np.int64)
    return ActionForm(gym.spaces.MultiDiscrete(sizes), decode)


def _pick(simulator: Simulator) -> ActionForm:
    if simulator.slate_size != 1:
        raise ValueError(
            f"the action form 'pick' shows one video: give slate_size=1 or use action='slate', got "
            f"slate_size={simulator.slate_size}"
        )
    space: gym.Space[Any] = gym.spaces.Discrete(simulator.num_candidates)
    return ActionForm(space, lambda request, position_B: items_at(request.candidates_BC, position_B.unsqueeze(1)))


def _items(simulator: Simulator) -> ActionForm:
    sizes = np.full(simulator.slate_size, len(simulator.world.catalogue), dtype=np.int64)
    return ActionForm(gym.spaces.MultiDiscrete(sizes), lambda request, items_BK: items_BK)


def _scores(simulator: Simulator) -> ActionForm:
    def decode(request: Request, scores_BC: Tensor) -> Tensor:
        return _best(request, scores_BC, simulator.slate_size)

    return ActionForm(_box(simulator.num_candidates), decode)


def _weights(simulator: Simulator) -> ActionForm:
    def decode(request: Request, weights_BF: Tensor) -> Tensor:
        predicted_BCF = request.predicted_BCF
        centred_BCF = predicted_BCF - predicted_BCF.mean(dim=1, keepdim=True)
        scaled_BCF = centred_BCF / (centred_BCF.square().mean(dim=1, keepdim=True).sqrt() + 1e-6)
        return _best(request, (scaled_BCF * weights_BF.unsqueeze(1)).sum(-1), simulator.slate_size)

    return ActionForm(_box(len(simulator.world.signals)), decode)


def _hyper(simulator: Simulator) -> ActionForm:
    def decode(request: Request, vector_BD: Tensor) -> Tensor:
        score_BC = (request.candidate_features_BCD * vector_BD.unsqueeze(1)).sum(-1)
        return _best(request, score_BC, simulator.slate_size)

    return ActionForm(_box(simulator.world.catalogue.features_ND.shape[1]), decode)


def _box(size: int) -> gym.spaces.Box:
    return gym.spaces.Box(-1.0, 1.0, (size,), np.float32)


def _best(request: Request, scores_BC: Tensor, slate_size: int) -> Tensor:
    order_BK = torch.topk(scores_BC, slate_size, dim=1).indices
    return items_at(request.candidates_BC, order_BK)


_FORMS: dict[str, Callable[[Simulator], ActionForm]] = {
    "slate": _slate,
    "pick": _pick,
    "items": _items,
    "scores": _scores,
    "weights": _weights,
    "hyper": _hyper,
}
