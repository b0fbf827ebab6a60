"""A default recommender that knows nothing of the truth: candidates by reach, predictions by counting.

Both parts ignore the user, so whatever a ranker gains over them it has learned itself.

Shape legend: B sessions, C candidates, F signals, N items, M items to leave out, S state (none here).
"""

from typing import Any

import torch
from torch import Tensor

from recsim_env.types import NO_ITEM

_LEFT_OUT = 1e6
"""Subtracted from the score of an item that should not come back."""


class UniformCandidates:
    """Candidates at random, item i with weight ``exp(reach_N[i])``; all alike by default.

    The draw of a request reads a fixed table of Gumbel noise at an offset, so it costs one gather however
    large the catalogue is, and candidates come as a sample without replacement.

    Args:
        reach_N: float32 log weight of each item.
        seed: seed of the noise table.
    """

    def __init__(self, reach_N: Tensor, seed: int = 0):
        self.reach_N = reach_N
        self.seed = seed
        draws = torch.rand(2 * len(reach_N), generator=torch.Generator().manual_seed(seed))
        noise = -torch.log(-torch.log(draws.clamp(1e-6, 1 - 1e-6)))
        # One more column than items: where empty places of ``shown_BM`` point, never retrieved.
        self._noise_RN = noise.to(reach_N.device).unfold(0, len(reach_N) + 1, 1)
        self._reach_N = torch.cat([reach_N, reach_N.new_full((1,), -torch.inf)])

    def start(self, user_B: Tensor) -> Tensor:
        """No state (B, 0)."""
        return self.reach_N.new_zeros(len(user_B), 0)

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        """No state."""
        return state_BS

    def retrieve(
        self, state_BS: Tensor, shown_BM: Tensor, uniform_B: Tensor, num_candidates: int
    ) -> tuple[Tensor, Tensor]:
        """Candidates (B, C), best score first, and their scores; see ``CandidateSource``."""
        score_BN = self._noise_RN[self._offset(uniform_B)] + self._reach_N
        shown_BM = torch.where(shown_BM == NO_ITEM, len(self.reach_N), shown_BM)
        lowered_BM = score_BN.gather(1, shown_BM) - _LEFT_OUT
        score_BN.scatter_(1, shown_BM, lowered_BM)
        score_BC, items_BC = score_BN.topk(num_candidates, dim=1)
        return items_BC, score_BC

    def score(self, state_BS: Tensor, uniform_B: Tensor, items_BY: Tensor) -> Tensor:
        """Scores (B, Y) of any items; see ``CandidateSource``."""
        return self._noise_RN[self._offset(uniform_B).unsqueeze(1), items_BY] + self._reach_N[items_BY]

    def _offset(self, uniform_B: Tensor) -> Tensor:
        """Where in the table of noise each request reads."""
        num_offsets = len(self._noise_RN)
        return (uniform_B * num_offsets).long().clamp(max=num_offsets - 1)

    def config(self) -> dict[str, Any]:
        """The seed of the noise."""
        return {"seed": self.seed}

    def tensors(self) -> dict[str, Tensor]:
        """Log weights."""
        return {"reach_N": self.reach_N}

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "UniformCandidates":
        """Rebuilds the source."""
        return cls(tensors["reach_N"], **config)


class LogRatePredictor:
    """Predicts every signal of an item by its mean in a log, drawn towards the mean over all items.

    Args:
        mean_NF: float32 smoothed means.
        error_NF: float32 their standard errors, shown as the predictor's spread.
    """

    def __init__(self, mean_NF: Tensor, error_NF: Tensor):
        self.mean_NF = mean_NF
        self.error_NF = error_NF

    @classmethod
    def count(
        cls, items_P: Tensor, signals_PF: Tensor, num_items: int, prior_count: float = 10.0
    ) -> "LogRatePredictor":
        """Counts P logged impressions.

        Args:
            items_P: int64 item of each impression.
            signals_PF: its signals.
            num_items: N.
            prior_count: impressions' worth of the overall mean that each item starts with.
        """
        if not len(items_P):
            raise ValueError("cannot count signal rates in an empty log: give at least one impression")
        signals_PF = signals_PF.double()
        count_N1 = torch.bincount(items_P, minlength=num_items).double().unsqueeze(1)
        zeros_NF = signals_PF.new_zeros(num_items, signals_PF.shape[1])
        overall_F = signals_PF.mean(dim=0)
        sum_NF = zeros_NF.index_add(0, items_P, signals_PF)
        squares_NF = zeros_NF.index_add(0, items_P, (signals_PF - overall_F) ** 2)
        mean_NF = (sum_NF + prior_count * overall_F) / (count_N1 + prior_count)
        spread_F = ((signals_PF - overall_F) ** 2).mean(dim=0)
        variance_NF = (squares_NF + prior_count * spread_F) / (count_N1 + prior_count)
        return cls(mean_NF.float(), (variance_NF / (count_N1 + prior_count)).sqrt().float())

    def start(self, user_B: Tensor) -> Tensor:
        """No state (B, 0)."""
        return self.mean_NF.new_zeros(len(user_B), 0)

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        """No state."""
        return state_BS

    def predict(self, state_BS: Tensor, context_BX: Tensor, items_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard errors (B, C, F) of the items."""
        return self.mean_NF[items_BC], self.error_NF[items_BC]

    def config(self) -> dict[str, Any]:
        """No settings."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The two tables."""
        return {"mean_NF": self.mean_NF, "error_NF": self.error_NF}

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "LogRatePredictor":
        """Rebuilds the predictor."""
        return cls(**tensors)


class AllCandidates:
    """The whole of a small catalogue in one fixed order; nothing is left out, as nothing would be left.

    Args:
        num_items: N, which every request must ask for.
    """

    def __init__(self, num_items: int):
        self.num_items = num_items

    def start(self, user_B: Tensor) -> Tensor:
        """No state (B, 0)."""
        return torch.zeros(len(user_B), 0, device=user_B.device)

    def observe(
        self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, signals_BKF: Tensor, seen_BK: Tensor
    ) -> Tensor:
        """No state."""
        return state_BS

    def retrieve(
        self, state_BS: Tensor, shown_BM: Tensor, uniform_B: Tensor, num_candidates: int
    ) -> tuple[Tensor, Tensor]:
        """Every item in the order of its code, all with score 0."""
        if num_candidates != self.num_items:
            raise ValueError(
                f"this world offers all its {self.num_items} items to every request, "
                f"set num_candidates={self.num_items}, got {num_candidates}"
            )
        items_BC = torch.arange(num_candidates, device=uniform_B.device).repeat(len(uniform_B), 1)
        return items_BC, self.score(state_BS, uniform_B, items_BC)

    def score(self, state_BS: Tensor, uniform_B: Tensor, items_BY: Tensor) -> Tensor:
        """0 for every item."""
        return torch.zeros(items_BY.shape, device=items_BY.device)

    def config(self) -> dict[str, Any]:
        """The number of items."""
        return {"num_items": self.num_items}

    def tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "AllCandidates":
        """Rebuilds the source."""
        return cls(**config)
