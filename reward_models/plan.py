"""What a build of worlds consists of: settings, days and users by role, the worlds to fit, and what stands in the way.

See ``build`` for the roles and why they are kept apart.
"""

import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recsim_env.assumptions import (
    USUAL_CUT,
    SessionCut,
    hazard_per_place,
)
from recsim_env.data import LoggedDataset
from recsim_env.data.splits import split_by_user
from recsim_env.types import WATCH_TIME
from reward_models.declared import (
    PUBLISHED_SHARES,
    can_declare_drop,
)
from reward_models.fidelity.depth import DEPTH_SESSIONS
from reward_models.recommender.encoding import HistoryConfig
from reward_models.recommender.list_evaluator_network import ListEvaluatorConfig
from reward_models.recommender.predictor_fit import PredictorConfig
from reward_models.recommender.retrieval import RetrievalConfig
from reward_models.trainer import TrainConfig
from reward_models.users.fitting import ResponseFitConfig
from reward_models.users.response_core import ResponseConfig

JUDGE_FAMILIES = (
    ResponseConfig(memory="gated", width=48, event_width=24, trait_rows=(10.0,), decays=(0.8,)),
    ResponseConfig(memory="decayed", width=96, event_width=32, trait_rows=(15.0,), decays=(0.9,)),
)
"""Model families of the judges; world A has the default one."""

SHORT_FIT = ResponseFitConfig(calibration_folds=2, train=TrainConfig(max_epochs=4, learning_rate_decay=0.6))
"""Half the time of the default fit, for runs that build many worlds."""

DEV_SHARE = 1 / 3
"""Share of the judges' users that ``judge-dev`` is fitted on."""

_Codes = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How worlds are built."""

    shares: tuple[float, float, float] = (0.45, 0.45, 0.1)
    """Shares of users for world A, for the judges and for choosing."""
    test_days: int = 4
    """Last days of the log, on which worlds are judged and from which sessions begin."""
    stopping_days: int = 2
    """Days before these, on which training stops early; 0 trains for the fit's ``max_epochs``, in 2/3 of the time."""
    judges: int = 2
    """Final judge worlds, ``judge-final-1`` and on: for the tables that are published, not to develop on."""
    judge_dev: bool = True
    """Also a judge world to develop on, of users that no final judge has seen."""
    jobs: int = field(default_factory=lambda: min((os.cpu_count() or 1) + 1, 3))
    """Worlds fitted side by side, each in a process of one thread, one more than there are cores so that none is
    idle while the last world is fitted; it changes nothing but the time taken."""
    seed: int = 0
    """Seed of world A; judges and the recommender's models derive theirs from it."""
    list_effect: float = 0.3
    """Declared chance that a repeated tag is skipped, for logs without slates; 0 declares none."""
    uniform_drop: float | None = None
    """Declared, for logs without rows of uniform exposure: share of the published drop of uniform slates, 0 for none,
    1 for all of it, which is usual; see ``reward_models.declared``. A log with such rows teaches the drop."""
    session_cut: SessionCut = USUAL_CUT
    """Declared: how long a pause ends a session, and with it how long sessions are (``SESSION_REQUESTS``); those of
    "2h" reach the environment's usual end of 50 requests one time in six."""
    depth_sessions: int = DEPTH_SESSIONS
    """Sessions of each ranking that the card's depth is measured on; 0 leaves it to ``experiments.fidelity``."""
    fit: ResponseFitConfig = field(default_factory=ResponseFitConfig)
    """How responses are fitted."""
    history: HistoryConfig = field(default_factory=HistoryConfig)
    """What the recommender remembers of a user."""
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    """The recommender's predictor."""
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    """The recommender's candidate source."""
    evaluator: ListEvaluatorConfig = field(default_factory=ListEvaluatorConfig)
    """The recommender's list evaluator."""

    def __post_init__(self) -> None:
        if self.judges < 1 or self.test_days < 1 or self.stopping_days < 0:
            raise ValueError(
                "need at least one judge and test day, and no negative number of stopping days, got "
                f"{self.judges}, {self.test_days} and {self.stopping_days}"
            )
        if not 0.0 <= (self.uniform_drop or 0.0) <= 1.0:
            raise ValueError(f"uniform_drop is a share, from 0 (none) to 1 (all of it), got {self.uniform_drop}")
        if self.depth_sessions < 0 or self.depth_sessions == 1:
            raise ValueError(f"depth_sessions must be 0, or at least 2 for an interval, got {self.depth_sessions}")
        hazard_per_place(self.session_cut)  # refuses a cut that is not known


