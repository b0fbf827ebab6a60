"""How real a world is: what its users emit against what the log holds.

``logged_fidelity`` replays held-out requests in the order of time. Each request is answered twice: by a user whose
state follows the log (rates, AUC, calibration, watch times, joint signals), and by a user frozen at the start of
the simulated days (within-user AUC: a state that follows the user's own few rows biases it far below its value,
because one click early on makes every later score of that user high). ``rollout_drift`` lets a policy act for
many requests with leaving switched off and watches the emitted rates: a world that feeds on its own output
should not wander. ``probe_drift`` asks instead what a few fixed videos are worth to the users by then: what was shown
in the meantime should not have turned them into other users.

Shape legend: B requests, K places, F signals, R rows, O outcomes, U users, S state, L logged requests.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsim_env.assumptions import DeclaredLeave
from recsim_env.data.requests import LoggedBatch, LoggedRequests
from recsim_env.randomness import address, uniform
from recsim_env.simulator import Simulator
from recsim_env.slates import best_first
from recsim_env.types import Decision, Outcomes, Policy, Request, ResponseModel
from recsim_env.world import World
from reward_models.calibration import expected_calibration_error
from reward_models.metrics import auc, grouped_auc

Array = npt.NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
DRIFT_SLATE = 6
"""Places of the slates that drift is measured on."""

DRIFT_REQUESTS = (1, 5, 20, 50)

PROBE_REQUESTS = (1, 10, 35, 50)


@torch.no_grad()
def logged_fidelity(
    response: ResponseModel, requests: LoggedRequests, *, as_logged: ResponseModel | None = None, seed: int = 0
) -> dict[str, Any]:
    """Compares a response model with held-out impressions.

    Args:
        response: the model.
        as_logged: the same users before slates of the log's own ranker, where they are not the same: asked for all
            requests but those of uniform exposure.
        requests: held-out requests, see ``logged_requests``.
        seed: seed of the drawn watch times.

    Returns:
        ``rows``; ``signals``: for each binary signal logged and emitted rate, their ratio, positives, AUC,
        GAUC (both None where one class is missing) and ECE; ``watch_time``: logged and emitted mean and
        quantiles in seconds; ``phi``: correlation of each pair of binary signals, logged and drawn; ``uniform``:
        the same of the rows of uniform exposure alone, where there are any.
    """
    as_logged = as_logged or response
    parts: list[tuple[Tensor, ...]] = []
    start_US = response.start(torch.arange(int(requests.user_L.max()) + 1))
    state_US = start_US.clone()
    for number, batch in enumerate(_in_order(requests)):
        request, items_BK = batch.request, batch.items_BK
        state_BS, context_BX = state_US[request.user_B], request.context_BX
        draws_BKJ = uniform(address(request.user_B, seed, number), items_BK.shape[1], response.num_draws)
        shown = (batch.feedback.signals_BKF, batch.feedback.seen_BK)
        start_BS = start_US[request.user_B]
        asked = [
            (
                _mean(model.outcomes(state_BS, context_BX, items_BK)),
                _mean(model.outcomes(start_BS, context_BX, items_BK)),
                model.respond(state_BS, context_BX, items_BK, draws_BKJ),
                model.observe(state_BS, context_BX, items_BK, *shown),
            )
            for model in (response, as_logged)
        ]
        uniform_B = batch.uniform_B
        *answers, state_US[request.user_B] = (
            torch.where(uniform_B.view(-1, *[1] * (free.dim() - 1)), free, chosen)
            for free, chosen in zip(*asked, strict=True)
        )
        answers += [batch.feedback.signals_BKF, batch.known_BKF]
        of_row = (column_B.unsqueeze(1).expand_as(items_BK).flatten() for column_B in (request.user_B, uniform_B))
        parts.append((*(part.flatten(0, 1) for part in answers), *of_row))
    columns = [torch.cat(column).double().numpy() for column in zip(*parts, strict=True)]
    rows, uniform_R = _Rows(*columns[:-1]), columns[-1] > 0
    figures = _figures(response.signals, rows)
    if uniform_R.any():
        figures["uniform"] = _figures(response.signals, _Rows(*(column[uniform_R] for column in rows)))
    return figures


class _Rows(NamedTuple):
    """Held-out rows and what the model says of them."""

    mean_RF: Array
    frozen_RF: Array
    """The same of users as they were when the simulated days began."""
    draw_RF: Array
    log_RF: Array
    known_RF: Array
    user_R: Array


def _figures(names: tuple[str, ...], rows: _Rows) -> dict[str, Any]:
    mean_RF, frozen_RF, draw_RF, log_RF, _, user_R = rows
    known_RF = rows.known_RF > 0
    signals = {}
    for index, name in enumerate(names[1:], start=1):
        known_R = known_RF[:, index]
        mean_R, frozen_R, log_R = (column_RF[known_R, index] for column_RF in (mean_RF, frozen_RF, log_RF))
        signals[name] = _signal(mean_R, frozen_R, log_R, user_R[known_R])
    return {
        "rows": len(log_RF),
        "users": len(np.unique(user_R)),
        "signals": signals,
        "watch_time": _watch_time(draw_RF[known_RF[:, 0], 0], log_RF[known_RF[:, 0], 0]),
        "phi": _phi(draw_RF[:, 1:], log_RF[:, 1:], names[1:]),
    }


def retriever_order(request: Request, generator: torch.Generator) -> Decision:
    """The policy that shows the head of the candidate set, in the retriever's order."""
    return Decision(request.candidates_BC[:, :DRIFT_SLATE])


