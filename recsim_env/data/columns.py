"""Column maps: where a table keeps what a log needs. Presets for published data sets are maps too."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from recsim_env.data.schema import USUAL_SIGNALS
from recsim_env.plugins import nearest
from recsim_env.types import WATCH_TIME


@dataclass(frozen=True, kw_only=True)
class AtLeast:
    """A 0/1 signal made from a graded column: 1 where the column reaches the threshold."""

    column: str
    """Source column, for example ``rating``."""
    threshold: float
    """Smallest value that counts as a positive."""


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """Where a table keeps what a log needs. Fields name source columns; ``None`` means absent.

    Example:
        >>> ColumnMap(user="uid", item="vid", time="ts", time_unit="s", signals={"like": "liked"}).time
        'ts'
    """

    user: str | tuple[str, ...]
    """User id. Several columns together stand for a user where a log has no id of its own."""
    item: str
    """Item id."""
    time: str
    """When the item was shown: a number in ``time_unit`` since 1970 (UTC), or a timestamp column."""
    time_unit: Literal["us", "ms", "s", "timestamp"] = "ms"
    """Unit of a numeric time; ``timestamp`` for text such as 2022-04-25 14:03:11."""
    utc_offset_hours: float = 0.0
    """Local time minus UTC: decides which day a row belongs to when ``date`` is absent."""
    date: str | None = None
    """Local day as YYYYMMDD."""
    watch_time: str | None = None
    """Time watched, in ``watch_time_unit``; empty where unknown."""
    watch_time_unit: Literal["ms", "s"] = "s"
    """Unit of the watch time."""
    duration: str | None = None
    """Length of the item, in ``duration_unit``; 0 or empty where unknown."""
    duration_unit: Literal["ms", "s"] = "s"
    """Unit of the duration."""
    signals: Mapping[str, str | AtLeast] = field(default_factory=dict)
    """Signal name to a 0/1 column or an ``AtLeast``. Nothing is derived that is not written here."""
    tab: str | None = None
    """Page of the app on which the row was shown, 0..127."""
    session: str | None = None
    """Session key, a whole number."""
    request: str | None = None
    """Request key, a whole number: equal for the rows of one slate."""
    request_by_time: bool = False
    """True states that rows of one user with equal time are one slate (it holds in KuaiRand-1K and 27K)."""
    place: str | None = None
    """Place in the slate."""
    first_place: int = 0
    """The number that ``place`` gives to the first place."""
    propensity: str | None = None
    """Probability with which the logging policy showed the item there."""
    is_random: str | bool | None = None
    """Column that says whether the item was chosen at random; a constant when one answer holds for all."""
    candidates: str | None = None
    """Item ids from which the logging policy chose: a list column, or text separated by commas."""
    pxtr: Mapping[str, str] = field(default_factory=dict)
    """Signal name to the column with the production system's own prediction of it."""
    missing_time: Literal["error", "drop"] = "error"
    """What to do with rows that have no time."""

    def __post_init__(self) -> None:
        choices = {
            "time_unit": ("us", "ms", "s", "timestamp"),
            "watch_time_unit": ("ms", "s"),
            "duration_unit": ("ms", "s"),
        }
        for name, allowed in {**choices, "missing_time": ("error", "drop")}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if WATCH_TIME in self.signals:
            raise ValueError("watch_time is not a 0/1 signal: give its column as the map's own watch_time")
        if self.request is not None and self.request_by_time:
            raise ValueError("give either a request column or request_by_time=True, not both")
        if self.watch_time is None and not self.signals:
            raise ValueError("the map names no feedback: give watch_time, or at least one entry in signals")

    def source_columns(self) -> tuple[str, ...]:
        """Every source column that the map names, each once."""
        user = (self.user,) if isinstance(self.user, str) else self.user
        names = [
            *user,
            self.item,
            self.time,
            self.date,
            self.watch_time,
            self.duration,
            self.tab,
            self.session,
        ]
        names += [self.request, self.place, self.propensity, self.candidates, *self.pxtr.values()]
        names += [source.column if isinstance(source, AtLeast) else source for source in self.signals.values()]
        names += [self.is_random] if isinstance(self.is_random, str) else []
        return tuple(dict.fromkeys(name for name in names if name is not None))


