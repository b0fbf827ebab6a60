"""What many requests make of users: do emitted rates wander, and do fixed videos keep their worth?

``rollout_drift`` lets a policy act for many requests with leaving switched off and watches the emitted rates: a world
that feeds on its own output should not wander. ``probe_drift`` asks instead what a few fixed videos are worth to the
users by then: what was shown in the meantime should not have turned them into other users.

Shape legend: B sessions, K places, F signals, P probes, Y = B x P.
"""

import math
from typing import Any

import torch
from torch import Tensor

from recsim_env.assumptions import DeclaredLeave
from recsim_env.simulator import Simulator
from recsim_env.slates import best_first
from recsim_env.types import Decision, Policy, Request
from recsim_env.world import World
from reward_models.fidelity.logged import expected_signals

DRIFT_SLATE = 6
"""Places of the slates that drift is measured on."""

DRIFT_REQUESTS = (1, 5, 20, 50)

PROBE_REQUESTS = (1, 10, 35, 50)


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
) -> dict[str, dict[str, dict[str, Any]]]:
    """What fixed videos, shown alone, are worth at requests 1, 10, 35 and 50 of sessions that nobody leaves.

    Returns:
        For the policies ``retriever``, ``greedy`` and ``uniform`` (any videos of the catalogue) and each of these
        requests, the mean of every expected signal over users and probes, and under ``ratio_error`` the standard error
        over users of its ratio to the first request's (None where that is 0). All policies have the same users, and
        the context of the first request is kept.
    """
    generator, num_items = torch.Generator().manual_seed(seed), len(world.catalogue)
    probe_P = torch.randperm(num_items, generator=generator)[:num_probes]
    simulator = _without_leaving(world, max(PROBE_REQUESTS))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, policy in {"retriever": retriever_order, "greedy": greedy_slate, "uniform": None}.items():
        state = simulator.start(num_sessions, seed)
        context_YX = state.request.context_BX.repeat_interleave(len(probe_P), 0)
        worth = []
        for request in range(1, max(PROBE_REQUESTS) + 1):
            if request in PROBE_REQUESTS:
                user_YS = state.response_BS.repeat_interleave(len(probe_P), 0)
                outcomes = world.response.outcomes(user_YS, context_YX, probe_P.repeat(num_sessions).unsqueeze(1))
                worth.append(expected_signals(outcomes).view(num_sessions, len(probe_P), -1).mean(1).double())
            if policy is None:
                items_BK = torch.randint(num_items, (num_sessions, DRIFT_SLATE), generator=generator)
            else:
                items_BK = policy(state.request, generator).items_BK
            state, _ = simulator.step(state, items_BK)
        found[name] = {
            str(request): _worth(world.signals, worth_BF, worth[0])
            for request, worth_BF in zip(PROBE_REQUESTS, worth, strict=True)
        }
    return found


def _worth(names: tuple[str, ...], worth_BF: Tensor, first_BF: Tensor) -> dict[str, Any]:
    """Means over users, and how well their ratio to the first request's is known."""
    mean_F, first_F = worth_BF.mean(0), first_BF.mean(0)
    move_BF = (worth_BF - mean_F / first_F * first_BF) / first_F
    errors = (move_BF.std(0) / len(worth_BF) ** 0.5).tolist()
    known = [error if math.isfinite(error) else None for error in errors]
    means = dict(zip(names, mean_F.tolist(), strict=True))
    return {**means, "ratio_error": dict(zip(names, known, strict=True))}


def _without_leaving(world: World, max_requests: int, **sizes: int) -> Simulator:
    patient = world.replace(leave=DeclaredLeave(per_place=0.0, per_second=0.0, per_dull_place=0.0))
    settings = {**world.defaults, "max_requests": max_requests, **sizes}
    names = ("num_candidates", "slate_size", "history_length", "max_requests")
    return Simulator(patient, **{name: settings[name] for name in names if name in settings})
