"""RLlib's runner and learner in one process, without Ray: what tests of methods train with."""

from typing import Any

import numpy as np
import torch
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from agents.goalrank import GoalRank, GoalRankConfig
from agents.method import Method
from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.env_runner import MethodEnvRunner
from agents.rllib.replay import Replay
from tests.helpers.list_game import ENV
from tests.helpers.planted import planted_world

SMALL_GOALRANK = GoalRankConfig(width=16, heads=2, item_embedding=4, minibatch_size=128, lr=3e-3)
"""Learns the list game in seconds."""


def game_config(
    config: GoalRankConfig = SMALL_GOALRANK, num_envs: int = 16, **env_config: object
) -> MethodAlgorithmConfig:
    """GoalRank in the list game."""
    return (
        MethodAlgorithmConfig(GoalRank)
        .environment(ENV, env_config=env_config)
        .env_runners(num_envs_per_env_runner=num_envs, rollout_fragment_length=8)
        .training(method_config=config)
    )


def quick_game(**settings: Any) -> MethodAlgorithmConfig:
    """The same, so small that a round takes no time; for what is not about learning."""
    return (
        MethodAlgorithmConfig(GoalRank)
        .environment(ENV)
        .env_runners(num_envs_per_env_runner=8, rollout_fragment_length=4)
        .training(**{"width": 8, "heads": 2, "item_embedding": 0, "group_size": 4, "minibatch_size": 16, **settings})
    )


def session_game() -> MethodAlgorithmConfig:
    """GoalRank in a session environment that an evaluation can play."""
    world = planted_world(num_items=20)
    return quick_game().environment(
        "recsim_env/Session-v0", env_config={"world": world, "slate_size": 3, "max_requests": 5}
    )


def learn(method: Method, env: Any, iterations: int, *, num_envs: int = 64, steps: int = 8, **env_config: Any) -> Any:
    """The network after some rounds; greedy where it can be."""
    config = (
        MethodAlgorithmConfig(type(method))
        .environment(env, env_config=env_config)
        .env_runners(num_envs_per_env_runner=num_envs, rollout_fragment_length=steps)
        .training(method_config=method.config)
    )
    runner = MethodEnvRunner(config=config, worker_index=0, num_workers=0)
    learner = config.build_learner(spaces=runner.get_spaces())
    replay = Replay(method.config.replay_size) if method.data == "replay" else None
    generator = torch.Generator().manual_seed(method.config.seed)
    for _ in range(iterations):
        batch, rounds = runner.sample(), method.config.num_epochs
        if replay is not None:
            replay.add(batch)
            if len(replay) < max(method.config.replay_warmup, method.config.minibatch_size):
                continue
            drawn = replay.draw(method.config.updates_per_round * method.config.minibatch_size, generator)
            batch, rounds = {name: column.numpy() for name, column in drawn.items()}, 1
        update(learner, batch, method.config.minibatch_size, rounds)
        runner.set_state({"rl_module": learner.get_state(components="rl_module")["rl_module"]})
    network = runner.module.network
    if hasattr(network, "greedy"):
        network.greedy = True
    return network


def update(learner: Any, batch: dict[str, np.ndarray], minibatch_size: int, num_epochs: int = 1) -> Any:
    rows = len(next(iter(batch.values())))
    return learner.update(
        batch=MultiAgentBatch({"default_policy": SampleBatch(batch)}, env_steps=rows),
        num_epochs=num_epochs,
        minibatch_size=minibatch_size,
        num_total_minibatches=num_epochs * max(1, rows // minibatch_size),
        shuffle_batch_per_epoch=True,
    )
