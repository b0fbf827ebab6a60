"""RLlib's own algorithms on the registered environments: every action form they can take, one to many processes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from agents.baselines import PointwiseGreedy
from agents.rllib.cluster import running_ray
from agents.rllib.offline import export_rollout
from agents.rllib.stock_module import SequenceModule
from recsim_env import RecEnv, RecVectorEnv
from tests.helpers.planted import planted_world

SIZES = {"num_candidates": 6, "slate_size": 2, "history_length": 4, "max_requests": 4}
PLAIN_ID = "recsim_env/Session-v0"


def settings(**overrides: Any) -> dict[str, Any]:
    return {"world": planted_world(num_items=12, hazard=0.05), **SIZES, **overrides}


def ppo(mode: str = "vector_entry_point", num_envs: int = 16, runners: int = 0, **env_config: Any) -> PPOConfig:
    return (
        PPOConfig()
        .environment(PLAIN_ID, env_config=settings(**env_config))
        .env_runners(
            num_env_runners=runners,
            num_envs_per_env_runner=num_envs,
            gym_env_vectorize_mode=mode,
            rollout_fragment_length=16,
        )
        .training(train_batch_size_per_learner=num_envs * 16 * max(runners, 1), minibatch_size=16, num_epochs=2)
        .debugging(seed=0)
    )


def returns_of(config: Any, iterations: int) -> list[float]:
    algorithm = config.build_algo()
    try:
        results = [algorithm.train() for _ in range(iterations)]
    finally:
        algorithm.stop()
    return [result["env_runners"]["episode_return_mean"] for result in results]


@pytest.mark.parametrize("action", ["slate", "scores", "weights", "items"])
def test_ppo_plays_every_form(action: str) -> None:
    returns = returns_of(ppo(action=action), 2)
    assert np.isfinite(returns).all()
    assert min(returns) > 0


@pytest.mark.parametrize(("mode", "num_envs"), [("sync", 4), ("vector_entry_point", 1)])
def test_ppo_steps_single_and_batched_environments(mode: str, num_envs: int) -> None:
    assert min(returns_of(ppo(mode, num_envs), 2)) > 0


@pytest.mark.slow
def test_ppo_learns() -> None:
    # Item i is watched for 1 + i seconds and predicted so: all it has to find is a positive weight for watch time.
    config = ppo(action="weights", num_envs=64, world=planted_world(num_items=60, hazard=0.05))
    returns = returns_of(config.training(lr=1e-3, minibatch_size=256, num_epochs=4), 15)
    assert np.mean(returns[-3:]) > 1.2 * np.mean(returns[:2])


@pytest.mark.parametrize("observation", ["ids", "both"])
def test_our_module_reads_item_codes(observation: str) -> None:
    spec = RLModuleSpec(module_class=SequenceModule, model_config={"width": 16, "item_embedding": 4})
    assert min(returns_of(ppo(observation=observation).rl_module(rl_module_spec=spec), 2)) > 0


def test_our_module_needs_item_codes() -> None:
    with pytest.raises(ValueError, match="reads the observation forms 'ids' and 'both'"):
        ppo().rl_module(rl_module_spec=RLModuleSpec(module_class=SequenceModule)).build_algo()


@pytest.mark.parametrize("action", ["scores", "weights"])
def test_sac_plays_continuous_forms(action: str) -> None:
    config = (
        SACConfig()
        .environment(PLAIN_ID, env_config=settings(action=action))
        .env_runners(num_envs_per_env_runner=8, gym_env_vectorize_mode="vector_entry_point", rollout_fragment_length=8)
        .training(train_batch_size_per_learner=32, num_steps_sampled_before_learning_starts=64)
    )
    assert np.isfinite(returns_of(config, 2)).any()


def test_dqn_picks_one_video() -> None:
    config = (
        DQNConfig()
        .environment(PLAIN_ID, env_config=settings(action="pick", slate_size=1))
        .env_runners(num_envs_per_env_runner=8, gym_env_vectorize_mode="vector_entry_point", rollout_fragment_length=8)
        .training(train_batch_size_per_learner=32, num_steps_sampled_before_learning_starts=64)
    )
    assert np.isfinite(returns_of(config, 2)).any()


def test_picking_shows_that_candidate_and_needs_one_place() -> None:
    env = RecEnv(**settings(action="pick", slate_size=1))
    env.reset(seed=0)
    request = env._vector.request
    env.step(3)
    assert int(env._vector.request.history_BH[0, -1]) == int(request.candidates_BC[0, 3])
    with pytest.raises(ValueError, match="'pick' shows one video: give slate_size=1"):
        RecEnv(**settings(action="pick"))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with running_ray(4):
        yield


@pytest.mark.slow
def test_remote_runners_know_the_plain_id(local_ray: None) -> None:
    assert min(returns_of(ppo(runners=2), 2)) > 0


@pytest.fixture(scope="module")
def rollout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rollout") / "rollout.parquet"
    export_rollout(RecVectorEnv(16, **settings()), PointwiseGreedy(2), 40, path)
    return path


def test_an_exported_rollout_holds_every_step_once(rollout: Path) -> None:
    import pandas as pd

    table = pd.read_parquet(rollout)
    sessions = table.groupby("eps_id")
    assert (sessions["t"].apply(list) == sessions["t"].count().apply(lambda n: list(range(n)))).all()
    ended = table["terminateds"] | table["truncateds"]
    assert (sessions["t"].max()[table[ended]["eps_id"]].to_numpy() == table[ended]["t"].to_numpy()).all()
    following = table[~ended].merge(table, left_on=["eps_id", table["t"][~ended] + 1], right_on=["eps_id", "t"])
    assert len(following) > 100
    assert all(np.array_equal(a, b) for a, b in zip(following["new_obs_x"], following["obs_y"], strict=True))
    # Item i is watched for 1 + i seconds, and the predictor knows: the greedy policy earns the two best candidates.
    assert table["rewards"].mean() > 12
    with pytest.raises(ValueError, match="needs action='slate' and observation='features'"):
        export_rollout(RecVectorEnv(2, **settings(action="scores")), PointwiseGreedy(2), 2, rollout)


@pytest.mark.slow
@pytest.mark.parametrize("config_class", [BCConfig, MARWILConfig])
def test_offline_algorithms_read_an_exported_rollout(config_class: Any, rollout: Path, local_ray: None) -> None:
    env = RecVectorEnv(1, **settings())
    config = (
        config_class()
        .environment(observation_space=env.single_observation_space, action_space=env.single_action_space)
        .offline_data(
            input_=[str(rollout)],
            input_read_method="read_parquet",
            map_batches_kwargs={"concurrency": 1, "num_cpus": 1},
            dataset_num_iters_per_learner=5,
        )
        .training(train_batch_size_per_learner=128, lr=1e-3)
    )
    algorithm = config.build_algo()
    losses = [algorithm.train()["learners"]["default_policy"]["policy_loss"] for _ in range(4)]
    algorithm.stop()
    assert losses[-1] < losses[0]  # what the greedy policy shows becomes likelier
