"""The method contract: settings by name, optional parts, target copies, and a checker that says what is wrong."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.goalrank import GoalRank, GoalRankConfig
from agents.method import (
    Columns,
    MethodConfig,
    Optimiser,
    Step,
    as_used,
    detached,
    follow,
    make_method,
    method_class,
    request_of,
)
from agents.method_checker import check_method
from agents.networks import RequestShape
from agents.rl.behaviour_cloning import BehaviourCloning
from agents.rl.ppo import PPO
from agents.rl.td3 import TD3
from recsim_env.slates import best_first
from recsim_env.types import Decision, ListValue, Request

SMALL = {"width": 8, "heads": 2, "item_embedding": 0}


class Seconds:
    """An evaluator with an opinion: higher item codes first."""

    def score(self, request: Request, items_BGK: Tensor) -> ListValue:
        value_BG = items_BGK[..., 0].to(torch.float32)
        return ListValue(value_BG, items_BGK.to(torch.float32), torch.zeros_like(value_BG))


class Scores(nn.Module):
    """A linear ranker, as a stranger would write one."""

    def __init__(self, config: MethodConfig, shape: RequestShape) -> None:
        super().__init__()
        self.places = shape.slate_size
        self.score = nn.Linear(shape.num_signals, 1)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(config.seed)
            self.score.weight.copy_(torch.randn(self.score.weight.shape, generator=generator))
            self.score.bias.zero_()

    def scores(self, request: Request) -> Tensor:
        score_BC1: Tensor = self.score(request.predicted_BCF)
        return score_BC1.squeeze(-1)

    def forward(self, request: Request, generator: torch.Generator) -> Decision:
        return Decision(best_first(request, self.scores(request), self.places))

    def explore(self, request: Request, generator: torch.Generator) -> Step:
        return Step(self(request, generator).items_BK, {"watched_B": request.predicted_BCF[:, 0, 0]})


@dataclass(frozen=True, kw_only=True)
class Settings(MethodConfig):
    """Of the methods below."""

    weight: float = 1.0


class Plain:
    """A method with nothing wrong."""

    Config = Settings
    data = "fresh"

    def __init__(self, config: Settings) -> None:
        self.config = config

    def network(self, shape: RequestShape) -> Scores:
        return Scores(self.config, shape)

    def outputs(self, network: Scores, batch: Columns) -> Columns:
        return {"scores_BC": network.scores(request_of(batch))}

    def loss(self, outputs: Columns, batch: Columns) -> tuple[Tensor, Columns]:
        loss = self.config.weight * outputs["scores_BC"].square().mean()
        return loss, {"size": loss.detach()}


class Unseeded(Plain):
    """Weights that depend on the global stream, and one that no loss reaches."""

    def network(self, shape: RequestShape) -> Scores:
        network = Scores(self.config, shape)
        nn.init.normal_(network.score.weight)
        network.spare = nn.Linear(2, 2)
        return network


class Half(Plain):
    """An optimiser that forgets a parameter, a target that is trained, a loss without gradient."""

    targets = {"score": "score"}  # noqa: RUF012

    def optimisers(self, network: Scores) -> dict[str, Optimiser]:
        return {"half": Optimiser([network.score.weight], 1e-3)}


class NoGradient(Plain):
    """Outputs under no_grad."""

    def outputs(self, network: Scores, batch: Columns) -> Columns:
        with torch.no_grad():
            return super().outputs(network, batch)


class Positions(Plain):
    """Shows positions as if they were items, and names a column as the request does."""

    def collect(self, network: Any, request: Request, operator: Any, generator: Any, num_requests: int) -> Step:
        return Step(torch.zeros((1, 2)), {"user_B": torch.zeros(2)})


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (Plain, {}),
        (GoalRank, {**SMALL, "group_size": 3}),
        (PPO, SMALL),
        (TD3, SMALL),
        (BehaviourCloning, SMALL),
    ],
)
def test_methods_that_keep_the_contract_pass(method: type, settings: dict[str, Any]) -> None:
    check_method(method, evaluator=Seconds(), **settings)


@pytest.mark.parametrize(
    ("method", "finding"),
    [
        ("Unseeded", r"seed the weights from config.seed alone\n.*\['spare.weight', 'spare.bias'\] get no gradient"),
        ("Half", "Config has no tau"),
        ("HalfWithTau", r"no optimiser fits \['score.bias'\]\n.*target copy 'score' is trainable"),
        ("NoGradient", "the loss carries no gradient"),
        (
            "Positions",
            r"items of a Step has shape \(1, 2\)(.|\n)*columns \['user_B'\] have names of the request's",
        ),
    ],
)
def test_the_checker_says_what_is_wrong(method: str, finding: str) -> None:
    with pytest.raises(ValueError, match=finding):
        check_method(f"{__name__}:{method}")


@dataclass(frozen=True, kw_only=True)
class SettingsWithTau(Settings):
    """With what target copies need."""

    tau: float = 0.1


class HalfWithTau(Half):
    """As above, with tau."""

    Config = SettingsWithTau


def test_settings_are_taken_by_name_and_others_refused() -> None:
    method = make_method("agents.goalrank:GoalRank", {"group_size": 5})
    assert method.config == GoalRankConfig(group_size=5)
    with pytest.raises(ValueError, match=r"GoalRank has no setting 'group_sise' \(did you mean 'group_size'\?\)"):
        make_method(GoalRank, {"group_sise": 5})
    with pytest.raises(ValueError, match="a group needs at least 2 lists"):
        make_method(GoalRank, {"group_size": 1})


@pytest.mark.parametrize("name", ["GoalRankConfig", "OBJECTIVES", "No"])
def test_what_is_no_method_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"no training method|has no 'No'"):
        method_class(f"agents.goalrank:{name}")


def test_settings_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="lr must be a number, got 'abc'"):
        make_method(GoalRank, {"lr": "abc"})
    with pytest.raises(ValueError, match=r"gamma must be a number, got \[0.9\]"):
        make_method(PPO, {"gamma": [0.9]})


def test_replays_must_hold_a_minibatch() -> None:
    with pytest.raises(ValueError, match="need minibatch_size <= replay_size, got 64 and 10"):
        make_method(TD3, {"replay_size": 10})


def test_target_copies_move_by_tau() -> None:
    network = nn.ModuleDict({"copy": nn.Linear(1, 1), "online": nn.Linear(1, 1)})
    with torch.no_grad():
        network["copy"].weight.fill_(0.0)
        network["online"].weight.fill_(1.0)
    for _ in range(3):
        follow(network, {"copy": "online"}, 0.1)
    assert float(network["copy"].weight) == pytest.approx(1 - 0.9**3)
    assert float(network["online"].weight) == 1.0


def test_detached_modules_pass_gradients_on_and_take_none() -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    with detached(second):
        second(first(torch.ones(1, 1))).sum().backward()
    assert first.weight.grad is not None
    assert second.weight.grad is None
    assert second.weight.requires_grad


def test_a_network_is_shown_as_it_is_used() -> None:
    network = nn.Dropout()
    network.greedy = False
    with as_used(network) as used:
        assert used.greedy
        assert not used.training
    assert not network.greedy
    assert network.training


def test_configs_are_frozen_dataclasses() -> None:
    for method in (GoalRank, PPO, TD3, BehaviourCloning):
        assert dataclasses.is_dataclass(method.Config)
        with pytest.raises(dataclasses.FrozenInstanceError):
            method.Config().lr = 1.0