def rollout_drift(
    world: World, policy: Policy, *, num_sessions: int = 512, seed: int = 0, **sizes: int
) -> dict[str, dict[str, float]]:
    """Emitted rates at requests 1, 5, 20 and 50 of sessions that nobody leaves.

    Returns:
        For each of these requests the mean of every signal over the slate.
    """
    simulator = _without_leaving(world, max(DRIFT_REQUESTS), **sizes)
    state = simulator.start(num_sessions, seed)
    generator = torch.Generator().manual_seed(seed)
    drift = {}
    for request in range(1, max(DRIFT_REQUESTS) + 1):
        state, feedback = simulator.step(state, policy(state.request, generator).items_BK)
        if request in DRIFT_REQUESTS:
            mean_F = feedback.signals_BKF.mean(dim=(0, 1)).tolist()
            drift[str(request)] = dict(zip(world.signals, mean_F, strict=True))
    return drift


def greedy_slate(request: Request, generator: torch.Generator) -> Decision:
    """The policy that shows the candidates with the longest predicted watch times."""
    return Decision(best_first(request, request.predicted_BCF[..., 0], DRIFT_SLATE))


@torch.no_grad()
def probe_drift(
    world: World, *, num_probes: int = 50, num_sessions: int = 256, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """What fixed videos, shown alone, are worth at requests 1, 10, 35 and 50 of sessions that nobody leaves.

    Returns:
        For the policies ``retriever``, ``greedy`` and ``uniform`` (any videos of the catalogue) and each of these
        requests, the mean of every expected signal over users and probes. All policies have the same users, and the
        context of the first request is kept.
    """
    generator, num_items = torch.Generator().manual_seed(seed), len(world.catalogue)
    probe_P = torch.randperm(num_items, generator=generator)[:num_probes]
    simulator = _without_leaving(world, max(PROBE_REQUESTS))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, policy in {"retriever": retriever_order, "greedy": greedy_slate, "uniform": None}.items():
        state = simulator.start(num_sessions, seed)
        context_YX = state.request.context_BX.repeat_interleave(len(probe_P), 0)
        found[name] = {}
        for request in range(1, max(PROBE_REQUESTS) + 1):
            if request in PROBE_REQUESTS:
                user_YS = state.response_BS.repeat_interleave(len(probe_P), 0)
                mean_YKF = _mean(
                    world.response.outcomes(user_YS, context_YX, probe_P.repeat(num_sessions).unsqueeze(1))
                )
                found[name][str(request)] = dict(zip(world.signals, mean_YKF.mean((0, 1)).tolist(), strict=True))
            if policy is None:
                items_BK = torch.randint(num_items, (num_sessions, DRIFT_SLATE), generator=generator)
            else:
                items_BK = policy(state.request, generator).items_BK
            state, _ = simulator.step(state, items_BK)
    return found


def _without_leaving(world: World, max_requests: int, **sizes: int) -> Simulator:
    patient = world.replace(leave=DeclaredLeave(per_place=0.0, per_second=0.0, per_dull_place=0.0))
    settings = {**world.defaults, "max_requests": max_requests, **sizes}
    names = ("num_candidates", "slate_size", "history_length", "max_requests")
    return Simulator(patient, **{name: settings[name] for name in names if name in settings})


def _in_order(requests: LoggedRequests) -> Iterator[LoggedBatch]:
    """Batches that hold each user at most once, every user's requests in the order of time."""
    order_L = torch.argsort(requests.user_L, stable=True)
    sorted_L = requests.user_L[order_L]
    first_L = torch.searchsorted(sorted_L, sorted_L)
    turn_L = torch.empty_like(order_L).index_put_((order_L,), torch.arange(len(order_L)) - first_L)
    for turn in range(int(turn_L.max()) + 1):
        yield from requests.batches(2048, among=(turn_L == turn).nonzero().squeeze(1))


def _mean(outcomes: Outcomes) -> Tensor:
    return (outcomes.signals_BKOF * outcomes.probability_BKO.unsqueeze(-1)).sum(2)


def _signal(probability_R: Array, frozen_R: Array, label_R: Array, user_R: Array) -> dict[str, Any]:
    both = 0 < label_R.sum() < len(label_R)
    logged, emitted = float(label_R.mean()), float(probability_R.mean())
    return {
        "positives": int(label_R.sum()),
        "logged_rate": logged,
        "emitted_rate": emitted,
        "ratio": emitted / logged if logged > 0 else None,
        "auc": float(auc(probability_R, label_R)) if both else None,
        "gauc": float(grouped_auc(frozen_R, label_R, user_R)) if both else None,
        "ece": float(expected_calibration_error(probability_R, label_R)),
    }


def _watch_time(drawn_R: Array, logged_R: Array) -> dict[str, Any]:
    return {
        "logged_mean": float(logged_R.mean()),
        "emitted_mean": float(drawn_R.mean()),
        "levels": list(QUANTILES),
        "logged_quantiles": np.quantile(logged_R, QUANTILES).tolist(),
        "emitted_quantiles": np.quantile(drawn_R, QUANTILES).tolist(),
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