@dataclass(frozen=True)
class Days:
    """Days of a log by role, YYYYMMDD."""

    fit_until: int
    """Last day of the final fit; early stopping uses the last days up to it."""
    stopping: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One world to fit."""

    name: str
    part: str
    """Which part of the users it is fitted on, see ``users_of``."""
    seed: int
    family: ResponseConfig | None
    """Model family; ``None`` takes that of ``BuildConfig.fit``."""


def days_of(dataset: LoggedDataset, config: BuildConfig) -> Days:
    """Splits a log's days by role.

    Raises:
        ValueError: the log has too few days.
    """
    dates = [int(d) for d in np.unique(dataset.rows["date"].to_numpy())]
    needed = config.test_days + config.stopping_days + 1
    if len(dates) < needed:
        raise ValueError(
            f"the log {dataset.name!r} has {len(dates)} days; {config.test_days} test days and "
            f"{config.stopping_days} stopping days need at least {needed}"
        )
    test = tuple(dates[-config.test_days :])
    before = dates[: -config.test_days]
    return Days(before[-1], tuple(before[len(before) - config.stopping_days :]), test)


def users_of(dataset: LoggedDataset, config: BuildConfig) -> dict[str, _Codes]:
    """Codes of the users of each part: ``A``, ``judge-dev`` (where asked for), ``judge-final`` and ``choosing``.

    Raises:
        ValueError: the log has too few users to give every part one.
    """
    parts = split_by_user(dataset, dict(zip(("A", "judges", "choosing"), config.shares, strict=True)), salt="worlds")
    judges = parts.pop("judges")
    if not config.judge_dev:
        return {**parts, "judge-final": judges}
    # Another salt, or the cut would follow the first one and take the judges' lower third by the same hash.
    halves = split_by_user(dataset, {"judge-dev": DEV_SHARE, "judge-final": 1.0 - DEV_SHARE}, salt="judges")
    parts |= {name: np.intersect1d(codes, judges) for name, codes in halves.items()}
    for name, codes in parts.items():
        if not len(codes):
            raise ValueError(
                f"none of {len(dataset.users)} users falls into {name!r}: take a log of more users, or judge_dev=False"
            )
    return parts


def obstacles(dataset: LoggedDataset, config: BuildConfig | None = None) -> list[str]:
    """Says in words why worlds cannot be built from a log, before hours are spent on it; empty where they can."""
    config = config or BuildConfig()
    if dataset.signals[0] != WATCH_TIME:
        return ["no row says how long a video was watched, and watch time is what users and predictor are fitted to"]
    try:
        days, users = days_of(dataset, config), users_of(dataset, config)
    except ValueError as error:
        return [str(error)]
    user_R, date_R = dataset.rows["user"].to_numpy(), dataset.rows["date"].to_numpy()
    if config.uniform_drop is not None and not can_declare_drop(dataset):
        return [
            "uniform_drop declares what rows of uniform exposure teach: this log has such rows, or none of the signals "
            f"{', '.join(PUBLISHED_SHARES)} that a drop was published for; leave it out"
        ]
    is_test_R, is_stopping_R = np.isin(date_R, days.test), np.isin(date_R, days.stopping)
    needs = {name: {"on the test days": is_test_R} for name in users if name != "choosing"}
    for name, rows in needs.items():
        rows["before the stopping days" if days.stopping else "before the test days"] = ~is_test_R & ~is_stopping_R
        if len(np.unique(user_R[np.isin(user_R, users[name]) & ~is_test_R])) < 2:
            rows["of two users or more before the test days"] = np.zeros(len(user_R), bool)
    if days.stopping:
        needs["choosing"] = {"on the stopping days": is_stopping_R}
    return [
        f"users of {name!r} have no rows {when}: take a log of more users or days, or other shares and days"
        for name, rows in needs.items()
        for when, is_there_R in rows.items()
        if not (np.isin(user_R, users[name]) & is_there_R).any()
    ]


def plans_of(config: BuildConfig) -> list[Plan]:
    """The worlds of a build, each judge with a seed of its own and the families in turn."""
    plans = [Plan(name="A", part="A", seed=config.seed, family=None)]
    if config.judge_dev:
        # Not the first family: what is developed on judge-dev should meet something new in the first final judge.
        plans.append(Plan(name="judge-dev", part="judge-dev", seed=config.seed + 500, family=JUDGE_FAMILIES[-1]))
    for number in range(config.judges):
        family = JUDGE_FAMILIES[number % len(JUDGE_FAMILIES)]
        name, seed = f"judge-final-{number + 1}", config.seed + number + 1
        plans.append(Plan(name=name, part="judge-final", seed=seed, family=family))
    return plans
