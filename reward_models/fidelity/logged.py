"""What a response model emits on held-out rows of a log, beside what the log holds of them.

``replay`` plays held-out requests in the order of time, and asks each row of four users:

- one whose state follows the log: rates, AUC, calibration, watch times, joint signals;
- one frozen as the test days began: within-user AUC. A state that follows the user's own few rows biases it far below
  its value, because one click early on makes every later score of that user high;
- one whose state follows what it drew itself, as in a simulation: how users differ. A state that follows the log
  cannot tell: its expectations are what is known of a user so far, and these differ less than users do;
A model that answers the log's own slates otherwise than anybody else's (``TellsLogged``) is asked about them as such.

``logged_fidelity`` makes figures of these rows.

Shape legend: B requests, K places, F signals, R rows, L quantile levels, U users, S state, X context, J draws.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsim_env.data.requests import LoggedBatch, LoggedRequests
from recsim_env.randomness import address, uniform
from recsim_env.types import CONTEXT, WATCH_TIME, Outcomes, ResponseModel
from reward_models.calibration import expected_calibration_error
from reward_models.fidelity.groups import VideoFacts, groupings, ratio_and_error
from reward_models.fidelity.variance import shares
from reward_models.metrics import auc, grouped_auc

Array = NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Levels of the watch time whose coverage is measured."""
FLOOR_DRAWS = 30
"""Sets of labels that a perfect model's calibration error is measured on."""

_TAB = CONTEXT.index("tab")
_NOTHING_S = 1e-6  # watch times below are no seconds


@runtime_checkable
class TellsQuantiles(Protocol):
    """A response model that knows the quantiles of its watch times."""

    def watch_time_quantiles(self, probability_BKO: Tensor, items_BK: Tensor, level_L: Tensor) -> Tensor:
        """Seconds (B, K, L), from the probabilities of ``outcomes``."""
        ...


@runtime_checkable
class TellsLogged(Protocol):
    """A response model that answers the slates of a log otherwise than those of another ranker."""

    def as_logged(self, uniform: bool = False) -> ResponseModel:
        """The same users before slates of the log's ranker, or before those that the log filled by chance."""
        ...


class Replayed(NamedTuple):
    """Held-out rows and what the model says of them."""

    user_R: Array
    item_R: Array
    tab_R: Array
    past_R: Array
    """Rows of the user that the log holds before this one."""
    before_R: Array
    """Showings of the user that the log holds before the held-out days, those of unknown watch time among them."""
    uniform_R: Array
    """1 for rows of uniform exposure."""
    log_RF: Array
    known_RF: Array
    """1 where the log has the signal."""
    mean_RF: Array
    """Expected signals; the user's state follows the log."""
    frozen_RF: Array
    """The same of users as they were when the held-out days began."""
    draw_RF: Array
    """One draw each."""
    acted_RF: Array
    """One draw each; the user's state follows these draws."""
    zero_R: Array
    """Chance of no watch time at all."""
    level_RL: Array
    """Seconds at ``LEVELS``, NaN where the model does not tell."""

    def only(self, is_kept_R: NDArray[np.bool_]) -> "Replayed":
        """Some of the rows."""
        return Replayed(*(column[is_kept_R] for column in self))


