"""Checks of policies: in full, as a public checker, and in a moment, before a policy is played at length.

Shape legend: B sessions, C candidates, K places.
"""

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from recsim_env.envs import RecVectorEnv
from recsim_env.findings import Report, same
from recsim_env.simulator import Simulator
from recsim_env.slates import are_candidates, first_showing
from recsim_env.types import Decision, Policy, Request
from recsim_env.world import World


def check_policy(policy: Policy, world: World | str | None = None, *, outside: bool = False) -> None:
    """Checks a policy on the first two requests of a few sessions.

    Args:
        policy: any callable ``(request, generator) -> Decision``.
        world: the world it was built for; the default short-video world if ``None``. Slate and candidate
            sizes are the world's own.
        outside: allows items from outside the candidates, as generators over the catalogue answer.

    Raises:
        ValueError: a list of everything found.
    """
    report = Report("policy", policy)
    simulator = RecVectorEnv(1, world or "short_video").simulator
    for num_sessions in (5, 1):
        for request in _two_requests(simulator, num_sessions, seed=0):
            before = [tensor.clone() for tensor in request]
            answers = report.attempt("the call", partial(_answer_twice, policy, request, simulator))
            if answers is None:
                continue
            items_BK = _check_answers(report, report, answers, (request, before), simulator)
            report.add(
                items_BK is not None
                and not outside
                and not bool(are_candidates(items_BK, request.candidates_BC).all()),
                "a slate holds items that are not among its request's candidates (are these positions instead of "
                "item codes? gather them from request.candidates_BC)",
            )
    report.close()


def try_policy(policy: Policy, simulator: Simulator, *, name: str, seed: int = 0, outside: bool = False) -> None:
    """Tries a policy on the first two requests of a few sessions before it is played at length.

    What would make every figure meaningless is refused; what only deserves a thought is a warning.

    Args:
        policy: any callable ``(request, generator) -> Decision``.
        simulator: what it will be played in.
        name: what messages call it.
        seed: first session.
        outside: the policy is known to choose from the whole catalogue, so that low codes are no sign of positions.

    Raises:
        ValueError: an answer of another form, codes of no item, a request that was written into, or positions in the
            candidate set in the place of item codes, as far as that can be told: items from outside the candidates, and
            not one code that could not be a position.
    """
    errors, remarks = Report("policy", policy), Report("policy", policy)
    errors.title = remarks.title = f"policy {name!r} in world {simulator.world.name!r}"
    any_outside, largest = False, -1
    for request in _two_requests(simulator, 8, seed):
        before = [tensor.clone() for tensor in request]
        answers = _answer_twice(policy, request, simulator)
        items_BK = _check_answers(errors, remarks, answers, (request, before), simulator)
        if items_BK is not None:
            any_outside |= not bool(are_candidates(items_BK, request.candidates_BC).all())
            largest = max(largest, int(items_BK.max()))
    errors.add(
        any_outside and not outside and largest < simulator.num_candidates,
        f"every code it shows is below {simulator.num_candidates}, the number of candidates, and some are no "
        "candidates: these look like positions; gather items from request.candidates_BC (a generator over the whole "
        "catalogue is declared by Contender(..., outside=True))",
    )
    errors.close()
    if remarks.findings:
        warnings.warn(f"{remarks.title}: {'; '.join(remarks.findings)}", stacklevel=3)


def _two_requests(simulator: Simulator, num_sessions: int, seed: int) -> Iterator[Request]:
    state = simulator.start(num_sessions, seed)
    yield state.request
    state, _ = simulator.step(state, state.request.candidates_BC[:, : simulator.slate_size].clone())
    yield state.request


def _answer_twice(policy: Policy, request: Request, simulator: Simulator) -> list[Any]:
    return [policy(request, torch.Generator(simulator.device).manual_seed(7)) for _ in range(2)]


def _check_answers(
    errors: Report, remarks: Report, answers: list[Any], asked: tuple[Request, list[Tensor]], simulator: Simulator
) -> Tensor | None:
    """Two answers to one request, which came with copies of its tensors; slates of valid codes, or ``None``."""
    request, before = asked
    if not isinstance(answers[0], Decision):
        errors.add(True, f"the answer must be a Decision, got {type(answers[0]).__name__}")
        return None
    changed = any(not same(a, b) for a, b in zip(before, request, strict=True))
    errors.add(changed, "the call changes the request it was given; clone before writing")
    first, second = answers
    shape, num_items = (len(request.user_B), simulator.slate_size), len(simulator.world.catalogue)
    if not errors.tensor("items_BK", first.items_BK, shape, torch.int64):
        errors.add(True, f"build it for slates of {simulator.slate_size} places, or set slate_size of the world played")
        return None
    low, high = int(first.items_BK.min()), int(first.items_BK.max())
    valid = errors.add(
        low < 0 or high >= num_items,
        f"slates hold item codes {low}..{high}, the catalogue has 0..{num_items - 1}",
    )
    remarks.add(not bool(first_showing(first.items_BK).all()), "a slate shows the same video twice")
    remarks.add(
        not same(first.items_BK, second.items_BK),
        "the same request and generator state gave two different slates; draw from the generator only",
    )
    if first.log_prob_BK is not None and errors.tensor("log_prob_BK", first.log_prob_BK, shape, torch.float32):
        remarks.add((first.log_prob_BK > 1e-5).any(), "log_prob_BK is positive somewhere; it must be at most 0")
    return first.items_BK if valid else None
