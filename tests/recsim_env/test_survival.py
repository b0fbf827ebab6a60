"""Survival weights against drawn leaving, closed forms and the enumerated optimum: one expectation, less luck."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.baselines import PointwiseGreedy, RandomSlate, RetrieverOrder
from recsim_env.evaluation import Contender, EvaluationResult, EvaluationSettings, evaluate
from recsim_env.known_worlds import pointwise_oracle, short_video_world, tiny_optimum, tiny_world
from recsim_env.rewards import Reward
from recsim_env.simulator import SessionState, Simulator
from recsim_env.types import Decision, Feedback, Request
from recsim_env.world import World
from tests.helpers.planted import planted_world

SMALL = EvaluationSettings(cold_start_below=6, duration_edges=(20.0, 40.0), max_requests=6)
TOTALS = {"catalogue_coverage", "exposure_gini"}


def played(
    policies: Mapping[str, Any],
    world: World,
    num_sessions: int,
    *,
    reward: Reward | None = None,
    seed: int = 0,
    **settings: Any,
) -> EvaluationResult:
    how = dataclasses.replace(SMALL, **settings)
    return evaluate(
        policies, {"w": world}, num_sessions=num_sessions, seed=seed, settings=how, reward=reward, progress=False
    )


def assert_within_error(result: EvaluationResult, metric: str, truth: float, *, at_most: float) -> None:
    """The truth lies within 3.5 standard errors, and these are small enough to tell."""
    row = result.row("p", "w", metric)
    error = (row.high - row.low) / 2 / 1.96
    assert abs(row.mean - truth) <= 3.5 * error + 1e-6 * truth, metric
    assert error < at_most * truth


def assert_agree(policies: Mapping[str, Any], world: World, num_sessions: int, **how: Any) -> EvaluationResult:
    """Every metric that has an error, drawn minus weighted, on the same sessions; returns the weighted result."""
    drawn = played(policies, world, num_sessions, leaving="drawn", **how)
    weighted = played(policies, world, num_sessions, **how)
    cells = {(f"{policy}, drawn", "w"): cell for (policy, _), cell in drawn.cells.items()} | dict(weighted.cells)
    both = EvaluationResult(cells=cells)
    for policy in policies:
        for metric in set(both.metrics) - TOTALS:
            row = both.difference(f"{policy}, drawn", policy, "w", metric)
            error = (row.high - row.low) / 2 / 1.96
            assert math.isnan(row.mean) or abs(row.mean) <= 4 * error + 1e-9, (policy, metric, row.mean, error)
        assert both.row(policy, "w", "exposure_gini").mean == pytest.approx(
            both.row(f"{policy}, drawn", "w", "exposure_gini").mean, abs=0.03
        )
    return weighted


class Stubborn:
    """Shows item 3 first in every slate, a candidate, and item 29 whether it is a candidate or not."""

    def __call__(self, request: Request, generator: torch.Generator) -> Decision:
        first_B = request.candidates_BC[:, 0]
        return Decision(torch.stack([torch.full_like(first_B, 3), first_B, torch.full_like(first_B, 29)], 1))


@pytest.mark.parametrize("lowest", [0.0, 0.05, 0.5, 1.0])
def test_sessions_have_their_closed_forms_at_any_lowest_weight(lowest: float) -> None:
    """Constant hazard, 4 s a video: without roulette the weights are the truth itself, in every session."""
    hazard, requests = 0.1, 20
    world = planted_world(hazard=hazard, seconds=4.0, num_items=100)
    result = played({"p": RandomSlate(3)}, world, 1500, max_requests=requests, roulette_below=lowest)
    stay = math.exp(-hazard)
    videos = (1 - stay ** (3 * requests)) / (1 - stay)
    for metric, truth in (
        ("videos_seen", videos),
        ("session_length", (1 - stay ** (3 * requests)) / (1 - stay**3)),
        ("session_watch_time", 4 * videos),
        ("session_reward", 4 * videos),
        ("truncated_share", stay ** (3 * requests)),
    ):
        row = result.row("p", "w", metric)
        if lowest == 0:
            assert row.high - row.low == pytest.approx(0, abs=1e-5 * truth)
        if metric != "truncated_share" or lowest < 0.5:
            assert_within_error(result, metric, truth, at_most=0.3 if metric == "truncated_share" else 0.03)
    assert result.row("p", "w", "true_list_value").mean == pytest.approx(4 * (1 + stay + stay**2), rel=1e-5)
    assert result.row("p", "w", "evaluator_value").mean == pytest.approx(12.0)


class LeavesTheShort:
    """A user goes on after more than 6 s with .95, otherwise with .6: nothing that a mean watch time could tell."""

    def stay(self, context_BX: Tensor, signals_BKF: Tensor) -> Tensor:
        return torch.where(signals_BKF[..., 0] > 6.0, 0.95, 0.6)


class LastWatched:
    """Pays the watch time of the place after which the user leaves: no function of single places."""

    names, weights = ("last",), (1.0,)

    def __call__(self, request: Request, items_BK: Tensor, feedback: Feedback) -> Tensor:
        last_B1 = feedback.seen_BK.sum(1, keepdim=True) - 1
        return feedback.signals_BKF[..., 0].gather(1, last_B1) * feedback.left_B.unsqueeze(1)


@pytest.mark.parametrize("how", [{"leaving": "drawn"}, {"roulette_below": 0.0}, {"roulette_below": 0.2}])
def test_leaving_by_drawn_signals_and_rewards_of_whole_slates_are_unbiased(how: dict[str, Any]) -> None:
    """Watch time is uniform in (0, 8) s, so a place is the last with the chance .75 x .4 + .25 x .05."""
    world = planted_world(seconds=4.0, num_items=100).replace(leave=LeavesTheShort())
    result = played({"p": RandomSlate(3)}, world, 8000, reward=LastWatched(), max_requests=8, **how)
    stay = 0.25 * 0.95 + 0.75 * 0.6
    videos = (1 - stay**24) / (1 - stay)
    last = 0.75 * 0.4 * 3.0 + 0.25 * 0.05 * 7.0
    for metric, truth in (
        ("videos_seen", videos),
        ("session_length", (1 - stay**24) / (1 - stay**3)),
        ("session_watch_time", 4 * videos),
        ("session_reward", last * videos),
    ):
        assert_within_error(result, metric, truth, at_most=0.03)


@pytest.mark.parametrize("hazard", [0.05, 0.3])
def test_every_metric_agrees_with_drawn_leaving_also_for_repeats_and_items_from_outside(hazard: float) -> None:
    policies = {"stubborn": Stubborn(), "retriever": RetrieverOrder(3), "greedy": PointwiseGreedy(3)}
    world = planted_world(hazard=hazard)
    found = assert_agree(policies, world, 3000)
    assert found.row("stubborn", "w", "repeat_share").mean > 0.1
    assert_agree({"greedy": PointwiseGreedy(3)}, world.replace(leave=LeavesTheShort()), 3000, reward=LastWatched())


def test_every_metric_agrees_with_drawn_leaving_in_the_known_world_for_the_worst_and_the_best() -> None:
    world = short_video_world(num_users=200, num_items=300)
    policies = {
        "random": RandomSlate(6),
        "greedy": PointwiseGreedy(6),
        "oracle": Contender(oracle=pointwise_oracle, feedback="branched"),
    }
    found = assert_agree(policies, world, 1500, num_candidates=20, slate_size=6, max_requests=25)
    assert found.difference("greedy", "random", "w").low > 0
    # What was counted and what was expected of the lists that were shown are one sum.
    for policy in policies:
        value = found.row(policy, "w", "true_list_value").mean
        assert found.row(policy, "w", "list_reward").mean == pytest.approx(value, rel=0.02)


def test_the_enumerated_optimum_is_what_it_is_said_to_be() -> None:
    """States of ``tiny`` follow from the slates: with every weight kept, the mean is exact but for the users drawn."""
    world = tiny_world()
    optimum = tiny_optimum(world)

    def best(simulator: Simulator, state: SessionState) -> Tensor:
        return optimum.slates_URK[state.request.user_B, state.request_index_B]

    sizes = {"num_candidates": 8, "slate_size": 3, "max_requests": 3}
    for lowest in (0.0, 0.3):
        result = played({"p": Contender(oracle=best)}, world, 4000, roulette_below=lowest, **sizes)
        assert_within_error(result, "session_watch_time", optimum.session_watch_time, at_most=0.01)
    assert_agree({"best": Contender(oracle=best), "random": RandomSlate(3)}, world, 2000, **sizes)


def again_and_again(request: Request, generator: torch.Generator) -> Decision:
    """Three videos of the user's own, the same at every request."""
    return Decision(4 * request.user_B.unsqueeze(1) + torch.arange(3))


