"""Draws a log from a known world, as an operator would have collected it.

Users come back over days, with their own activity and at the world's hours. A logging policy that sees what
the log will not hold (the true chance of a click, up to an error of its own) ranks each request's candidates
by Plackett and Luce's law, so the propensity of every place is known exactly. A chosen share of requests
shows uniform videos of the whole catalogue instead. The result holds plain arrays and no part of the world.

Shape legend: B sessions, C candidates, K places, F signals, N items, U users, P impressions.
"""

import dataclasses
import datetime
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from recsim_env.data.histories import Histories
from recsim_env.data.schema import LoggedDataset
from recsim_env.randomness import address, uniform
from recsim_env.simulator import SessionState, Simulator
from recsim_env.types import WATCH_TIME, ContextSource, Decision, Feedback
from recsim_env.world import World

UTC_OFFSET_HOURS = 8
"""Local time minus UTC in a KuaiRand log."""

_DAY_S = 86_400
_ACTIVITY = "log_activity"
_ACTIVITY_SPREAD = 0.94
_COPIES = 4  # of a user of average activity, in the list that sessions are drawn from
_ACTIVE_DEGREES = ("low_active", "middle_active", "high_active", "full_active")
_REMEMBERED = 250  # impressions of a user that candidates leave out
_LEVELS = 6
_LOGISTIC = 3**0.5 / torch.pi  # scale of a logistic law of spread 1
_MAX_SESSIONS = 1_000_000
_MAX_REQUESTS = 1_000


@dataclass(frozen=True, kw_only=True)
class LoggingPolicy:
    """The ranker that produced the log."""

    signal: str = "click"
    """It ranks by the log-odds of this signal's true chance, for each video shown alone."""
    error: float = 0.55
    """Spread of its own error for each pair of user and video, in log-odds."""
    temperature: float = 0.45
    """Spread of its exploration: log-odds are divided by it before the softmax."""
    uniform_share: float = 0.0
    """Share of requests answered with uniform videos of the whole catalogue."""

    def __post_init__(self) -> None:
        if not self.error >= 0 or not self.temperature > 0:
            raise ValueError(f"need error >= 0 and temperature > 0, got {self.error} and {self.temperature}")
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"uniform_share must lie in 0..1, got {self.uniform_share}")


