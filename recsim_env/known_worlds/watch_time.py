"""How long a video is watched: swiped away at once, watched part of the way, to its end, or again.

Given its interest a place has one distribution, read at one uniform draw: the lowest draws are swipes, and
above them more luck or more interest means a longer play. Parts in order: a swipe (log-logistic, below
``CLICK_AT``), a play that stops on the way (log-logistic), an end (even between ``END_RATIO`` and
``REPLAY_RATIO``), a replay (a Weibull tail of shape 2/3). Log-logistic laws have their distribution and their
quantiles in closed form by ``exp`` and ``log`` alone, which keeps rows independent of their batch.

Shape legend: B sessions, K places, O outcomes, C five kinds of play.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsim_env.known_worlds.parameters import CLICK_AT, END_RATIO, REPLAY_RATIO
from recsim_env.numerics import sigmoid

KINDS = ("swiped", "short", "clicked", "long", "ended")
"""Kinds of play; replays count as ended."""

_NODES = 3
_MIN_DRAW = 1e-6
_LONGEST_REPLAY = 6.0
"""Where the replay tail is cut, in units of its exponential variable."""
_REPLAY_EDGES = (0.0, 0.5, 1.0, 2.0, _LONGEST_REPLAY)
KIND_OF_OUTCOME = (0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4)
"""Kind of each of the outcomes that ``quadrature`` returns."""


class Play(NamedTuple):
    """What decides the watch time of each place, all (B, K) float32."""

    watch_probability: Tensor
    """Chance of not being swiped away."""
    location: Tensor
    """Median log seconds of a play that was not swiped away."""
    scale: Tensor
    """Its log-logistic scale."""
    duration: Tensor
    """s."""
    long_view_at: Tensor
    """s."""
    replay_share: Tensor
    """Share of plays reaching the end that go round again."""
    replay_scale: Tensor
    """How far they go, in lengths of the video."""


class Swipe(NamedTuple):
    """The law of seconds before a swipe; see ``swipe_law``."""

    location: float
    """Median log seconds."""
    scale: float
    """Log-logistic scale."""
    share: float
    """Share of the untruncated law below ``CLICK_AT``."""
    mean: float
    """Mean seconds."""


def swipe_law(median: float, scale: float) -> Swipe:
    """Seconds before a swipe: log-logistic with this median (s) and scale, cut at ``CLICK_AT``."""
    location = float(np.log(median))
    share = float(1 / (1 + np.exp((location - np.log(CLICK_AT)) / scale)))
    grid = (np.arange(100_000) + 0.5) / 100_000 * share
    mean = float(np.exp(location + scale * np.log(grid / (1 - grid))).mean())
    return Swipe(location, scale, share, mean)


def draw(play: Play, swipe: Swipe, uniform_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Watch time (B, K) in seconds, and whether the play reached the end (B, K) bool."""
    swipe_BK = 1.0 - play.watch_probability
    swiped_BK = uniform_BK < swipe_BK
    swipe_draw_BK = (uniform_BK / swipe_BK).clamp(_MIN_DRAW, 1 - _MIN_DRAW) * swipe.share
    draw_BK = ((uniform_BK - swipe_BK) / play.watch_probability).clamp(_MIN_DRAW, 1 - _MIN_DRAW)

    law_BK = torch.where(swiped_BK, swipe_draw_BK, draw_BK)
    location_BK = torch.where(swiped_BK, swipe.location, play.location)
    scale_BK = torch.where(swiped_BK, swipe.scale, play.scale)
    part_BK = torch.exp(location_BK + scale_BK * torch.log(law_BK / (1.0 - law_BK)))

    before_end_BK = _share_below(play, play.duration * END_RATIO)
    rest_BK = ((1.0 - draw_BK) / (1.0 - before_end_BK)).clamp(min=_MIN_DRAW)  # below 1 once at the end
    once_BK = (1.0 - rest_BK) / (1.0 - play.replay_share)
    tail_BK = -torch.log((rest_BK / play.replay_share).clamp(max=1.0)).clamp(max=_LONGEST_REPLAY)
    replay_BK = REPLAY_RATIO + play.replay_scale * tail_BK * tail_BK.sqrt()
    ratio_BK = torch.where(once_BK < 1, END_RATIO + (REPLAY_RATIO - END_RATIO) * once_BK, replay_BK)

    ended_BK = ~swiped_BK & (draw_BK >= before_end_BK)
    return torch.where(ended_BK, play.duration * ratio_BK, part_BK), ended_BK


