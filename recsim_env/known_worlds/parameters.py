"""The numbers of the short-video world, fixed once and for all.

They were fitted by hand to the published and measured statistics of KuaiRand-Pure (single-column feed) and
are part of the benchmark: a test holds their sha256, and results made under other numbers are not comparable.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

NUM_TAGS = 46
TASTE_SIZE = 8
"""L: length of a user's taste and of a video's vector."""

CLICK_AT = 7.0
"""A play of at least this many seconds counts as a click."""
LONG_VIEW_AT = 18.0
"""A play of at least this many seconds, or of nearly the whole video, counts as a long view."""
LONG_VIEW_RATIO = 0.95
"""Share of a short video that counts as a long view."""
END_RATIO = 0.985
"""A play that reaches this share of the video ends near its end, or goes round again."""
REPLAY_RATIO = 1.03
"""Plays beyond this share are replays."""


@dataclass(frozen=True, kw_only=True)
class ShortVideoParameters:
    """Every constant of the short-video users; logits unless another unit is named."""

    base_interest: float = -0.8
    """Interest of an average user in an average video."""
    usual_interest: float = 0.95
    """Interest at which the duration table below was fitted."""
    user_bias: float = 0.72
    """Spread of users' general interest."""
    activity_bias: float = -0.22
    """Change of general interest for each standard deviation of log activity: heavy users are pickier."""
    taste: float = 0.95
    """Spread of the match between a user's taste and a video's vector."""
    tag_share: float = 0.6
    """Share of a video vector's variance that its main tag explains."""
    quality: float = 1.0
    """Spread of video quality."""
    reach_quality: float = 0.5
    """Correlation of a video's past reach with its quality."""
    reach: float = 1.75
    """Spread of log reach: how unevenly the retriever picks."""
    trait: float = 0.55
    """Spread of the match on the hidden trait."""
    hour_swing: float = 0.1
    """Interest at 22 h above the daily mean, and at 10 h below it."""

    skip_median: float = 1.85
    """Seconds before an uninteresting video is swiped away."""
    skip_scale: float = 0.3
    """Log-logistic scale of these seconds."""
    interest_in_swipe: float = 0.5
    """Change of the log-odds of not swiping with interest."""
    interest_in_time: float = 0.95
    """Change of log watch time with interest."""
    durations: tuple[float, ...] = (8.5, 12.5, 17.5, 25.0, 43.0, 88.0, 170.0, 370.0)
    """Knots of the duration table, s; straight lines in log duration between them."""
    duration_interest: tuple[float, ...] = (0.5, 0.75, 0.85, 0.05, 0.3, 0.65, 0.25, 0.05)
    """Interest that a video gains from its duration alone."""
    duration_location: tuple[float, ...] = (1.3, 1.5, 1.8, 2.15, 2.5, 2.92, 2.65, 2.45)
    """Median log seconds of a play that was not swiped away, at the usual interest."""
    duration_scale: tuple[float, ...] = (0.8, 0.85, 0.8, 0.75, 0.72, 0.72, 0.75, 0.78)
    """Log-logistic scale of these seconds."""
    replay_share: tuple[float, ...] = (0.92, 0.9, 0.88, 0.83, 0.59, 0.31, 0.165, 0.11)
    """Share of plays reaching the end that go round again."""
    replay_scale: tuple[float, ...] = (0.42, 0.33, 0.24, 0.16, 0.11, 0.09, 0.08, 0.08)
    """How far replays go, in lengths of the video."""

    like: tuple[float, float, float, float] = (-8.95, 1.4, 0.3, 0.3)
    """Like: intercept, and what a click, a long view and an end add."""
    like_user: float = 2.85
    """Spread of users' readiness to like."""
    like_video: float = 1.6
    """Spread of videos' likeability."""
    like_duration: float = -0.45
    """Change of likeability with log duration."""
    others: tuple[tuple[float, float, float, float], ...] = (
        (-7.6, 3.1, 1.0, 0.1),
        (-9.55, 1.6, 3.0, 1.3),
        (-8.0, 1.6, 1.2, 0.3),
        (-6.95, -0.8, 0.3, -0.6),
    )
    """Follow, comment, forward, hate: intercept, and what a like, a click and a long view add."""
    interest_in_signals: tuple[float, ...] = (0.2, 0.2, 0.2, 0.2, -0.05)
    """Change of like, follow, comment, forward and hate with interest itself: what they tell beyond time."""

    repeat_fatigue: float = 0.75
    """Interest lost after a video of the same tag in the slate; less for kindred tags."""
    follow_up: float = 0.5
    """Interest gained after a video of a tag that leads well to this one."""
    follow_up_share: float = 0.15
    """Share of ordered tag pairs that lead well."""
    list_memory: float = 0.8
    """How much of this is left for each place further down."""

    drift_rate: float = 0.05
    """How far taste moves along a video that got a long view (and away from one that did not)."""
    drift_memory: float = 0.95
    """Share of that movement left after one more slate."""
    satiation: float = 0.06
    """Interest lost for each recently seen video's worth of likeness."""
    satiation_memory: float = 0.7
    """Share of satiation left after one more slate."""
    mood: float = 0.035
    """Interest gained everywhere after a click, and lost after none."""
    mood_memory: float = 0.8
    """Share of mood left after one more slate."""

    duration_log_mean: float = 4.23
    """Catalogue: mean log seconds."""
    duration_log_std: float = 1.03
    """Catalogue: spread of log seconds."""
    shortest: float = 7.5
    """Catalogue: no video is shorter, s, so that a long view always is a click."""
    longest: float = 1178.0
    """Catalogue: no video is longer, s."""
    tag_exponent: float = 1.0
    """Tag shares fall like (rank + tag_offset) ** -tag_exponent."""
    tag_offset: float = 0.9
    """See ``tag_exponent``."""
    activity: float = 0.94
    """Spread of users' log activity."""

    def digest(self) -> str:
        """sha256 over all numbers."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ShortVideoParameters":
        """Rebuilds parameters from JSON, whose lists stand for tuples."""
        return cls(**{name: _tuples(value) for name, value in values.items()})


@dataclass(frozen=True, kw_only=True)
class Dials:
    """How strong each mechanism is that a learned model cannot represent exactly: 0 off, 1 default."""

    list_effect: float = 1.0
    """Earlier places of a slate change later ones: fatigue of kindred tags, tags that lead well to others."""
    drift: float = 1.0
    """Feedback moves taste, mood and satiation within a session."""
    hidden_trait: float = 1.0
    """A trait of users and videos that the logging policy sees and the log lacks."""
    auxiliary: float = 1.0
    """Likes and their kin depend on interest itself, not on watch time alone."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 10:
                raise ValueError(f"{field.name} must lie in 0 (off) to 10 (1 is the default), got {value}")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