def logged_fidelity(
    response: ResponseModel,
    requests: LoggedRequests,
    *,
    videos: VideoFacts | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares a response model with held-out impressions.

    Args:
        response: the model.
        requests: held-out requests, see ``logged_requests``.
        videos: durations and exposures, for the groups by them.
        seed: of everything that is drawn.

    Returns:
        - ``rows``, ``users``;
        - ``signals``: of each binary signal ``positives``, ``logged_rate``, ``emitted_rate``, their ``ratio`` and its
          standard error over users (``ratio_error``), ``auc``, ``gauc`` (None where one class is missing), ``ece``,
          and the median and spread of a perfect model's (``ece_floor``, ``ece_spread``);
        - ``watch_time``: means and quantiles in seconds, logged and drawn, and ``ratio``, ``ratio_error`` of what is
          expected over what was logged;
        - ``phi``: correlation of each pair of binary signals, logged and drawn;
        - ``uniform``: the same of the rows of uniform exposure alone, where there are any;
        - ``groups``: by name of a grouping, a list of groups: ``group``, ``rows``, and by signal ``positives`` (of
          watch time: mean seconds), ``ratio``, ``ratio_error``;
        - ``coverage``: share of the logged watch times below the model's own quantile at ``levels``: ``overall``,
          ``rows``, and ``by_duration``; None where the model does not tell;
        - ``variance``: see ``variance.shares``.

    Raises:
        ValueError: the log has other signals than the model.
    """
    rows = replay(response, requests, seed=seed)
    groups = groupings(rows.item_R, rows.tab_R, rows.before_R, rows.past_R, videos)
    figures = _figures(response.signals, rows, seed)
    if rows.uniform_R.any():
        figures["uniform"] = _figures(response.signals, rows.only(rows.uniform_R > 0), seed)
    figures["groups"] = {
        name: [_group(label, rows.only(code_R == code), response.signals) for code, label in enumerate(labels)
               if (code_R == code).any()]
        for name, (labels, code_R) in groups.items()
    }  # fmt: skip
    figures["coverage"] = _coverage(rows, groups.get("duration"))
    figures["variance"] = {
        name: shares(
            rows.log_RF[known_R, signal], rows.acted_RF[known_R, signal], rows.user_R[known_R], rows.item_R[known_R]
        )
        for signal, name in enumerate(response.signals)
        if (known_R := rows.known_RF[:, signal] > 0).any()
    }
    return figures


@torch.no_grad()
def replay(response: ResponseModel, requests: LoggedRequests, *, seed: int = 0) -> Replayed:
    """Asks a model about held-out rows; see ``logged_fidelity`` for arguments and errors."""
    if tuple(response.signals) != tuple(requests.signals):
        raise ValueError(
            f"the log has the signals {', '.join(requests.signals)}, the users {', '.join(response.signals)}: only the "
            "same can be compared; give the log that the world was built from, or one of the same signals"
        )
    # Made once: a model may build its tables anew for each.
    of_ranker, of_chance = (
        (response.as_logged(), response.as_logged(uniform=True))
        if isinstance(response, TellsLogged)
        else (response, response)
    )
    start_US = response.start(torch.arange(int(requests.user_L.max()) + 1))
    state_US, acted_US = start_US.clone(), start_US.clone()
    watched_E = torch.cat([torch.zeros(1, dtype=torch.int64), requests.event_known_EF[:, 0].cumsum(0)])
    before_U = torch.full((len(start_US),), len(watched_E), dtype=torch.int64).scatter_reduce(
        0, requests.user_L, requests.history_end_L - requests.history_begin_L, "amin"
    )
    parts: list[tuple[Tensor, ...]] = []
    for number, (index_B, batch) in enumerate(_in_order(requests)):
        user_B, context_BX, items_BK = batch.request.user_B, batch.request.context_BX, batch.items_BK
        draw_BKJ = uniform(address(user_B, seed, number), items_BK.shape[1], response.num_draws)
        states = (state_US[user_B], start_US[user_B], acted_US[user_B])

        def ask(
            model: ResponseModel, states: tuple[Tensor, ...] = states, batch: LoggedBatch = batch, d: Tensor = draw_BKJ
        ) -> tuple[Tensor, ...]:
            return _answers(model, states, batch, d)

        *answers, state_US[user_B], acted_US[user_B] = _of_whom_it_was(ask, of_ranker, of_chance, batch.uniform_B)
        past_B = watched_E[requests.history_end_L[index_B]] - watched_E[requests.history_begin_L[index_B]]
        of_request = (user_B, context_BX[:, _TAB], past_B, before_U[user_B], batch.uniform_B)
        user_BK, tab_BK, *others = (column_B.unsqueeze(1).expand_as(items_BK) for column_B in of_request)
        row = (user_BK, items_BK, tab_BK, *others, batch.feedback.signals_BKF, batch.known_BKF, *answers)
        # A row of which nothing is known, as of a video that the session showed before, has nothing to compare with.
        known_BK = batch.known_BKF.any(2)
        parts.append(tuple(part[known_BK] for part in row))
    return Replayed(*(torch.cat(column).double().numpy() for column in zip(*parts, strict=True)))


def _of_whom_it_was(
    ask: Callable[[ResponseModel], tuple[Tensor, ...]],
    of_ranker: ResponseModel,
    of_chance: ResponseModel,
    uniform_B: Tensor,
) -> tuple[Tensor, ...]:
    """What users answer to videos that chance chose, and, where they answer otherwise, to those that a ranker did."""
    if of_chance is of_ranker or not bool(uniform_B.any()):
        return ask(of_ranker)
    if bool(uniform_B.all()):
        return ask(of_chance)
    return tuple(
        torch.where(uniform_B.view(-1, *[1] * (one.dim() - 1)), one, other)
        for one, other in zip(ask(of_chance), ask(of_ranker), strict=True)
    )


def _answers(
    model: ResponseModel, states: tuple[Tensor, ...], batch: LoggedBatch, draw_BKJ: Tensor
) -> tuple[Tensor, ...]:
    """Columns ``mean_RF`` and on of ``Replayed``, as (B, K, ...), and the two states after the slate."""
    state_BS, start_BS, acted_BS = states
    context_BX, items_BK = batch.request.context_BX, batch.items_BK
    seen_BK = batch.known_BKF.any(2)  # a place of which nothing is known tells nobody anything
    outcomes = model.outcomes(state_BS, context_BX, items_BK)
    drawn_BKF = model.respond(acted_BS, context_BX, items_BK, draw_BKJ)
    if isinstance(model, TellsQuantiles):
        level_BKL = model.watch_time_quantiles(outcomes.probability_BKO, items_BK, torch.tensor(LEVELS))
    else:
        level_BKL = torch.full((*items_BK.shape, len(LEVELS)), torch.nan)
    return (
        expected_signals(outcomes),
        expected_signals(model.outcomes(start_BS, context_BX, items_BK)),
        model.respond(state_BS, context_BX, items_BK, draw_BKJ),
        drawn_BKF,
        (outcomes.probability_BKO * (outcomes.signals_BKOF[..., 0] < _NOTHING_S)).sum(-1),
        level_BKL,
        model.observe(state_BS, context_BX, items_BK, batch.feedback.signals_BKF, seen_BK),
        model.observe(acted_BS, context_BX, items_BK, drawn_BKF, seen_BK),
    )


def expected_signals(outcomes: Outcomes) -> Tensor:
    """Expected signals (B, K, F) of a quadrature."""
    return (outcomes.signals_BKOF * outcomes.probability_BKO.unsqueeze(-1)).sum(2)


def _in_order(requests: LoggedRequests) -> Iterator[tuple[Tensor, LoggedBatch]]:
    """Batches that hold each user at most once, every user's requests in the order of time; with their indices."""
    order_L = torch.argsort(requests.user_L, stable=True)
    sorted_L = requests.user_L[order_L]
    first_L = torch.searchsorted(sorted_L, sorted_L)
    turn_L = torch.empty_like(order_L).index_put_((order_L,), torch.arange(len(order_L)) - first_L)
    for turn in range(int(turn_L.max()) + 1):
        for index_B in requests.batch_indices(2048, among=(turn_L == turn).nonzero().squeeze(1)):
            yield index_B, requests.batch(index_B)


def _figures(names: tuple[str, ...], rows: Replayed, seed: int) -> dict[str, Any]:
    known_RF = rows.known_RF > 0
    signals = {}
    for index, name in enumerate(names[1:], start=1):
        known_R = known_RF[:, index]
        mean_R, frozen_R, log_R = (
            column_RF[known_R, index] for column_RF in (rows.mean_RF, rows.frozen_RF, rows.log_RF)
        )
        signals[name] = _signal(mean_R, frozen_R, log_R, rows.user_R[known_R], seed)
    return {
        "rows": len(rows.log_RF),
        "users": len(np.unique(rows.user_R)),
        "signals": signals,
        "watch_time": _watch_time(rows.only(known_RF[:, 0])),
        "phi": _phi(rows.draw_RF[:, 1:], rows.log_RF[:, 1:], names[1:]),
    }


def _signal(probability_R: Array, frozen_R: Array, label_R: Array, user_R: Array, seed: int) -> dict[str, Any]:
    if not len(label_R):
        return {"positives": 0, "logged_rate": None, "emitted_rate": None, "ratio": None, "ratio_error": None,
                "auc": None, "gauc": None, "ece": None, "ece_floor": None, "ece_spread": None}  # fmt: skip
    both = 0 < label_R.sum() < len(label_R)
    ratio, error = ratio_and_error(probability_R, label_R, user_R)
    floor, spread = ece_floor(probability_R, seed=seed)
    return {
        "positives": int(label_R.sum()),
        "logged_rate": float(label_R.mean()),
        "emitted_rate": float(probability_R.mean()),
        "ratio": ratio,
        "ratio_error": error,
        "auc": float(auc(probability_R, label_R)) if both else None,
        "gauc": _finite(grouped_auc(frozen_R, label_R, user_R)) if both else None,
        "ece": float(expected_calibration_error(probability_R, label_R)),
        "ece_floor": floor,
        "ece_spread": spread,
    }


def ece_floor(probability_R: Array, *, draws: int = FLOOR_DRAWS, seed: int = 0) -> tuple[float, float]:
    """Calibration error of a model that is right: median and standard deviation over labels drawn from it.

    Example:
        >>> floor, spread = ece_floor(np.full(18_000, 0.4))
        >>> round(floor, 3)
        0.013
    """
    generator, sorted_R = np.random.default_rng(seed), np.sort(probability_R)
    errors = [expected_calibration_error(sorted_R, generator.random(len(sorted_R)) < sorted_R) for _ in range(draws)]
    return float(np.median(errors)), float(np.std(errors))


def _watch_time(rows: Replayed) -> dict[str, Any]:
    mean_R, drawn_R, logged_R = rows.mean_RF[:, 0], rows.draw_RF[:, 0], rows.log_RF[:, 0]
    if not len(logged_R):
        return {"logged_mean": None, "emitted_mean": None, "ratio": None, "ratio_error": None}
    ratio, error = ratio_and_error(mean_R, logged_R, rows.user_R)
    return {
        "logged_mean": float(logged_R.mean()),
        "emitted_mean": float(drawn_R.mean()),
        "ratio": ratio,
        "ratio_error": error,
        "levels": list(QUANTILES),
        "logged_quantiles": np.quantile(logged_R, QUANTILES).tolist(),
        "emitted_quantiles": np.quantile(drawn_R, QUANTILES).tolist(),
    }


def _group(label: str, rows: Replayed, names: tuple[str, ...]) -> dict[str, Any]:
    figures: dict[str, Any] = {"group": label, "rows": len(rows.log_RF)}
    for index, name in enumerate(names):
        known_R = rows.known_RF[:, index] > 0
        logged_R = rows.log_RF[known_R, index]
        ratio, error = ratio_and_error(rows.mean_RF[known_R, index], logged_R, rows.user_R[known_R])
        figures[name] = {"ratio": ratio, "ratio_error": error}
        if name == WATCH_TIME:
            figures[name]["mean"] = float(logged_R.mean()) if len(logged_R) else None
        else:
            figures[name]["positives"] = int(logged_R.sum())
    return figures


def _coverage(rows: Replayed, durations: tuple[list[str], NDArray[np.int64]] | None) -> dict[str, Any] | None:
    """Shares of logged watch times below the model's quantiles.

    Where nothing was watched and the model gives that a chance, the row counts below a level by the share of this
    chance that the level covers: with one for all, a model that is right would be told off for every atom.
    """
    known_R = rows.known_RF[:, 0] > 0
    if not known_R.any() or np.isnan(rows.level_RL[known_R]).any():
        return None
    logged_R1, zero_R1 = rows.log_RF[:, :1], rows.zero_R[:, None]
    in_atom_RL = np.minimum(np.array(LEVELS) / np.maximum(zero_R1, 1e-12), 1.0)
    below_RL = np.where(logged_R1 < _NOTHING_S, in_atom_RL, logged_R1 <= rows.level_RL)
    buckets = []
    for code, label in enumerate(durations[0] if durations else ()):
        here_R = known_R & (durations[1] == code)  # type: ignore[index]
        if here_R.any():
            buckets.append({"group": label, "rows": int(here_R.sum()), "covered": below_RL[here_R].mean(0).tolist()})
    return {
        "levels": list(LEVELS),
        "rows": int(known_R.sum()),
        "overall": below_RL[known_R].mean(0).tolist(),
        "by_duration": buckets,
    }


def _phi(drawn_RF: Array, logged_RF: Array, names: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
    pairs = {}
    for first in range(len(names)):
        for second in range(first + 1, len(names)):
            pairs[f"{names[first]}-{names[second]}"] = {
                "logged": _correlation(logged_RF[:, first], logged_RF[:, second]),
                "emitted": _correlation(drawn_RF[:, first], drawn_RF[:, second]),
            }
    return pairs


def _correlation(a_R: Array, b_R: Array) -> float | None:
    if a_R.std() == 0 or b_R.std() == 0:
        return None
    return float(np.corrcoef(a_R, b_R)[0, 1])


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