def quadrature(play: Play, swipe: Swipe) -> tuple[Tensor, Tensor]:
    """The same law as outcomes: watch time (B, K, O) and probability (B, K, O).

    The probabilities of each kind of play are exact, and so are the means of swipes, ends and replays;
    plays that stop on the way are integrated by Gauss and Legendre's rule in log seconds.
    """
    log_click_BK = torch.full_like(play.duration, float(np.log(CLICK_AT)))
    edges = (
        torch.minimum(log_click_BK, play.location) - 6.0 * play.scale,
        log_click_BK,
        torch.log(play.long_view_at),
        torch.log(play.duration * END_RATIO),
    )
    below = [_share_below(play, torch.exp(edge_BK)) for edge_BK in edges]
    below[0] = torch.zeros_like(below[0])
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    node_O = torch.tensor((nodes + 1) / 2, dtype=torch.float32, device=play.duration.device)
    weight_O = torch.tensor(weights, dtype=torch.float32, device=play.duration.device)

    seconds = [torch.full_like(play.duration, swipe.mean).unsqueeze(-1)]
    probability = [(1.0 - play.watch_probability).unsqueeze(-1)]
    watch_BK1 = play.watch_probability.unsqueeze(-1)
    for i in range(len(edges) - 1):
        log_BKO = edges[i].unsqueeze(-1) + (edges[i + 1] - edges[i]).unsqueeze(-1) * node_O
        share_BKO = sigmoid((log_BKO - play.location.unsqueeze(-1)) / play.scale.unsqueeze(-1))
        density_BKO = share_BKO * (1.0 - share_BKO) * weight_O
        density_BKO = density_BKO / density_BKO.sum(-1, keepdim=True)
        seconds.append(torch.exp(log_BKO))
        probability.append(watch_BK1 * (below[i + 1] - below[i]).unsqueeze(-1) * density_BKO)

    end_BK1 = watch_BK1 * (1.0 - below[-1]).unsqueeze(-1)
    replay_BK1 = play.replay_share.unsqueeze(-1)
    mass_O, length_O = (torch.tensor(v, device=play.duration.device) for v in _replay_cells())
    lap_BKO = REPLAY_RATIO + play.replay_scale.unsqueeze(-1) * length_O
    middle_BK1 = torch.full_like(end_BK1, (END_RATIO + REPLAY_RATIO) / 2)
    seconds.append(play.duration.unsqueeze(-1) * torch.cat([middle_BK1, lap_BKO], dim=-1))
    probability.append(end_BK1 * torch.cat([1.0 - replay_BK1, replay_BK1 * mass_O], dim=-1))
    return torch.cat(seconds, dim=-1), torch.cat(probability, dim=-1)


def _share_below(play: Play, seconds_BK: Tensor) -> Tensor:
    """Share of plays not swiped away that stop before ``seconds_BK``, were there no end."""
    return sigmoid((torch.log(seconds_BK) - play.location) / play.scale)


@functools.cache
def _replay_cells() -> tuple[list[float], list[float]]:
    """Mass and mean length of slices of the replay tail."""
    tail = -np.log((np.arange(200_000) + 0.5) / 200_000)
    length = np.minimum(tail, _LONGEST_REPLAY) ** 1.5
    inside = [(tail >= low) & (tail < high) for low, high in itertools.pairwise(_REPLAY_EDGES)]
    inside[-1] |= tail >= _LONGEST_REPLAY
    return [float(i.mean()) for i in inside], [float(length[i].mean()) for i in inside]