def synthetic_log(
    world: World,
    *,
    num_sessions: int = 5000,
    policy: LoggingPolicy | None = None,
    days: int = 14,
    first_date: int = 2022_04_25,
    num_candidates: int = 50,
    slate_size: int = 6,
    max_requests: int = 50,
    keep_candidates: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> LoggedDataset:
    """Plays the logging policy in a known world and writes down what a log would hold.

    Args:
        world: the world; its ``log_activity`` user feature, if any, decides who comes more often.
        num_sessions: sessions, spread evenly over the days; a user begins at most one a day.
        policy: the logging policy.
        days: number of days.
        first_date: YYYYMMDD of the first day.
        num_candidates: C, videos that the logging policy chooses from.
        slate_size: K.
        max_requests: requests after which a session is cut.
        keep_candidates: also log what every request's candidates were; only uniform slates go beyond them.
        seed: seed of everything drawn.
        progress: show a bar with speed and time left.

    Returns:
        A checked log with sessions, requests, places and propensities. ``propensity`` is the chance of the
        video at its place, given the places before it and whether the request was a uniform one.

    Raises:
        ValueError: the world lacks the policy's signal, or has too few users for so many sessions.

    Example:
        >>> from recsim_env.known_worlds import short_video_world
        >>> log = synthetic_log(short_video_world(num_users=50, num_items=100), num_sessions=20, days=2)
        >>> bool((log.rows["propensity"] > 0).all())
        True
    """
    policy = policy or LoggingPolicy()
    _check(world, policy, num_sessions, days)
    generator = torch.Generator().manual_seed(seed)
    playing = world.replace(population_P=_by_activity(world))
    sizes = {"num_candidates": num_candidates, "slate_size": slate_size, "max_requests": max_requests}
    log = []
    for day in tqdm(range(days), desc="drawing the log", unit="day", disable=None if progress else True):
        sessions = num_sessions * (day + 1) // days - num_sessions * day // days  # spread evenly
        if not sessions:
            continue
        date = datetime.datetime.strptime(str(first_date), "%Y%m%d").date() + datetime.timedelta(days=day)
        today = playing.replace(contexts=_OneDay(world.contexts, date.weekday()))
        simulator = Simulator(today, history_length=_REMEMBERED, **sizes)  # type: ignore[arg-type]
        state = _start(simulator, sessions, int(address(torch.tensor([seed]), day)))
        rows = _play(simulator, state, _Ranker(simulator, policy, seed, generator), keep_candidates)
        log.append(_dated(rows, date, day))
        playing = _remembering(playing, rows)
    return _dataset(world, pd.concat(log, ignore_index=True))


def _check(world: World, policy: LoggingPolicy, num_sessions: int, days: int) -> None:
    if policy.signal not in world.signals:
        raise ValueError(f"the logging policy's signal {policy.signal!r} is not among {world.signals}")
    if num_sessions < 1 or days < 1:
        raise ValueError(f"need at least 1 session and 1 day, got {num_sessions} and {days}")
    needed = 2 * -(-num_sessions // days)  # so that different users are found quickly every day
    if needed > len(world.population_P):
        raise ValueError(
            f"{num_sessions} sessions in {days} days need at least {needed} users, the world has "
            f"{len(world.population_P)}: ask for fewer sessions, more days or a larger world"
        )


class _OneDay:
    """Sessions at the world's hours, all on one weekday."""

    def __init__(self, contexts: ContextSource, weekday: int):
        self._contexts, self._weekday = contexts, weekday

    def start(self, uniform_B2: Tensor) -> tuple[Tensor, Tensor]:
        tab_B, clock_B = self._contexts.start(uniform_B2)
        return tab_B, clock_B % _DAY_S + self._weekday * _DAY_S


class _Choice(NamedTuple):
    """What the logging policy shows."""

    items_BK: Tensor
    propensity_BK: Tensor
    is_uniform_B: Tensor


class _Ranker:
    """The logging policy at work."""

    def __init__(self, simulator: Simulator, policy: LoggingPolicy, seed: int, generator: torch.Generator):
        self._simulator, self._policy = simulator, policy
        self._generator = generator
        self._seed = seed
        self._signal = simulator.world.signals.index(policy.signal)

    def __call__(self, state: SessionState) -> "_Choice":
        """Slates for the current requests."""
        slate_size, num_items = self._simulator.slate_size, len(self._simulator.world.catalogue)
        ranked = plackett_luce(state.request.candidates_BC, self._logit(state), slate_size, self._generator)
        assert ranked.log_prob_BK is not None
        propensity_BK = ranked.log_prob_BK.exp()
        is_uniform_B = self._draws(state.num_sessions) < self._policy.uniform_share
        rows = is_uniform_B.nonzero().squeeze(1)
        if not len(rows):
            return _Choice(ranked.items_BK, propensity_BK, is_uniform_B)
        uniform_BK = self._draws(len(rows), num_items).topk(slate_size, dim=1).indices
        chance_BK = (1.0 / (num_items - torch.arange(slate_size))).expand(len(rows), -1)
        return _Choice(
            ranked.items_BK.index_copy(0, rows, uniform_BK),
            propensity_BK.index_copy(0, rows, chance_BK),
            is_uniform_B,
        )

    def _logit(self, state: SessionState) -> Tensor:
        """What it ranks by (B, C): true log-odds and its own lasting error, over the temperature."""
        request, policy = state.request, self._policy
        expected = self._simulator.expected(state, request.candidates_BC.unsqueeze(-1))
        chance_BC = expected.signals_BGKF[:, :, 0, self._signal]
        chance_BC = chance_BC.clamp(1e-6, 1 - 1e-6)
        key_B1 = address(request.user_B, self._seed).unsqueeze(1)
        draw_BC = uniform(address(key_B1, request.candidates_BC))
        error_BC = policy.error * _LOGISTIC * torch.log(draw_BC / (1 - draw_BC))
        logit_BC = torch.log(chance_BC / (1 - chance_BC)) + error_BC
        return logit_BC / policy.temperature

    def _draws(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator)


def plackett_luce(items_BC: Tensor, logit_BC: Tensor, slate_size: int, generator: torch.Generator) -> Decision:
    """Draws slates place by place, each by a softmax over the candidates that are left.

    Args:
        items_BC: int64 candidates.
        logit_BC: their logits.
        slate_size: K.
        generator: source of the draws.

    Returns:
        Items (B, K) and the log-probability of each place given the places before it.
    """
    draws_BC = torch.rand(logit_BC.shape, generator=generator).clamp(1e-9, 1 - 1e-7)
    order_BC = (logit_BC - torch.log(-torch.log(draws_BC))).argsort(dim=1, descending=True)
    ordered_BC = logit_BC.gather(1, order_BC)
    left_BC = ordered_BC.flip(1).logcumsumexp(dim=1).flip(1)
    items_BK = items_BC.gather(1, order_BC[:, :slate_size])
    return Decision(items_BK, (ordered_BC - left_BC)[:, :slate_size])


def _by_activity(world: World) -> Tensor:
    """The population with every user repeated in proportion to activity, where that is known."""
    if _ACTIVITY not in world.users.feature_names:
        return world.population_P
    column = world.users.feature_names.index(_ACTIVITY)
    activity_P = world.users.features_UD[world.population_P, column]
    copies_P = (_COPIES * torch.exp(_ACTIVITY_SPREAD * activity_P)).round().long().clamp(min=1)
    return world.population_P.repeat_interleave(copies_P)


def _start(simulator: Simulator, num_sessions: int, seed: int) -> SessionState:
    """The first sessions of as many different users."""
    draws = 2 * num_sessions
    while True:
        state = simulator.start(draws, seed)
        users, first = np.unique(state.request.user_B.numpy(), return_index=True)
        if len(users) >= num_sessions:
            return state.select(torch.from_numpy(np.sort(first)[:num_sessions]))
        draws *= 2


def _play(simulator: Simulator, state: SessionState, ranker: _Ranker, keep_candidates: bool) -> pd.DataFrame:
    """Plays sessions to their end. One row for each place that was reached, in the order of play."""
    session_B = torch.arange(state.num_sessions)
    parts = []
    for _ in range(simulator.max_requests):
        choice = ranker(state)
        after, feedback = simulator.step(state, choice.items_BK)
        rows = _impressions(state, session_B, choice, feedback, simulator.world.signals)
        if keep_candidates:
            lists = list(state.request.candidates_BC.numpy().astype(np.int32))
            rows["candidates"] = [lists[row] for row in feedback.seen_BK.nonzero()[:, 0].tolist()]
        parts.append(rows)
        going_on_B = ~feedback.left_B
        state, session_B = after.select(going_on_B), session_B[going_on_B]
        if not len(session_B):
            break
    return pd.concat(parts, ignore_index=True)


def _impressions(
    state: SessionState, session_B: Tensor, choice: _Choice, feedback: Feedback, signals: tuple[str, ...]
) -> pd.DataFrame:
    """Rows of one request of each session."""
    seen_BK = feedback.seen_BK
    row_P, place_P = seen_BK.nonzero(as_tuple=True)
    request_B = session_B * _MAX_REQUESTS + state.request_index_B
    return pd.DataFrame(
        {
            "user": state.request.user_B[row_P].to(torch.int32).numpy(),
            "item": choice.items_BK[seen_BK].to(torch.int32).numpy(),
            "seconds": state.clock_s_B[row_P].numpy(),
            "tab": state.request.context_BX[row_P, 0].to(torch.int8).numpy(),
            "session": session_B[row_P].numpy(),
            "request": request_B[row_P].numpy(),
            "place": place_P.to(torch.int8).numpy(),
            "propensity": choice.propensity_BK[seen_BK].numpy(),
            "is_random": choice.is_uniform_B[row_P].numpy(),
            **dict(zip(signals, feedback.signals_BKF[seen_BK].T.numpy(), strict=True)),
        }
    )


def _dated(rows: pd.DataFrame, date: datetime.date, day: int) -> pd.DataFrame:
    """Rows with calendar times and with session keys that no other day has."""
    midnight_ms = (date - datetime.date(1970, 1, 1)).days * _DAY_S * 1000
    local_ms = midnight_ms + ((rows["seconds"] - date.weekday() * _DAY_S) * 1000).round().astype(np.int64)
    local_day = local_ms // (_DAY_S * 1000)
    dates = {
        number: int((datetime.date(1970, 1, 1) + datetime.timedelta(days=int(number))).strftime("%Y%m%d"))
        for number in local_day.unique()
    }
    first = day * _MAX_SESSIONS
    return rows.assign(
        time_ms=local_ms - UTC_OFFSET_HOURS * 3_600_000,
        date=local_day.map(dates).astype(np.int32),
        session=rows["session"] + first,
        request=rows["request"] + first * _MAX_REQUESTS,
    ).drop(columns="seconds")


def _remembering(world: World, rows: pd.DataFrame) -> World:
    """The world with a day's impressions at the end of its histories, cut to the latest ``_REMEMBERED``."""
    histories = world.users.histories
    num_users = len(histories.start_U1) - 1
    old_user_P = np.repeat(np.arange(num_users), histories.start_U1.diff().numpy())
    user_P = np.concatenate([old_user_P, rows["user"].to_numpy()])
    order_P = np.argsort(user_P, kind="stable")
    count_U = np.bincount(user_P, minlength=num_users)
    end_U = np.cumsum(count_U)
    age_P = end_U[user_P[order_P]] - np.arange(len(order_P))
    kept_P = torch.from_numpy(order_P[age_P <= _REMEMBERED])
    feedback_PF = torch.tensor(rows[list(world.signals)].to_numpy(np.float32))
    known_PF = torch.ones_like(feedback_PF, dtype=torch.bool)
    item_P = torch.from_numpy(rows["item"].to_numpy(np.int64))
    kept_U = np.minimum(count_U, _REMEMBERED)
    extended = Histories(
        start_U1=torch.from_numpy(np.concatenate([[0], np.cumsum(kept_U)])),
        item_P=torch.cat([histories.item_P, item_P])[kept_P],
        feedback_PF=torch.cat([histories.feedback_PF, feedback_PF])[kept_P],
        known_PF=torch.cat([histories.known_PF, known_PF])[kept_P],
    )
    return world.replace(users=dataclasses.replace(world.users, histories=extended))


def _dataset(world: World, rows: pd.DataFrame) -> LoggedDataset:
    """The log with its tables, in canonical form."""
    rows = rows.sort_values(["user", "time_ms", "place"], kind="stable", ignore_index=True)
    duration_N = world.catalogue.duration_N.numpy()
    rows["duration"] = _to_ms(duration_N)[rows["item"]]
    rows[WATCH_TIME] = _to_ms(rows[WATCH_TIME].to_numpy())
    flags = [name for name in world.signals if name != WATCH_TIME]
    rows = rows.astype(dict.fromkeys(flags, np.int8))
    past = world.users.histories
    counts_U = past.start_U1.diff().numpy()
    user_P = np.repeat(np.arange(len(counts_U)), counts_U)
    history = pd.DataFrame(
        {
            "user": user_P.astype(np.int32),
            "item": past.item_P.numpy().astype(np.int32),
            "position": (np.arange(len(user_P)) - past.start_U1.numpy()[user_P]).astype(np.int32),
            **dict(zip(world.signals, past.feedback_PF.numpy().T, strict=True)),
        }
    ).astype(dict.fromkeys(flags, np.int8))
    tag_N = world.catalogue.tag_N.numpy()
    items = pd.DataFrame(
        {
            "item_id": world.catalogue.ids,
            "duration": _to_ms(duration_N),
            "author": np.arange(len(tag_N)) * 6 // 7,  # as many authors to a video as in KuaiRand-Pure
            "tags": [[int(tag)] if tag >= 0 else [] for tag in tag_N],
        }
    )
    return LoggedDataset(
        name=f"synthetic_{world.name}",
        rows=rows,
        users=_user_table(world),
        items=items,
        signals=world.signals,
        history=history if len(history) else None,
    )


def _user_table(world: World) -> pd.DataFrame:
    """What is known of users, in coarse levels as in KuaiRand: ``onehot_feat<i>`` for feature i."""
    users = pd.DataFrame({"user_id": world.users.ids})
    for column, name in enumerate(world.users.feature_names):
        values_U = world.users.features_UD[:, column].numpy()
        edges = np.quantile(values_U, np.arange(1, _LEVELS) / _LEVELS)
        users[f"onehot_feat{column}"] = np.searchsorted(edges, values_U)
        if name == _ACTIVITY:
            quarter_U = np.searchsorted(np.quantile(values_U, (0.25, 0.5, 0.75)), values_U)
            users["user_active_degree"] = np.array(_ACTIVE_DEGREES)[quarter_U]
    return users


def _to_ms(seconds: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Seconds as a log holds them: whole milliseconds."""
    return (np.round(seconds.astype(np.float64) * 1000) / 1000).astype(np.float32)