KUAIRAND = ColumnMap(
    user="user_id",
    item="video_id",
    time="time_ms",
    date="date",
    watch_time="play_time_ms",
    watch_time_unit="ms",
    duration="duration_ms",
    duration_unit="ms",
    signals={
        "click": "is_click",
        "long_view": "long_view",
        "like": "is_like",
        "follow": "is_follow",
        "comment": "is_comment",
        "forward": "is_forward",
        "hate": "is_hate",
    },
    tab="tab",
    is_random="is_rand",
)
"""KuaiRand logs. ``time_ms`` gives the order and ``date`` the day; ``hourmin`` agrees with neither."""

KUAIREC = ColumnMap(
    user="user_id",
    item="video_id",
    time="timestamp",
    time_unit="s",
    utc_offset_hours=8.0,
    watch_time="play_duration",
    watch_time_unit="ms",
    duration="video_duration",
    duration_unit="ms",
    missing_time="drop",
)
"""KuaiRec matrices: watch time alone. 4 % of the small matrix has no time and is left out."""

RATINGS = ColumnMap(
    user="userId",
    item="movieId",
    time="timestamp",
    time_unit="s",
    signals={"like": AtLeast(column="rating", threshold=4.0)},
)
"""MovieLens-like ratings: 4 stars and more count as a like."""

OPEN_BANDIT = ColumnMap(
    user=("user_feature_0", "user_feature_1", "user_feature_2", "user_feature_3"),
    item="item_id",
    time="timestamp",
    time_unit="timestamp",
    signals={"click": "click"},
    place="position",
    first_place=1,
    propensity="propensity_score",
)
"""Open Bandit: propensities and places. It has no user id, so users with equal features count as one;
no key links the three items of a page. Say ``is_random`` by ``dataclasses.replace``."""

PRESETS = {"kuairand": KUAIRAND, "kuairec": KUAIREC, "ratings": RATINGS, "open_bandit": OPEN_BANDIT}
"""The maps above by name."""


def parse_map(text: str, base: ColumnMap | None = None) -> ColumnMap:
    """Reads a column map from one line, as a command line gives it.

    Args:
        text: ``field=column`` pairs separated by commas. Fields are those of ``ColumnMap``; a signal is
            given by its name, or ``signals.NAME`` when it is not one of the usual ones, as a 0/1 column or
            as ``column>=threshold``; predictions as ``pxtr.NAME``; several user columns joined by ``+``.
        base: a map to start from.

    Raises:
        ValueError: a pair is not understood; the message names the nearest field.

    Example:
        >>> columns = parse_map("user=userId,item=movieId,time=timestamp,time_unit=s,like=rating>=4")
        >>> columns.signals["like"]
        AtLeast(column='rating', threshold=4.0)
    """
    values: dict[str, Any] = {} if base is None else dict(vars(base))
    signals: dict[str, str | AtLeast] = dict(values.pop("signals", {}))
    pxtr: dict[str, str] = dict(values.pop("pxtr", {}))
    fields = {entry.name for entry in dataclasses.fields(ColumnMap)} - {"signals", "pxtr"}
    for pair in filter(None, text.split(",")):
        key, equals, source = pair.strip().partition("=")
        if not equals or not source:
            raise ValueError(f"cannot read {pair!r} in the column map: write field=column, as in user=uid")
        if key in fields:
            values[key] = _field_value(key, source)
        elif key.startswith("signals.") or (key in USUAL_SIGNALS and key != WATCH_TIME):
            signals[key.removeprefix("signals.")] = _signal_source(source)
        elif key.startswith("pxtr."):
            pxtr[key.removeprefix("pxtr.")] = source
        else:
            known = sorted(fields | set(USUAL_SIGNALS))
            raise ValueError(
                f"unknown field {key!r} in the column map{nearest(key, known)}; known are {', '.join(known)}; a "
                f"signal of another name is given as signals.{key}={source}"
            )
    missing = [name for name in ("user", "item", "time") if name not in values]
    if missing:
        raise ValueError(f"the column map lacks {' and '.join(missing)}: add {missing[0]}=COLUMN")
    return ColumnMap(**values, signals=signals, pxtr=pxtr)


def _field_value(key: str, source: str) -> Any:
    if key == "user" and "+" in source:
        return tuple(source.split("+"))
    if key == "request_by_time" or (key == "is_random" and source in ("true", "false")):
        return source == "true"
    if key == "first_place":
        return int(source)
    return float(source) if key == "utc_offset_hours" else source


def _signal_source(source: str) -> str | AtLeast:
    column, reaches, threshold = source.partition(">=")
    return AtLeast(column=column, threshold=float(threshold)) if reaches else source
