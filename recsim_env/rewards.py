"""Rewards: named components of what an environment pays for a slate.

A reward maps (Request, items, Feedback) to components ``rewards_BR``; the scalar that learners see is their
declared weighted sum. A video that was shown before in the session earns nothing: its signals are 0, see
``Simulator.step``.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from recsim_env.plugins import nearest
from recsim_env.types import WATCH_TIME, Feedback, Request


@runtime_checkable
class Reward(Protocol):
    """What an environment pays; any object with these three members."""

    names: tuple[str, ...]
    """Names of the R components."""
    weights: tuple[float, ...]
    """Weight of each component in the scalar reward."""

    def __call__(self, request: Request, items_BK: Tensor, feedback: Feedback) -> Tensor:
        """Components (B, R), float32."""
        ...


class SignalReward:
    """Signals summed over the places the user saw.

    Args:
        weights: weight of each rewarded signal; ``watch_time`` counts in seconds.
        signals: the world's signals.

    Raises:
        ValueError: a signal that the world does not have, or no signal at all.

    Example:
        >>> SignalReward({"watch_time": 1.0, "like": 20.0}, ("watch_time", "click", "like")).names
        ('watch_time', 'like')
    """

    def __init__(self, weights: Mapping[str, float], signals: Sequence[str]):
        if not weights:
            raise ValueError("a reward needs at least one signal with a weight")
        for name in weights:
            if name not in signals:
                raise ValueError(f"unknown signal {name!r}{nearest(name, signals)}; this world has {tuple(signals)}")
        self.names = tuple(weights)
        self.weights = tuple(float(w) for w in weights.values())
        self._indices = [list(signals).index(name) for name in weights]

    def __call__(self, request: Request, items_BK: Tensor, feedback: Feedback) -> Tensor:
        """Sums of the rewarded signals, (B, R)."""
        return feedback.signals_BKF[..., self._indices].sum(dim=1)


def watch_time_reward(signals: Sequence[str]) -> SignalReward:
    """The default reward: seconds watched, summed over the places the user saw."""
    return SignalReward({WATCH_TIME: 1.0}, signals)


def aspect_rewards(signals: Sequence[str], weights: Mapping[str, float] | None = None) -> SignalReward:
    """A reward with one component for each signal, in the world's order, for learners that look after one each.

    Args:
        signals: the world's signals.
        weights: of the scalar that is paid beside the components; watch time alone by default.

    Raises:
        ValueError: a weight for a signal that the world does not have.

    Example:
        >>> reward = aspect_rewards(("watch_time", "click", "like"))
        >>> reward.names, reward.weights
        (('watch_time', 'click', 'like'), (1.0, 0.0, 0.0))
    """
    paid = {WATCH_TIME: 1.0} if weights is None else weights
    return SignalReward(dict.fromkeys(signals, 0.0) | dict(paid), signals)


def scalar(reward: Reward, rewards_BR: Tensor) -> Tensor:
    """The weighted sum (B,) that learners see."""
    weights_R = torch.tensor(reward.weights, dtype=rewards_BR.dtype, device=rewards_BR.device)
    return (rewards_BR * weights_R).sum(dim=1)  # not a matrix product: one row's bytes must not depend on B
