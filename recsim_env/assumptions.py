"""What the log cannot say, as declared parameters: leaving, within-slate repetition, session starts.

A log of a thinned item pool holds neither sessions nor slates, so nothing here is fitted to it. The
numbers stand in ``world.json`` under "declared", are equal in every world of a build, and conclusions
that hang on them should be repeated under other settings.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from recsim_env.types import NO_ITEM

HOUR_WEIGHTS = (
    3.0, 1.9, 1.3, 0.9, 0.8, 1.1, 2.2, 3.3, 3.9, 4.2, 4.5, 5.0,
    5.6, 5.4, 5.0, 4.9, 4.9, 5.1, 5.5, 5.7, 6.0, 6.3, 6.4, 5.1,
)  # fmt: skip
"""Share of requests by local hour, in percent: the profile of KuaiRand-Pure."""


SessionCut = Literal["5min", "30min", "2h"]
"""How long a pause ends a session."""

USUAL_CUT: SessionCut = "30min"

SESSION_REQUESTS: dict[SessionCut, float] = {"5min": 4.8, "30min": 13.6, "2h": 29.0}
"""Mean requests of a session by the pause that ends it, in KuaiRand-27K's complete feed (322,278,385 rows)."""

_PLACES = 6
"""Places of a request; that feed has 5.8."""
_TIME_SHARE = 0.05
"""Of the users who leave a usual feed, the share that does so for the time it takes: no log tells it."""
_DULL_BELOW = 5.0
"""Watch time from which a place bores nobody, in mean watch times of a usual feed: two minutes in KuaiRand's."""


def hazard_per_place(cut: SessionCut) -> float:
    """The hazard per place at which requests of six places make the mean session of ``SESSION_REQUESTS``.

    Raises:
        ValueError: a cut that the feed was not counted at.
    """
    if cut not in SESSION_REQUESTS:
        raise ValueError(f"sessions are counted with cuts of {', '.join(SESSION_REQUESTS)}, got {cut!r}")
    return -math.log1p(-1.0 / SESSION_REQUESTS[cut]) / _PLACES


class DeclaredLeave:
    """Users leave where they are bored, and for the time that watching takes.

    The chance of going on after a place is ``exp(-(per_place + per_second * watch_time + per_dull_place * dullness))``,
    where dullness falls in a straight line from 1 for a place not watched at all to 0 at ``dull_below`` seconds.
    Whoever watches longer stays for more requests, then, up to ``dull_below``; seconds beyond only cost. Long views are
    not asked for: a ranker that is told to find watch time finds longer videos, which have fewer of them, and sessions
    would get shorter for its success.

    The defaults are what ``calibrated`` makes of a log of ``short_video_world``.

    Args:
        per_place: hazard of every place.
        per_second: hazard of every second watched.
        per_dull_place: hazard of a place that is not watched at all.
        dull_below: seconds from which a place is not dull; above 0.

    Raises:
        ValueError: a hazard below 0, or ``dull_below`` not above 0.
    """

    def __init__(
        self,
        per_place: float = 0.0,
        per_second: float = 2.6e-5,
        per_dull_place: float = 0.0148,
        dull_below: float = 123.0,
    ):
        for name, value in (
            ("per_place", per_place),
            ("per_second", per_second),
            ("per_dull_place", per_dull_place),
        ):
            if not value >= 0:
                raise ValueError(f"leave parameter {name} must be at least 0, got {value}")
        if not dull_below > 0:
            raise ValueError(f"leave parameter dull_below must be above 0, got {dull_below}")
        self.per_place = per_place
        self.per_second = per_second
        self.per_dull_place = per_dull_place
        self.dull_below = dull_below

    @classmethod
    def calibrated(cls, watch_time_P: Tensor, cut: SessionCut = USUAL_CUT) -> "DeclaredLeave":
        """The model under which a log's usual feed has sessions of the length of KuaiRand-27K's.

        The mean hazard of the log's rows is made ``hazard_per_place(cut)``. Rows times hazard are the sessions that
        end, one each, so that sessions have the right mean however users differ.

        Args:
            watch_time_P: seconds watched of each place that the log's own ranker filled.
            cut: the pause that ends a session.

        Raises:
            ValueError: watch times that are negative, not finite, or 0 throughout; an unknown cut.
        """
        watch_time_P = watch_time_P.to(torch.float64)
        mean = float(watch_time_P.mean())
        if not 0 < mean < math.inf or bool((watch_time_P < 0).any()):
            raise ValueError(
                f"leaving needs finite watch times with a mean above 0 s and none below 0, got mean {mean}"
            )
        hazard, dull_below = hazard_per_place(cut), _DULL_BELOW * mean
        dullness = float(_dullness(watch_time_P, dull_below).mean())
        return cls(
            per_second=_TIME_SHARE * hazard / mean,
            per_dull_place=(1.0 - _TIME_SHARE) * hazard / dullness,
            dull_below=dull_below,
        )

    def scaled(self, factor: float) -> "DeclaredLeave":
        """The same model with all hazards times ``factor``: 2 for users of half the patience."""
        per_place, per_second = factor * self.per_place, factor * self.per_second
        return DeclaredLeave(per_place, per_second, factor * self.per_dull_place, self.dull_below)

    def stay(self, context_BX: Tensor, signals_BKF: Tensor) -> Tensor:
        """Chance of going on after each place; see ``recsim_env.types.LeaveModel``."""
        watch_time_BK = signals_BKF[..., 0]
        hazard = self.per_place + self.per_second * watch_time_BK
        return torch.exp(-hazard - self.per_dull_place * _dullness(watch_time_BK, self.dull_below))

    def config(self) -> dict[str, Any]:
        """The declared numbers."""
        return {
            "per_place": self.per_place,
            "per_second": self.per_second,
            "per_dull_place": self.per_dull_place,
            "dull_below": self.dull_below,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the numbers are settings."""
        return {}

    @classmethod
    def restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "DeclaredLeave":
        """Rebuilds the model."""
        return cls(**config)


def _dullness(watch_time: Tensor, dull_below: float) -> Tensor:
    return (1.0 - watch_time / dull_below).clamp(min=0.0)


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
