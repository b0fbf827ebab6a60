"""Observation forms: a Request as arrays for stock learners (features) or sequence models (ids).

``features`` is one flat float32 Box with finite bounds:

==================  ==========  ============================================================
part                length      content
==================  ==========  ============================================================
context             X           ``types.CONTEXT``, times as log(1 + s)
user                D           user features
recent              F           mean of each known signal over the last 10 videos
history             F           the same over the whole window
candidates          C x (Di+2F+1)  features, predicted signals, their spread, retriever score
==================  ==========  ============================================================

``ids`` is a Dict of ``history`` (H,) and ``candidates`` (C,) int64 item codes and ``feedback`` (H * F,)
float32. ``both`` is a Dict of all of them. Seconds are divided by ``SECONDS``; everything is clipped to
``+-BOUND`` but the hour (0..23) and the request index (0..``max_requests``), which are what they are.
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
from recsim_env.types import CONTEXT, NO_ITEM, Request

BOUND = 20.0
SECONDS = 30.0
_RECENT = 10
_HOUR, _REQUEST_INDEX = CONTEXT.index("hour"), CONTEXT.index("request_index")
_FIRST_TIME = CONTEXT.index("seconds_since_request")  # from here on, context fields are seconds

Observation = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class ObservationForm:
    """One way of showing a request."""

    space: gym.Space[np.ndarray] | gym.spaces.Dict
    encode: Callable[[Request], Observation]


def observation_form(name: str, simulator: Simulator) -> ObservationForm:
    """The observation form of a name, sized for a simulator.

    Raises:
        ValueError: an unknown name.
    """
    if name == "features":
        return ObservationForm(_features_space(simulator), request_features)
    if name == "ids":
        return ObservationForm(gym.spaces.Dict(_ids_spaces(simulator)), request_ids)
    if name == "both":
        spaces = {"features": _features_space(simulator), **_ids_spaces(simulator)}
        return ObservationForm(
            gym.spaces.Dict(spaces),
            lambda request: {"features": request_features(request), **request_ids(request)},
        )
    allowed = ["features", "ids", "both"]
    raise ValueError(f"unknown observation form {name!r}{nearest(name, allowed)}; allowed: {allowed}")


def request_features(request: Request) -> Tensor:
    """The flat feature vector of each request, float32 (B, length); see the module docstring for its bounds."""
    B = len(request.user_B)
    counts_BX, seconds_BX = request.context_BX[:, :_FIRST_TIME], request.context_BX[:, _FIRST_TIME:]
    candidates_BCE = torch.cat(
        [
            request.candidate_features_BCD,
            _in_units(request.predicted_BCF),
            _in_units(request.predicted_std_BCF),
            request.retriever_score_BC.unsqueeze(-1),
        ],
        dim=2,
    )
    parts = [
        counts_BX,
        seconds_BX.log1p(),
        request.user_features_BD,
        _in_units(_mean_known(request, _RECENT)),
        _in_units(_mean_known(request, request.history_BH.shape[1])),
        candidates_BCE.reshape(B, -1),
    ]
    features = torch.cat(parts, dim=1).clamp_(-BOUND, BOUND)
    for field in (_HOUR, _REQUEST_INDEX):  # bounded by nature, and beyond BOUND: 21 h must not read as 20 h
        features[:, field] = counts_BX[:, field]
    return features


def request_ids(request: Request) -> dict[str, Tensor]:
    """Item codes and past feedback of each request."""
    feedback_BHF = _in_units(request.history_feedback_BHF)
    return {
        "history": request.history_BH,
        "feedback": feedback_BHF.flatten(1).clamp(-BOUND, BOUND),
        "candidates": request.candidates_BC,
    }


def _in_units(signals: Tensor) -> Tensor:
    """Signals (..., F) with watch time in units of ``SECONDS``."""
    return torch.cat([signals[..., :1] / SECONDS, signals[..., 1:]], dim=-1)


def _mean_known(request: Request, length: int) -> Tensor:
    known_BHF = request.history_known_BHF[:, -length:]
    total_BF = (request.history_feedback_BHF[:, -length:] * known_BHF).sum(dim=1)
    return total_BF / known_BHF.sum(dim=1).clamp(min=1)


def _features_space(simulator: Simulator) -> gym.spaces.Box:
    world = simulator.world
    signals = len(world.signals)
    per_candidate = world.catalogue.features_ND.shape[1] + 2 * signals + 1
    length = len(CONTEXT) + world.users.features_UD.shape[1] + 2 * signals + simulator.num_candidates * per_candidate
    high = np.full(length, BOUND, np.float32)
    high[_HOUR], high[_REQUEST_INDEX] = 23, max(BOUND, simulator.max_requests)
    return gym.spaces.Box(-high, high, (length,), np.float32)


def _ids_spaces(simulator: Simulator) -> dict[str, gym.Space[np.ndarray]]:
    last, length = len(simulator.world.catalogue) - 1, simulator.history_length
    return {
        "history": gym.spaces.Box(NO_ITEM, last, (length,), np.int64),
        "feedback": gym.spaces.Box(-BOUND, BOUND, (length * len(simulator.world.signals),), np.float32),
        "candidates": gym.spaces.Box(0, last, (simulator.num_candidates,), np.int64),
    }


def as_numpy(observation: Observation) -> Any:
    """The same observation as numpy arrays on the CPU."""
    if isinstance(observation, dict):
        return {name: tensor.cpu().numpy() for name, tensor in observation.items()}
    return observation.cpu().numpy()


def first_row(observation: Any) -> Any:
    """The observation of the first environment of a batch."""
    if isinstance(observation, dict):
        return {name: array[0] for name, array in observation.items()}
    return observation[0]
