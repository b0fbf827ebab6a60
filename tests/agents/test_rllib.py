"""GoalRank through RLlib: what the runner collects, what the learner learns."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from agents.baselines import PointwiseGreedy
from agents.goalrank import GROUP_LOG_PROB, GROUP_POSITIONS, GROUP_VALUE, GoalRank, GoalRankConfig
from agents.list_policy import ListPolicy
from agents.method import Method, request_of
from agents.networks import RequestShape
from agents.objectives import group_relative_cross_entropy
from agents.policies import save_policy
from agents.rerankers.clig import CligConfig, search_generators
from agents.rerankers.complementarity import list_distances
from agents.rerankers.heuristics import HeuristicGenerators, standard_heuristics
from agents.rerankers.multi_generator import PolicyLists
from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.env_runner import MethodEnvRunner
from recsim_env.types import ListEvaluator, ListValue, Request
from tests.helpers.list_game import TAG, K, N, TrueValue, make_request, share_of_optimum
from tests.helpers.planted import planted_world
from tests.helpers.rllib_loop import SMALL_GOALRANK, game_config

SHAPE = RequestShape.of(make_request(1, torch.Generator()), N, K)


class Doubled:
    """An evaluator to be named by its path."""

    def score(self, request: Request, items_BGK: torch.Tensor) -> ListValue:
        value = TrueValue().score(request, items_BGK)
        return value._replace(value_BG=2 * value.value_BG)


class Broken:
    """An evaluator that forbids lists by minus infinity."""

    def score(self, request: Request, items_BGK: torch.Tensor) -> ListValue:
        value = TrueValue().score(request, items_BGK)
        return value._replace(value_BG=value.value_BG.masked_fill(value.value_BG < 1, -torch.inf))


def make_runner(config: MethodAlgorithmConfig, worker_index: int = 0) -> MethodEnvRunner:
    return MethodEnvRunner(config=config, worker_index=worker_index, num_workers=0)


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(column) for name, column in batch.items()}


def test_batches_hold_the_policys_groups_and_their_values() -> None:
    runner = make_runner(game_config())
    batch = tensors(runner.sample())
    request, positions = request_of(batch), batch[GROUP_POSITIONS]
    assert positions.shape[1:] == (SMALL_GOALRANK.group_size, K)
    log_prob = runner.module.network.group_log_prob(request, positions)
    torch.testing.assert_close(log_prob.detach(), batch[GROUP_LOG_PROB])
    items = request.candidates_BC.gather(1, positions.flatten(1)).view_as(positions)
    torch.testing.assert_close(TrueValue().score(request, items).value_BG, batch[GROUP_VALUE])
    assert not ray.is_initialized()


def test_auxiliary_lists_warm_the_groups_and_then_leave() -> None:
    warm = dataclasses.replace(SMALL_GOALRANK, auxiliary_share=0.25, auxiliary_requests=100)
    runner = make_runner(game_config(warm))
    first, later = tensors(runner.sample()), tensors(runner.sample())  # up to 128 requests each
    request, positions = request_of(first), first[GROUP_POSITIONS]
    heuristics = standard_heuristics(("watch_time", "like"))
    every = HeuristicGenerators(heuristics, ("watch_time", "like"), K, TAG)
    proposed = every.propose(request, torch.Generator())
    same = (positions.unsqueeze(2) == proposed.unsqueeze(1)).all(3).any(2)  # (M, G): is it a heuristic's?
    assert same[:, 12:].all()
    assert same[:, :12].float().mean() < 0.6  # the policy draws nearly at random: 120 lists, few of them heuristics'
    log_prob = runner.module.network.group_log_prob(request, positions)
    torch.testing.assert_close(log_prob.detach(), first[GROUP_LOG_PROB])
    proposed = every.propose(request_of(later), torch.Generator())
    same = (later[GROUP_POSITIONS].unsqueeze(2) == proposed.unsqueeze(1)).all(3).any(2)
    assert not same[:, 12:].all(1).any()


def test_more_auxiliary_lists_than_heuristics_are_refused() -> None:
    many = dataclasses.replace(SMALL_GOALRANK, group_size=400, auxiliary_share=0.5)
    with pytest.raises(ValueError, match="asks for 200 auxiliary lists a group"):
        make_runner(game_config(many))


def test_every_valid_step_is_in_the_batch_once() -> None:
    runner = make_runner(game_config())
    env = runner.env.unwrapped
    asked, played, rewards, ends, valid = [], [], [], 0, []
    step = env.step_tensors

    def spy(items: torch.Tensor) -> object:
        nonlocal ends
        asked.append(env.request.candidates_BC)
        played.append(items)
        transition = step(items)
        valid.append(transition.valid_B)
        rewards.append(transition.reward_B)
        ends += int((transition.terminated_B | transition.truncated_B).sum())
        return transition

    env.step_tensors = spy
    batch = tensors(runner.sample(num_timesteps=16 * 40))
    keep = torch.cat(valid)
    assert 0 < int((~keep).sum()) == ends - int(env._ended.sum())
    assert torch.equal(batch["candidates_BC"], torch.cat(asked)[keep])
    first = batch["candidates_BC"].gather(1, batch[GROUP_POSITIONS][:, 0])
    assert torch.equal(first, torch.cat(played)[keep])  # the group's first list is the one that was played

    # Sessions' rewards are conserved: finished ones are logged, running ones are held.
    metrics = runner.get_metrics()
    logged = metrics["session"]["return"].peek() * ends
    running = float(runner._totals["return"].sum())
    assert logged + running == pytest.approx(float(torch.cat(rewards).sum()), rel=1e-5)
    assert metrics["num_episodes"].peek() == ends
    assert metrics["num_env_steps_sampled"].peek() == len(batch["user_B"])


def test_runners_never_share_sessions_and_resumed_ones_meet_new() -> None:
    seeds = []
    for worker_index, steps_before in ((1, 0), (2, 0), (1, 500), (1, 0)):
        runner = make_runner(game_config(), worker_index)
        runner.num_env_steps_sampled_lifetime = steps_before
        runner.sample(num_timesteps=1)
        seeds.append(runner.env.unwrapped.seeds[0])
    assert seeds[0] == seeds[3]  # the same runner at the same step repeats itself
    distances = [abs(a - b) for a, b in zip(seeds[:3], (*seeds[1:3], seeds[0]), strict=True)]
    assert min(distances) > 10_000  # row i has seed + i


def test_runs_in_the_real_environment() -> None:
    world = planted_world(num_items=20)
    base = game_config(num_envs=8).environment(
        "recsim_env:recsim_env/Session-v0", env_config={"world": world, "slate_size": 3}
    )
    runner = make_runner(base)
    batch = tensors(runner.sample(num_timesteps=8 * 30))
    assert 100 < len(batch["user_B"]) < 240
    positions = batch[GROUP_POSITIONS]
    items = batch["candidates_BC"].gather(1, positions.flatten(1)).view_as(positions)
    torch.testing.assert_close(batch[GROUP_VALUE], (items + 1.0).sum(dim=-1))  # item i has 1 + i seconds
    feedback = runner.get_metrics()["feedback"]
    assert set(feedback) == {"watch_time", "like"}
    assert 5 < feedback["watch_time"].peek() < 16
    assert 0.1 < feedback["like"].peek() < 0.5


def test_noise_takes_its_share_of_the_values() -> None:
    config = GoalRankConfig(width=16, heads=2, value_noise=0.5, group_size=64)
    batch = tensors(make_runner(game_config(config)).sample())
    request, positions = request_of(batch), batch[GROUP_POSITIONS]
    items = request.candidates_BC.gather(1, positions.flatten(1)).view_as(positions)
    clean = TrueValue().score(request, items).value_BG
    noise = batch[GROUP_VALUE] - 0.5 * clean
    assert float(noise.mean()) == pytest.approx(0, abs=0.05 * float(clean.std()))
    assert float(noise.std()) == pytest.approx(0.5 * float(clean.std()), rel=0.05)
    assert float(clean.std()) > 1.2 * float(clean.std(dim=1).mean())  # requests differ, not lists alone


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_other_autoreset_modes_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="NEXT_STEP"):
        make_runner(game_config(autoreset_mode=mode))


def test_the_evaluator_can_be_named_and_must_exist() -> None:
    with pytest.raises(ValueError, match="needs a list evaluator"):
        make_runner(game_config(evaluator=False))
    with pytest.raises(ValueError, match="this world has int"):
        make_runner(game_config().training(evaluator="tests.helpers.list_game:N"))
    named = game_config(evaluator=False).training(evaluator="tests.agents.test_rllib:Doubled")
    plain = tensors(make_runner(game_config()).sample())
    doubled = tensors(make_runner(named).sample())
    torch.testing.assert_close(doubled[GROUP_VALUE], 2 * plain[GROUP_VALUE])


def test_an_update_is_the_plain_gradient_step() -> None:
    config = game_config()
    batch = make_runner(config).sample()
    learner = config.build_learner(spaces=make_runner(config).get_spaces())
    plain = ListPolicy(SMALL_GOALRANK, SHAPE)
    update(learner, batch, minibatch_size=len(batch["user_B"]))

    columns = tensors(batch)
    log_prob = plain.group_log_prob(request_of(columns), columns[GROUP_POSITIONS])
    optimizer = torch.optim.Adam(plain.parameters(), lr=SMALL_GOALRANK.lr)
    group_relative_cross_entropy(log_prob, columns[GROUP_VALUE], 1.0, SMALL_GOALRANK.min_spread).backward()
    optimizer.step()
    learned = learner.module["default_policy"].network
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(learned.get_parameter(name), parameter, rtol=1e-3, atol=1e-5)


def update(learner: object, batch: dict[str, np.ndarray], minibatch_size: int = 128) -> None:
    rows = len(batch["user_B"])
    learner.update(  # type: ignore[attr-defined]
        batch=MultiAgentBatch({"default_policy": SampleBatch(batch)}, env_steps=rows),
        num_epochs=1,
        minibatch_size=minibatch_size,
        num_total_minibatches=max(1, rows // minibatch_size),
    )


@pytest.mark.parametrize(
    ("objective", "decoder", "iterations"),
    [
        ("group_relative", "one_softmax", 40),
        ("group_relative", "autoregressive", 25),
        ("grpo", "one_softmax", 90),
        ("grpo", "autoregressive", 30),
    ],
)
def test_solves_the_list_game(objective: str, decoder: str, iterations: int) -> None:
    # A sort by item value reaches 0.73 of the optimum, random lists 0.36.
    config = GoalRankConfig(
        objective=objective, decoder=decoder, width=32, item_embedding=4, lr=3e-3, minibatch_size=128
    )
    runner = make_runner(game_config(config, num_envs=64))
    learner = game_config(config).build_learner(spaces=runner.get_spaces())
    for _ in range(iterations):
        update(learner, runner.sample())
        runner.set_state({"rl_module": learner.get_state(components="rl_module")["rl_module"]})
    policy = runner.module.network
    policy.greedy = True
    assert share_of_optimum(policy) > 0.95
    assert not ray.is_initialized()


def test_a_generator_for_complementarity_alone_learns_the_reverse(tmp_path: Path) -> None:
    """No list lies further from another in pair order (1) than its reverse."""

    def train(method: Method, evaluator: ListEvaluator, run_dir: Path) -> Path:
        asked = game_config(method.config, num_envs=64).training(evaluator=evaluator)
        runner = make_runner(asked)
        learner = asked.build_learner(spaces=runner.get_spaces())
        for _ in range(16):
            update(learner, runner.sample())
            runner.set_state({"rl_module": learner.get_state(components="rl_module")["rl_module"]})
        return save_policy(run_dir / "policy", method, runner.module.network, SHAPE)

    first = PointwiseGreedy(K)
    method = GoalRank(GoalRankConfig(width=32, item_embedding=4, lr=3e-3, minibatch_size=128))
    gain = CligConfig(reward_weight=0)
    (learned,) = search_generators(
        first, TrueValue(), train, num_generators=1, folder=tmp_path, method=method, config=gain
    )
    request = make_request(200, torch.Generator().manual_seed(3))
    one, two = (PolicyLists({"": p}).propose(request, torch.Generator()) for p in (first, learned))
    assert list_distances(request, one, two, "pair_order").mean() > 0.9


def test_values_that_are_not_finite_are_refused() -> None:
    runner = make_runner(game_config().training(evaluator="tests.agents.test_rllib:Broken"))
    with pytest.raises(ValueError, match="Broken values some lists at NaN or infinity"):
        runner.sample()
