"""Every checker passes a sound object and names each planted defect in words."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.baselines import PointwiseGreedy, RandomSlate
from recsim_env.assumptions import DeclaredLeave
from recsim_env.candidates import UniformCandidates
from recsim_env.checkers import (
    check_candidate_source,
    check_expected,
    check_leave_model,
    check_policy,
    check_response_model,
    check_reward,
)
from recsim_env.known_worlds import short_video_world
from recsim_env.plugins import load_object
from recsim_env.rewards import SignalReward, watch_time_reward
from recsim_env.types import NO_ITEM, Decision, Feedback, Outcomes, Request
from tests.helpers.planted import SIGNALS, PlantedResponse, planted_world

NUM_ITEMS = 30
WORLD = planted_world(num_items=NUM_ITEMS)


def first_three(request: Request) -> Tensor:
    return request.candidates_BC[:, :3]


def writes(request: Request, generator: torch.Generator) -> Decision:
    request.retriever_score_BC.zero_()
    return Decision(first_three(request))


def hidden_draw(request: Request, generator: torch.Generator) -> Decision:
    order = torch.rand(request.candidates_BC.shape).argsort(dim=1)
    return Decision(request.candidates_BC.gather(1, order)[:, :3])


def raises(request: Request, generator: torch.Generator) -> Decision:
    raise KeyError("weights")


POLICIES: dict[str, tuple[Callable[[Request, torch.Generator], Any], str]] = {
    "positions": (lambda r, g: Decision(torch.arange(3).expand(len(r.user_B), 3)), "gather them from"),
    "repeats": (lambda r, g: Decision(first_three(r)[:, [0, 0, 1]]), "same video twice"),
    "short": (lambda r, g: Decision(first_three(r)[:, :2]), r"shape \(5, 2\), need \(5, 3\)"),
    "float": (lambda r, g: Decision(first_three(r).float()), "torch.float32, need torch.int64"),
    "code": (lambda r, g: Decision(first_three(r) + 100), "the catalogue has 0..29"),
    "tensor": (lambda r, g: first_three(r), "must be a Decision, got Tensor"),
    "nothing": (lambda r, g: None, "must be a Decision, got NoneType"),
    "array": (lambda r, g: Decision(first_three(r).numpy()), "must be a tensor, got ndarray"),  # type: ignore[arg-type]
    "nan": (lambda r, g: Decision(first_three(r), torch.full((len(r.user_B), 3), torch.nan)), "holds NaN"),
    "positive": (lambda r, g: Decision(first_three(r), torch.ones(len(r.user_B), 3)), "log_prob_BK is positive"),
    "hidden": (hidden_draw, "two different slates; draw from the generator only"),
    "writes": (writes, "changes the request it was given"),
    "raises": (raises, "raised KeyError: 'weights'"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_broken_policy_is_told_what_is_wrong(name: str) -> None:
    policy, finding = POLICIES[name]
    with pytest.raises(ValueError, match=finding):
        check_policy(policy, WORLD)


def test_sound_policies_pass_and_the_default_world_is_the_short_video_world() -> None:
    check_policy(PointwiseGreedy(3), WORLD)
    check_policy(RandomSlate(6))
    with pytest.raises(ValueError, match=r"need \(5, 6\)"):
        check_policy(RandomSlate(3))


def test_generators_over_the_catalogue_may_answer_other_items() -> None:
    def head(request: Request, generator: torch.Generator) -> Decision:
        return Decision(torch.arange(3).expand(len(request.user_B), 3))

    check_policy(head, WORLD, outside=True)


def test_all_findings_are_listed_at_once() -> None:
    def policy(request: Request, generator: torch.Generator) -> Decision:
        request.retriever_score_BC.zero_()
        return Decision(torch.zeros(len(request.user_B), 3, dtype=torch.int64))

    with pytest.raises(ValueError, match=r"policy policy: 3 thing\(s\) to mend\n  1\. .*\n  2\. .*\n  3\. "):
        check_policy(policy, WORLD)


class Response(PlantedResponse):
    """A sound response model, to be broken by subclasses."""

    def __init__(self) -> None:
        super().__init__(torch.arange(NUM_ITEMS) + 1.0, torch.full((NUM_ITEMS,), 0.3))


class NegativeWatch(Response):
    def respond(self, *arguments: Tensor) -> Tensor:
        return super().respond(*arguments) - torch.tensor([30.0, 0.0])


class NotBinary(Response):
    def respond(self, *arguments: Tensor) -> Tensor:
        return super().respond(*arguments) * 0.5


class WatchTimeLast(Response):
    signals = ("like", "watch_time")


class WrongRate(Response):
    def outcomes(self, *arguments: Tensor) -> Outcomes:
        outcomes = super().outcomes(*arguments)
        return Outcomes(outcomes.signals_BKOF, outcomes.probability_BKO.flip(2))


class NotOne(Response):
    def outcomes(self, *arguments: Tensor) -> Outcomes:
        outcomes = super().outcomes(*arguments)
        return Outcomes(outcomes.signals_BKOF, outcomes.probability_BKO * 0.9)


class Neighbours(Response):
    def respond(self, *arguments: Tensor) -> Tensor:
        drawn = super().respond(*arguments)
        return torch.stack([drawn[..., 0] - drawn[..., 0].mean() + 50.0, drawn[..., 1]], dim=2)


class Hidden(Response):
    def respond(self, *arguments: Tensor) -> Tensor:
        drawn = super().respond(*arguments)
        return drawn + torch.rand(len(drawn), 1, 1) * torch.tensor([1.0, 0.0])


class LooksAhead(Response):
    def respond(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, uniform_BKJ: Tensor) -> Tensor:
        drawn = super().respond(state_BS, context_BX, items_BK, uniform_BKJ)
        return drawn + (items_BK[:, -1:, None] % 7) * torch.tensor([1.0, 0.0])


class SeesUnseen(Response):
    def observe(self, state_BS: Tensor, context_BX: Tensor, items_BK: Tensor, *rest: Tensor) -> Tensor:
        return state_BS + items_BK.sum(1, keepdim=True)


class WritesState(Response):
    def observe(self, state_BS: Tensor, *rest: Tensor) -> Tensor:
        return state_BS.add_(1.0)


class NanState(Response):
    def start(self, user_B: Tensor) -> Tensor:
        return super().start(user_B) + torch.nan


class WrongShape(Response):
    def respond(self, *arguments: Tensor) -> Tensor:
        return super().respond(*arguments)[:, 0]


class DoublePrecision(Response):
    def respond(self, *arguments: Tensor) -> Tensor:
        return super().respond(*arguments).double()


RESPONSES = {
    NegativeWatch: "negative watch times",
    NotBinary: "neither 0 nor 1",
    WatchTimeLast: "first signal must be 'watch_time'",
    WrongRate: "outcomes expect like 0.7 where 4000 draws of respond average 0.",
    NotOne: "must sum to 1, got sums 0.9000..0.9000",
    Neighbours: "other values when other rows stand beside it",
    Hidden: "free of hidden randomness",
    LooksAhead: "lets a later place change an earlier one",
    SeesUnseen: "places that were not seen change the state",
    WritesState: "writes into the state",
    NanState: "start's state holds NaN",
    WrongShape: r"shape \(5, 2\), need \(5, 3, 2\)",
    DoublePrecision: "torch.float64, need torch.float32",
}


@pytest.mark.parametrize("broken", RESPONSES, ids=lambda broken: broken.__name__)
def test_a_broken_response_model_is_told_what_is_wrong(broken: type[Response]) -> None:
    with pytest.raises(ValueError, match=RESPONSES[broken]):
        check_response_model(broken(), num_users=7, num_items=NUM_ITEMS)


def test_sound_response_models_pass() -> None:
    check_response_model(Response(), num_users=7, num_items=NUM_ITEMS)
    world = short_video_world(num_users=50, num_items=200)
    check_response_model(world.response, num_users=50, num_items=200)


class PaysForReaching:
    names = ("seen",)
    weights = (1.0,)

    def __call__(self, request: Request, items_BK: Tensor, feedback: Feedback) -> Tensor:
        return feedback.seen_BK.sum(1, keepdim=True).float()


class Flat(PaysForReaching):
    def __call__(self, request: Request, items_BK: Tensor, feedback: Feedback) -> Tensor:
        return feedback.signals_BKF[..., 0].sum(1)


class BatchMean(PaysForReaching):
    def __call__(self, request: Request, items_BK: Tensor, feedback: Feedback) -> Tensor:
        paid_B1 = feedback.signals_BKF[:, 0, :1]
        return paid_B1 - paid_B1.mean()


class Unweighted(PaysForReaching):
    weights = (1.0, 2.0)


@pytest.mark.parametrize(
    ("reward", "finding"),
    [
        (PaysForReaching(), "a video repeated in a slate pays"),
        (Flat(), r"shape \(8,\), need \(8, 1\)"),
        (BatchMean(), "other rows stand beside it"),
        (Unweighted(), "need one weight for each of the names"),
        (SignalReward({"like": 1.0}, ("a", "b", "c", "like")), "raised IndexError"),
    ],
)
def test_a_broken_reward_is_told_what_is_wrong(reward: PaysForReaching, finding: str) -> None:
    with pytest.raises(ValueError, match=finding):
        check_reward(reward, WORLD)


def test_sound_rewards_pass() -> None:
    check_reward(watch_time_reward(SIGNALS), WORLD)
    check_reward(SignalReward({"watch_time": 1.0, "like": 20.0}, SIGNALS), WORLD)


class Source(UniformCandidates):
    def __init__(self) -> None:
        super().__init__(torch.zeros(NUM_ITEMS))


class ShowsAgain(Source):
    def retrieve(self, state: Tensor, shown: Tensor, uniform: Tensor, num: int) -> tuple[Tensor, Tensor]:
        return super().retrieve(state, torch.full_like(shown, NO_ITEM), uniform, num)


class LosesItemZero(Source):
    def retrieve(self, state: Tensor, shown: Tensor, uniform: Tensor, num: int) -> tuple[Tensor, Tensor]:
        return super().retrieve(state, shown.clamp(min=0), uniform, num)


class WorstFirst(Source):
    def retrieve(self, state: Tensor, shown: Tensor, uniform: Tensor, num: int) -> tuple[Tensor, Tensor]:
        items, scores = super().retrieve(state, shown, uniform, num)
        return items.flip(1), scores.flip(1)


class Twice(Source):
    def retrieve(self, state: Tensor, shown: Tensor, uniform: Tensor, num: int) -> tuple[Tensor, Tensor]:
        items, scores = super().retrieve(state, shown, uniform, num)
        items[:, 1] = items[:, 0]
        return items, scores


class FreshDraws(Source):
    def retrieve(self, state: Tensor, shown: Tensor, uniform: Tensor, num: int) -> tuple[Tensor, Tensor]:
        return super().retrieve(state, shown, torch.rand(len(uniform)), num)


class ScoresOtherwise(Source):
    def score(self, state: Tensor, uniform: Tensor, items: Tensor) -> Tensor:
        return self.reach_N[items]


@pytest.mark.parametrize(
    ("broken", "finding"),
    [
        (ScoresOtherwise, "score gives candidates another score than retrieve did"),
        (ShowsAgain, "gives items of shown_BM while others are left"),
        (LosesItemZero, "gives items of shown_BM while others are left"),
        (WorstFirst, "do not stand best score first"),
        (Twice, "gives the same item twice"),
        (FreshDraws, "free of hidden randomness"),
    ],
)
def test_a_broken_candidate_source_is_told_what_is_wrong(broken: type[Source], finding: str) -> None:
    with pytest.raises(ValueError, match=finding):
        check_candidate_source(broken(), num_users=7, num_items=NUM_ITEMS, num_signals=2)


def test_sound_candidate_sources_pass() -> None:
    check_candidate_source(Source(), num_users=7, num_items=NUM_ITEMS, num_signals=2)
    with pytest.raises(ValueError, match="need num_candidates < num_items, got 30 and 30"):
        check_candidate_source(Source(), num_users=7, num_items=30, num_signals=2, num_candidates=30)


@dataclasses.dataclass
class Leave:
    scale: float = 1.0
    places: int = 3

    def stay(self, context_BX: Tensor, signals_BKF: Tensor) -> Tensor:
        return self.scale * torch.exp(-signals_BKF[..., 0])[:, : self.places]


def test_leave_models() -> None:
    check_leave_model(Leave(), num_signals=2)
    check_leave_model(DeclaredLeave(), num_signals=8)
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        check_leave_model(Leave(scale=2.0), num_signals=2)
    with pytest.raises(ValueError, match=r"shape \(5, 2\), need \(5, 3\)"):
        check_leave_model(Leave(places=2), num_signals=2)


def test_scaled_hazards_are_powers_of_the_chance_to_stay() -> None:
    signals_BKF = torch.rand(5, 4, 8, generator=torch.Generator().manual_seed(0)) * 30.0
    context_BX = torch.zeros(5, 7)
    stay_BK = DeclaredLeave().stay(context_BX, signals_BKF)
    torch.testing.assert_close(DeclaredLeave().scaled(2.0).stay(context_BX, signals_BKF), stay_BK**2)
    assert DeclaredLeave().scaled(1.0).config() == DeclaredLeave().config()


def test_dotted_paths_reach_modules_and_classes() -> None:
    assert load_object("recsim_env.assumptions:DeclaredLeave") is DeclaredLeave
    assert load_object("recsim_env.assumptions:DeclaredLeave.restore") == DeclaredLeave.restore


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("recsim_env.assumptions.DeclaredLeave", "form 'module:Name'"),
        ("recsim_env.declard:DeclaredLeave", "cannot import 'recsim_env.declard'"),
        ("recsim_env.assumptions:DeclardLeave", "has no 'DeclardLeave'; try DeclaredLeave"),
    ],
)
def test_a_wrong_path_is_told_what_is_wrong(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_object(path)


class HastyLeave:
    """Leaving that jumps within what the response model keeps as one outcome: a swipe."""

    def stay(self, context_BX: Tensor, signals_BKF: Tensor) -> Tensor:
        return torch.where(signals_BKF[..., 0] < 1.0, 0.2, 1.0)


def test_a_world_whose_expectations_cannot_be_exact_is_refused() -> None:
    world = short_video_world(num_users=60, num_items=120)
    check_expected(world)
    with pytest.raises(ValueError, match=r"expected says .* places that are reached where 4000 draws average"):
        check_expected(world.replace(leave=HastyLeave()))
