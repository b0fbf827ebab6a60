"""What the log cannot say, as declared parameters: leaving, within-slate repetition, session starts.

A log of a thinned item pool holds neither sessions nor slates, so nothing here is fitted to it. The
numbers stand in ``world.json`` under "declared", are equal in every world of a build, and conclusions
that hang on them should be repeated under other settings.
"""

from typing import Any

import torch
from torch import Tensor

from recsim_env.types import NO_ITEM

HOUR_WEIGHTS = (
    3.0, 1.9, 1.3, 0.9, 0.8, 1.1, 2.2, 3.3, 3.9, 4.2, 4.5, 5.0,
    5.6, 5.4, 5.0, 4.9, 4.9, 5.1, 5.5, 5.7, 6.0, 6.3, 6.4, 5.1,
)  # fmt: skip
"""Share of requests by local hour, in percent: the profile of KuaiRand-Pure."""


class DeclaredLeave:
    """A constant hazard per place, per second watched and per dull place.

    The chance of going on after a place is ``exp(-(per_place + per_second * watch_time +
    per_dull_place * (1 - long_view)))``. Time is consumed as well as patience, so a ranker cannot buy
    session watch time with long videos alone.
    """

    def __init__(
        self,
        per_place: float = 0.002,
        per_second: float = 1 / 2400,
        per_dull_place: float = 0.012,
        long_view_index: int | None = 2,
    ):
        for name, value in (
            ("per_place", per_place),
            ("per_second", per_second),
            ("per_dull_place", per_dull_place),
        ):
            if not value >= 0:
                raise ValueError(f"leave parameter {name} must be at least 0, got {value}")
        self.per_place = per_place
        self.per_second = per_second
        self.per_dull_place = per_dull_place
        self.long_view_index = long_view_index

    def scaled(self, factor: float) -> "DeclaredLeave":
        """The same model with all hazards times ``factor``: 2 for users of half the patience."""
        per_place, per_second = factor * self.per_place, factor * self.per_second
        return DeclaredLeave(per_place, per_second, factor * self.per_dull_place, self.long_view_index)

    def stay(self, context_BX: Tensor, signals_BKF: Tensor) -> Tensor:
        """Chance of going on after each place; see ``recsim_env.types.LeaveModel``."""
        hazard = self.per_place + self.per_second * signals_BKF[..., 0]
        if self.long_view_index is not None:
            hazard = hazard + self.per_dull_place * (1.0 - signals_BKF[..., self.long_view_index])
        return torch.exp(-hazard)

    def config(self) -> dict[str, Any]:
        """The declared numbers."""
        return {
            "per_place": self.per_place,
            "per_second": self.per_second,
            "per_dull_place": self.per_dull_place,
            "long_view_index": self.long_view_index,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the numbers are settings."""
        return {}

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "DeclaredLeave":
        """Rebuilds the model."""
        return cls(**config)


class TagRepeatEffect:
    """A video is skipped at once when the slate has already shown its main tag.

    Each earlier place with the same main tag raises the chance of an instant skip:
    ``1 - (1 - strength) ** repeats``. A skipped video is watched for ``skip_seconds`` at most and gets
    no other feedback.
    """

    def __init__(self, tag_N: Tensor, strength: float = 0.3, skip_seconds: float = 1.5):
        if not 0 <= strength < 1:
            raise ValueError(f"list effect strength must lie in [0, 1), got {strength}")
        self.tag_N = tag_N
        self.strength = strength
        self.skip_seconds = skip_seconds

    def interrupt(self, items_BK: Tensor) -> Tensor:
        """Chance of an instant skip at each place."""
        tag_BK = self.tag_N[items_BK]
        same_BKK = (tag_BK.unsqueeze(2) == tag_BK.unsqueeze(1)) & (tag_BK != NO_ITEM).unsqueeze(2)
        repeats_BK = same_BKK.tril(-1).sum(-1)
        power = torch.tensor(1.0 - self.strength, device=items_BK.device) ** torch.arange(
            items_BK.shape[1], device=items_BK.device
        )
        return 1.0 - power[repeats_BK]

    def skip(self, signals: Tensor) -> Tensor:
        """At most ``skip_seconds`` of watch time and nothing else."""
        skipped = torch.zeros_like(signals)
        skipped[..., 0] = signals[..., 0].clamp(max=self.skip_seconds)
        return skipped

    def config(self) -> dict[str, Any]:
        """The declared numbers."""
        return {"strength": self.strength, "skip_seconds": self.skip_seconds}

    def tensors(self) -> dict[str, Tensor]:
        """The main tag of each item."""
        return {"tag_N": self.tag_N}

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "TagRepeatEffect":
        """Rebuilds the effect."""
        return cls(tensors["tag_N"], **config)


class DeclaredContext:
    """Sessions start in one tab, at an hour drawn from a daily profile, on any day of the week."""

    def __init__(self, tab: int = 1, hour_weights: tuple[float, ...] = HOUR_WEIGHTS):
        if len(hour_weights) != 24 or min(hour_weights) < 0 or sum(hour_weights) <= 0:
            raise ValueError(f"need 24 non-negative hour weights with a positive sum, got {hour_weights}")
        self.tab = tab
        self.hour_weights = tuple(hour_weights)
        weights = torch.tensor(self.hour_weights, dtype=torch.float64)
        self._edges: list[float] = (weights.cumsum(0) / weights.sum())[:-1].tolist()

    def start(self, uniform_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Tab and clock of each session; the second draw places it within week and hour."""
        draw_B2 = uniform_B2.to(torch.float64)
        hour_B = torch.bucketize(draw_B2[:, 0].contiguous(), draw_B2.new_tensor(self._edges))
        week_position_B = draw_B2[:, 1] * 7
        weekday_B = week_position_B.floor()
        clock_B = weekday_B * 86400 + hour_B * 3600 + (week_position_B - weekday_B) * 3600
        return torch.full_like(hour_B, self.tab), clock_B

    def config(self) -> dict[str, Any]:
        """The declared tab and profile."""
        return {"tab": self.tab, "hour_weights": list(self.hour_weights)}

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the profile is a setting."""
        return {}

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "DeclaredContext":
        """Rebuilds the source."""
        return cls(config["tab"], tuple(config["hour_weights"]))
