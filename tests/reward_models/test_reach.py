"""The list evaluator counts the chance that a place is reached, as the world's own expectation does."""

import math

import pytest
import torch
from torch import Tensor

from agents.baselines import PointwiseGreedy
from recsim_env.assumptions import DeclaredLeave, TagRepeatEffect
from recsim_env.evaluation import evaluate
from recsim_env.known_worlds import short_video_world
from recsim_env.known_worlds.response import ShortVideoResponse
from recsim_env.simulator import Simulator
from recsim_env.types import LeaveModel, ListEffect, Request
from recsim_env.world import World
from reward_models.recommender.list_evaluator import SlateEvaluator
from reward_models.recommender.list_evaluator_network import ListEvaluatorConfig, ListModel, Sizes, request_inputs

SECONDS = (10.0, 20.0, 40.0)
"""Of the first three candidates."""
LEAVE = DeclaredLeave(per_place=0.1, per_second=0.01, per_dull_place=0.2, dull_below=80.0)


class TruePredictor:
    """Knows what the world's users do with any video that stands alone."""

    def __init__(self, response: ShortVideoResponse):
        self.response = response
        self.start, self.observe = response.start, response.observe

    def predict(self, state_BS: Tensor, context_BX: Tensor, items_BC: Tensor) -> tuple[Tensor, Tensor]:
        state, context = (t.repeat_interleave(items_BC.shape[1], dim=0) for t in (state_BS, context_BX))
        outcomes = self.response.outcomes(state, context, items_BC.reshape(-1, 1))
        mean_BCF = (outcomes.signals_BKOF * outcomes.probability_BKO.unsqueeze(-1)).sum(2).view(*items_BC.shape, -1)
        return mean_BCF, torch.zeros_like(mean_BCF)


def trusting(
    request: Request,
    leave: LeaveModel | None,
    list_effect: ListEffect | None = None,
    members: tuple[float, ...] = (0.5, 1.5),
) -> SlateEvaluator:
    """An evaluator that takes the predictor at its word, each member with the seconds times a number."""
    inputs = request_inputs(request)
    sizes = Sizes(inputs.candidate_BCI.shape[-1], inputs.request_BJ.shape[-1], inputs.base_BCF.shape[-1], 0)
    model = ListModel(ListEvaluatorConfig(listwise=False, num_members=len(members)), sizes, seed=0)
    with torch.no_grad():
        model.alone.head.zero_()
        model.alone.head_bias[:, 0] = torch.tensor(members).log()
    return SlateEvaluator(model, list_effect, leave)


@pytest.fixture
def request_of_two() -> Request:
    request = Simulator(short_video_world(num_users=5, num_items=60)).start(2, seed=0).request
    predicted_BCF = torch.full_like(request.predicted_BCF, 0.5)
    predicted_BCF[:, :3, 0] = torch.tensor(SECONDS)
    return request._replace(predicted_BCF=predicted_BCF)


def lists_of(request: Request, *positions: list[int]) -> Tensor:
    return request.candidates_BC[:, torch.tensor(positions)]


def stay_after(seconds: float) -> float:
    """By hand: dull is what is missing from 80 s."""
    return math.exp(-0.1 - 0.01 * seconds - 0.2 * (1 - seconds / 80))


def test_a_place_counts_by_the_chance_that_it_is_reached(request_of_two: Request) -> None:
    lists_BGK = lists_of(request_of_two, [0, 1, 2], [2, 1, 0], [0, 0, 2])
    value = trusting(request_of_two, LEAVE).score(request_of_two, lists_BGK)
    short, middle, long, again = (stay_after(seconds) for seconds in (10, 20, 40, 0))
    by_hand = torch.tensor(
        [
            [10, short * 20, short * middle * 40],
            [40, long * 20, long * middle * 10],
            [10, 0, short * again * 40],  # the second showing is skipped at once, which is dull
        ]
    )
    torch.testing.assert_close(value.per_place_BGK, by_hand.expand(2, -1, -1))
    torch.testing.assert_close(value.value_BG, by_hand.sum(1).expand(2, -1))
    # Members differ in what they think of seconds, by half either way, and share one reach.
    torch.testing.assert_close(value.std_BG, by_hand.sum(1).expand(2, -1) * 0.5 * math.sqrt(2))


def test_an_interrupted_place_is_dull_to_who_is_interrupted(request_of_two: Request) -> None:
    tag_N = torch.arange(60)
    tag_N[request_of_two.candidates_BC[:, :2]] = 0
    evaluator = trusting(request_of_two, LEAVE, TagRepeatEffect(tag_N, strength=0.4))
    value = evaluator.score(request_of_two, lists_of(request_of_two, [0, 1, 2]))
    stay = stay_after(10) * stay_after(20 * 0.6)
    by_hand = torch.tensor([10, stay_after(10) * 20 * 0.6, stay * 40])
    torch.testing.assert_close(value.per_place_BGK, by_hand.expand(2, 1, -1))


