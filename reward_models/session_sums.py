"""Fading sums of the videos that a session has shown, whatever became of them.

Both parties read them, each by effects of its own: users tire of more of the same (``users.satiation``), and a
recommender expects them to (``recommender.predictor``). A new session begins with sums of 0.

Shape legend: B sessions or users, K places, E event width, G rates of fading, W = G (E + 1) floats of sums.
"""

import torch
from torch import Tensor

DECAYS = (0.9, 0.99)
"""Share of what was shown that is left after one more video, one for each sum; chosen by held-out rows. The slower one
still tells a session's second hundred of videos from its first, as a ranker does that runs out of its best."""


def width(event_width: int) -> int:
    """W of event vectors of this length."""
    return len(DECAYS) * (event_width + 1)


def shown(event: Tensor) -> Tensor:
    """Event vectors (..., E) and a 1, which counts the videos; scaled so that a session's sums stay about 1."""
    return torch.cat([event, event.new_ones(*event.shape[:-1], 1)], -1) * 0.1


def powers(exponent: Tensor) -> Tensor:
    """``DECAYS`` to these powers, (..., G)."""
    return torch.exp(exponent.unsqueeze(-1) * torch.tensor(DECAYS, device=exponent.device).log())


def counts(sums: Tensor) -> Tensor:
    """How many videos sums (..., W) hold, fading: (..., G)."""
    return sums.reshape(*sums.shape[:-1], len(DECAYS), -1)[..., -1]


def beyond(sums: Tensor, usual_E: Tensor) -> Tensor:
    """How far the event vectors of sums (..., W) are from as many usual ones: (..., G, E)."""
    by_rate = sums.reshape(*sums.shape[:-1], len(DECAYS), -1)
    return by_rate[..., :-1] - by_rate[..., -1:] * usual_E


def add(sums_BW: Tensor, event_BKE: Tensor, seen_BK: Tensor) -> Tensor:
    """Sums after K more places, of which some were seen, in order."""
    seen_BK = seen_BK.to(sums_BW.dtype)
    # A place is faded by every seen place after it.
    later_BK = seen_BK.sum(1, keepdim=True) - seen_BK.cumsum(1)
    weight_BKG = powers(later_BK) * seen_BK.unsqueeze(-1)
    added_BGX = (weight_BKG.unsqueeze(-1) * shown(event_BKE).unsqueeze(2)).sum(1)
    kept_BG1 = powers(seen_BK.sum(1)).unsqueeze(-1)
    return (kept_BG1 * sums_BW.view(len(sums_BW), len(DECAYS), -1) + added_BGX).flatten(1)
