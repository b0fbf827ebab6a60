"""Learners of other libraries as policies: the slates are those that the environment would have shown."""

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from stable_baselines3 import PPO

from agents.adapters import ActionPolicy, rllib_policy, sb3_policy
from agents.baselines import PointwiseGreedy
from agents.sb3 import RecVecEnv
from recsim_env import RecVectorEnv
from recsim_env.checkers import check_policy
from recsim_env.evaluation import EvaluationSettings, evaluate
from tests.helpers.planted import planted_world

SIZES = {"num_candidates": 8, "slate_size": 3, "history_length": 4, "max_requests": 4}


def make(num_envs: int = 4, **form: str) -> RecVectorEnv:
    return RecVectorEnv(num_envs, planted_world(), **{**SIZES, **form})


def test_a_weight_for_watch_time_is_the_pointwise_sort() -> None:
    env = make(action="weights")
    policy = ActionPolicy(env, lambda observation: np.tile([1.0, 0.0], (len(observation), 1)))
    request = RecVectorEnv(50, planted_world(), **SIZES).reset_tensors(seed=1)
    assert torch.equal(
        policy(request, torch.Generator()).items_BK, PointwiseGreedy(3)(request, torch.Generator()).items_BK
    )


@pytest.mark.parametrize("action", ["slate", "scores"])
def test_sb3_models_show_what_the_environment_would(action: str) -> None:
    model = PPO(
        "MlpPolicy", RecVecEnv(make(action=action, autoreset_mode="SameStep")), n_steps=16, batch_size=64, seed=0
    )
    model.learn(128)
    env = make(action=action)
    observation, _ = env.reset(seed=3)
    request = env.request
    actions, _ = model.predict(observation, deterministic=True)
    env.step(actions)
    played = sb3_policy(model, make(1, action=action))(request, torch.Generator()).items_BK
    assert torch.equal(played, env.slates_of(request, actions))
    settings = EvaluationSettings(**SIZES, true_values=False)
    result = evaluate(
        {"sb3": sb3_policy(model, make(1, action=action)), "sort": PointwiseGreedy(3)},
        {"planted": planted_world()},
        num_sessions=100,
        seed=0,
        settings=settings,
        progress=False,
    )
    assert result.difference("sb3", "sort", "planted").mean < 0  # barely trained, it cannot beat the true sort


@pytest.mark.parametrize("action", ["slate", "scores"])
def test_rllib_modules_are_policies(action: str) -> None:
    world = planted_world(num_items=20)
    config = (
        PPOConfig()
        .environment("recsim_env:recsim_env/Session-v0", env_config={"world": world, **SIZES, "action": action})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4, gym_env_vectorize_mode="vector_entry_point")
    )
    algorithm = config.build_algo()
    module = algorithm.get_module()
    algorithm.stop()
    policy = rllib_policy(module, RecVectorEnv(1, world, **SIZES, action=action))
    request = RecVectorEnv(6, world, **SIZES).reset_tensors(seed=1)
    items = policy(request, torch.Generator()).items_BK
    assert items.shape == (6, 3)
    assert torch.equal(items, policy(request, torch.Generator()).items_BK)


def test_actions_of_another_shape_are_refused() -> None:
    policy = ActionPolicy(make(action="weights"), lambda observation: np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"actions must have the shape \(5, 2\), got \(1, 2\)"):
        policy(RecVectorEnv(5, planted_world(), **SIZES).reset_tensors(seed=1), torch.Generator())


def test_the_checker_takes_them() -> None:
    env = RecVectorEnv(1, "tiny", action="scores")
    number = env.single_action_space.shape[0]  # type: ignore[index]
    check_policy(
        ActionPolicy(env, lambda observation: np.tile(np.linspace(1, -1, number), (len(observation), 1))), "tiny"
    )