def test_the_better_video_first_is_worth_more_by_who_leaves_between(request_of_two: Request) -> None:
    """At one hazard for every place, swapping two of them moves the value by their difference times who leaves."""
    lists_BGK = lists_of(request_of_two, [2, 0], [0, 2])
    leave = DeclaredLeave(per_place=0.3, per_second=0.0, per_dull_place=0.0)
    first_G, last_G = trusting(request_of_two, leave).score(request_of_two, lists_BGK).value_BG.T
    torch.testing.assert_close(first_G - last_G, torch.full((2,), 30 * (1 - math.exp(-0.3))))


def test_where_nobody_leaves_every_place_counts_whole(request_of_two: Request) -> None:
    lists_BGK = lists_of(request_of_two, [0, 1, 2], [2, 1, 0])
    nobody = DeclaredLeave(per_place=0.0, per_second=0.0, per_dull_place=0.0)
    for evaluator in (trusting(request_of_two, nobody), trusting(request_of_two, LEAVE).additive()):
        value = evaluator.score(request_of_two, lists_BGK)
        torch.testing.assert_close(value.per_place_BGK, torch.tensor([SECONDS, SECONDS[::-1]]).expand(2, -1, -1))
    assert evaluator.is_additive
    assert not trusting(request_of_two, nobody).is_additive


def test_another_effect_leaves_leaving_as_it_was_and_both_are_saved(request_of_two: Request) -> None:
    evaluator = trusting(request_of_two, LEAVE).with_list_effect(TagRepeatEffect(torch.zeros(60, dtype=torch.int64)))
    copy = SlateEvaluator.restore(evaluator.config(), {k: t.clone() for k, t in evaluator.tensors().items()})
    lists_BGK = lists_of(request_of_two, [0, 1, 2], [2, 1, 0])
    values = [one.score(request_of_two, lists_BGK) for one in (evaluator, copy, evaluator.with_list_effect(None))]
    assert torch.equal(values[0].per_place_BGK, values[1].per_place_BGK)
    torch.testing.assert_close(values[2], trusting(request_of_two, LEAVE).score(request_of_two, lists_BGK))


def known_world(list_effect: float) -> World:
    """Short videos, a predictor that knows their users, and an evaluator that believes it."""
    world = short_video_world(num_users=50, num_items=300, list_effect=list_effect)
    leave = DeclaredLeave(per_place=0.004, per_second=1 / 2400, per_dull_place=0.015, dull_below=600.0)
    world = world.replace(predictor=TruePredictor(world.response), leave=leave)
    request = Simulator(world).start(1, seed=0).request
    return world.replace(evaluator=trusting(request, leave, members=(1.0,)))


def test_the_value_is_the_worlds_expectation_place_by_place() -> None:
    """At the first two requests; one slate in four shows a video again."""
    world = known_world(list_effect=0.0)
    simulator, evaluator = Simulator(world), world.evaluator
    assert evaluator is not None
    state = simulator.start(100, seed=0)
    for _ in range(2):
        lists_BGK = state.request.candidates_BC[:, :24].view(100, 4, 6).clone()
        lists_BGK[:, 3, 4] = lists_BGK[:, 3, 1]
        value, truth = evaluator.score(state.request, lists_BGK), simulator.expected(state, lists_BGK)
        assert float(truth.reached_BGK.mean()) < 0.97, "the test can see"
        seconds_BGK = truth.signals_BGKF[..., 0] * truth.reached_BGK
        torch.testing.assert_close(value.per_place_BGK, seconds_BGK, rtol=1e-2, atol=1e-4)
        torch.testing.assert_close(value.value_BG, truth.watch_time_BG, rtol=2e-3, atol=0)
        state, _ = simulator.step(state, lists_BGK[:, 0])


@pytest.mark.parametrize(("list_effect", "within"), [(0.0, 0.01), (1.0, 0.1)])
def test_in_a_known_world_the_promise_is_kept(list_effect: float, within: float) -> None:
    """By an evaluator that knows nothing of what a list does to its videos; the errors of a learned one come on top."""
    result = evaluate(
        {"sort": PointwiseGreedy(6)}, {"truth": known_world(list_effect)}, num_sessions=60, seed=0, progress=False
    )
    promise = result.row("sort", "truth", "evaluator_over_truth").mean
    assert promise == pytest.approx(1.0, abs=within)