@pytest.mark.parametrize("policy", [RetrieverOrder(3), Contender(policies=[again_and_again], outside=True)])
def test_coverage_is_the_expected_share_of_videos_that_some_session_sees(policy: Any) -> None:
    world = planted_world(hazard=0.5)

    def coverage(**how: Any) -> np.ndarray:
        runs = [played({"p": policy}, world, 4, seed=4 * i, **how) for i in range(150)]
        return np.array([run.row("p", "w", "catalogue_coverage").mean for run in runs])

    drawn, weighted = coverage(leaving="drawn"), coverage()
    assert abs((drawn - weighted).mean()) < 3.5 * (drawn - weighted).std(ddof=1) / math.sqrt(len(drawn))
    assert 0.1 < weighted.mean() < 0.9


def test_the_luck_of_the_roulette_is_shared_and_small_weights_are_never_carried_on() -> None:
    """Two policies that differ in nothing tie exactly; weights that no session has are no sessions that are played."""
    world = planted_world(hazard=0.3)
    asked: dict[float, int] = {}

    def counted(lowest: float) -> Callable[[Request, torch.Generator], Decision]:
        def policy(request: Request, generator: torch.Generator) -> Decision:
            asked[lowest] = asked.get(lowest, 0) + len(request.user_B)
            return Decision(request.candidates_BC[:, :3].clone())

        return policy

    for lowest in (0.0, 0.2, 1.0):
        result = played(
            {"a": counted(lowest), "b": RetrieverOrder(3)}, world, 200, roulette_below=lowest, max_requests=30
        )
        row = result.difference("a", "b", "w")
        assert (row.mean, row.low, row.high) == (0, 0, 0)
    assert asked[0.0] > 5 * asked[0.2] > 5 * asked[1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leaving": "none"}, "leaving must be 'weighted' or 'drawn', got 'none'"),
        ({"roulette_below": 1.5}, r"roulette_below must lie in 0..1, got 1.5"),
        ({"roulette_below": math.nan}, r"roulette_below must lie in 0..1, got nan"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**changes)
