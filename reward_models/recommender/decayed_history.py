"""What a recommender remembers of a user: exponentially decayed sums over past impressions.

Every impression adds one vector: for each taste signal the video's own vector, times what the signal was beyond what is
expected of that video, then each signal's value and whether it was recorded. So a user's taste moves by surprise: being
shown a video that everybody likes and liking it tells nothing, and who chose it plays no part. The sums fade by a fixed
factor for each later impression, so a state is updated from one slate alone, and re-encoding a window of 100
impressions gives the same numbers to within ``decay ** 100`` of their size. Weights add up to 1 over an endless
history.

Shape legend: B requests, H impressions, K places, F signals, E item vector width, Y taste signals,
R = Y * E + 2 * F summands of one impression, G decays, S = G * R floats of a state.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from recsim_env.types import NO_ITEM

WATCH_UNIT = 4.0
"""log(1 + seconds watched) is divided by this, which brings it to the size of a 0/1 signal."""


@dataclass(frozen=True, kw_only=True)
class DecayedHistory:
    """Encodes and updates decayed sums; stateless but for the item vectors."""

    item_vectors_NE: Tensor
    """float32 vector of each item as an event."""
    num_signals: int
    """F, watch time first."""
    expected_NF: Tensor
    """float32: what each item's signals are expected to be, whoever the user."""
    taste_signals: tuple[int, ...]
    """Indices of the signals that mark what a user likes."""
    decays: tuple[float, ...] = (0.75, 0.95)
    """Factors by which one later impression fades a sum."""

    def __post_init__(self) -> None:
        if not self.decays or not all(0 < decay < 1 for decay in self.decays):
            raise ValueError(f"decays must lie in (0, 1), got {self.decays}")
        if not all(0 <= index < self.num_signals for index in self.taste_signals):
            raise ValueError(f"taste signals must lie in 0..{self.num_signals - 1}, got {self.taste_signals}")

    @property
    def num_summands(self) -> int:
        """R."""
        return len(self.taste_signals) * self.item_vectors_NE.shape[1] + 2 * self.num_signals

    @property
    def size(self) -> int:
        """S."""
        return len(self.decays) * self.num_summands

    def encode(self, history_BH: Tensor, feedback_BHF: Tensor, known_BHF: Tensor) -> Tensor:
        """Sums (B, S) over a history window, oldest first, ``NO_ITEM`` where empty."""
        # The whole window by one product with fixed weights, which is what ``observe`` comes to slate by slate.
        present_BH = history_BH != NO_ITEM
        summands_BHR = self._summands(history_BH.clamp(min=0), feedback_BHF, known_BHF)
        length = history_BH.shape[1]
        age_H = torch.arange(length - 1, -1, -1, device=history_BH.device)
        weight_HG = _powers(self.decays, True, length, str(age_H.device))[age_H]
        weight_BGH = weight_HG.T.unsqueeze(0) * present_BH.unsqueeze(1)
        return torch.bmm(weight_BGH, summands_BHR).flatten(1)

    def observe(self, sums_BS: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor) -> Tensor:
        """Sums after a slate of which a prefix was seen, every signal of it recorded."""
        known_BKF = torch.ones_like(signals_BKF, dtype=torch.bool)
        summands_BKR = self._summands(items_BK, signals_BKF, known_BKF)
        places = items_BK.shape[1]
        num_seen_B = seen_BK.sum(dim=1)
        # Ages count from the last place that was seen; places after it have negative ones, and weight 0.
        age_BK = num_seen_B.unsqueeze(1) - 1 - torch.arange(places, device=items_BK.device)
        device = str(items_BK.device)
        weight_BKG = _powers(self.decays, True, places, device)[age_BK.clamp(min=0)] * seen_BK.unsqueeze(-1)
        added_BGR = torch.bmm(weight_BKG.transpose(1, 2), summands_BKR)
        sums_BGR = sums_BS.view(-1, len(self.decays), self.num_summands)
        fade_BG1 = _powers(self.decays, False, places, device)[num_seen_B].unsqueeze(-1)
        return (sums_BGR * fade_BG1 + added_BGR).flatten(1)

    def split(self, sums_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tastes (B, G, Y * E), signal sums (B, G, F) and counts of recorded signals (B, G, F)."""
        sums_BGR = sums_BS.view(-1, len(self.decays), self.num_summands)
        width = self.num_summands - 2 * self.num_signals
        return (
            sums_BGR[..., :width],
            sums_BGR[..., width : width + self.num_signals],
            sums_BGR[..., width + self.num_signals :],
        )

    def _summands(self, items_BK: Tensor, signals_BKF: Tensor, known_BKF: Tensor) -> Tensor:
        vector_BKE = torch.nn.functional.embedding(items_BK, self.item_vectors_NE)
        surprise_BKF = (signals_BKF - torch.nn.functional.embedding(items_BK, self.expected_NF)) * known_BKF
        channels = [vector_BKE * surprise_BKF[..., f : f + 1] for f in self.taste_signals]
        watch_BK1 = torch.log1p(signals_BKF[..., :1]) / WATCH_UNIT
        return torch.cat([*channels, watch_BK1, signals_BKF[..., 1:], known_BKF.to(watch_BK1.dtype)], dim=-1)


@lru_cache(maxsize=64)
def _powers(decays: tuple[float, ...], normalised: bool, largest: int, device: str) -> Tensor:
    """``decay ** age`` for ages 0..largest, (largest + 1, G); normalised ones sum to 1 over all ages."""
    # A table, because torch's pow rounds differently for the last few elements of a tensor.
    scale = [1.0 - decay if normalised else 1.0 for decay in decays]
    powers = [[s * decay**age for s, decay in zip(scale, decays, strict=True)] for age in range(largest + 1)]
    return torch.tensor(powers, dtype=torch.float32, device=device)


def signal_rates(signals_RF: Tensor, known_RF: Tensor) -> Tensor:
    """Mean of each recorded signal (F,), watch time in the unit of the sums."""
    scaled_RF = torch.cat([torch.log1p(signals_RF[:, :1]) / WATCH_UNIT, signals_RF[:, 1:]], dim=1)
    return (scaled_RF * known_RF).sum(dim=0) / known_RF.sum(dim=0).clamp(min=1)


def principal_components(features_ND: Tensor, width: int) -> Tensor:
    """The item features' leading components (N, E), each of unit variance, signs fixed.

    E is ``width``, or less where the features have less to say; 0 where all items look alike.
    """
    # An eigenvector's sign is arbitrary and may change with the library: its largest entry is made positive.
    centred_ND = (features_ND - features_ND.mean(dim=0)).to(torch.float64)
    values_D, vectors_DD = torch.linalg.eigh(centred_ND.T @ centred_ND / max(len(features_ND), 1))
    width = min(width, int((values_D > 1e-6).sum()))
    if not width:
        return features_ND.new_zeros(len(features_ND), 0)
    leading_DE = vectors_DD[:, len(values_D) - width :].flip(1)
    signs_E = leading_DE.gather(0, leading_DE.abs().argmax(dim=0, keepdim=True)).sign()
    components_NE: Tensor = centred_ND @ (leading_DE * signs_E)
    return (components_NE / components_NE.std(dim=0).clamp(min=1e-6)).to(torch.float32)
