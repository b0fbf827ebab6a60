"""The Stable-Baselines3 adapter: the same numbers as the batched environment, and a learner that learns."""

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from agents.sb3 import RecVecEnv
from recsim_env import RecVectorEnv
from recsim_env.known_worlds import TINY_SIZES, tiny_optimum, tiny_world
from tests.helpers.planted import planted_world

SIZES = {"num_candidates": 8, "slate_size": 3, "history_length": 4, "max_requests": 4}


def make(num_envs: int = 32, observation: str = "features") -> RecVectorEnv:
    world = planted_world(hazard=0.05)
    return RecVectorEnv(num_envs, world, autoreset_mode="SameStep", observation=observation, **SIZES)


@pytest.mark.parametrize("observation", ["features", "both"])
def test_every_step_equals_the_batched_environment(observation: str) -> None:
    adapter, plain = RecVecEnv(make(observation=observation)), make(observation=observation)
    adapter.seed(7)
    first = adapter.reset()
    same, _ = plain.reset(seed=list(range(7, 7 + 32)))
    _assert_equal(first, same)
    rng = np.random.default_rng(0)
    kinds = {True: 0, False: 0}
    for _ in range(15):
        actions = np.stack([rng.permutation(8)[:3] for _ in range(32)])
        seen, reward, done, infos = adapter.step(actions)
        expected, expected_reward, terminated, truncated, batched = plain.step(actions)
        _assert_equal(seen, expected)
        np.testing.assert_array_equal(reward, expected_reward.astype(np.float32))
        assert reward.dtype == np.float32
        np.testing.assert_array_equal(done, terminated | truncated)
        for row, info in enumerate(infos):
            if not done[row]:
                assert info == {}
                continue
            final = batched["final_obs"]
            final = {name: array[row] for name, array in final.items()} if observation == "both" else final[row]
            _assert_equal(info["terminal_observation"], final)
            assert info["TimeLimit.truncated"] == bool(truncated[row])
            kinds[info["TimeLimit.truncated"]] += 1
    assert min(kinds.values()) > 0


def _assert_equal(a: object, b: object) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()  # type: ignore[attr-defined]
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])  # type: ignore[index]
    else:
        np.testing.assert_array_equal(a, b)


def test_monitor_counts_whole_sessions() -> None:
    env = VecMonitor(RecVecEnv(make()))
    env.seed(0)
    env.reset()
    rng = np.random.default_rng(0)
    total, finished, running = 0.0, 0.0, np.zeros(32)
    for _ in range(12):
        _, reward, done, infos = env.step(np.stack([rng.permutation(8)[:3] for _ in range(32)]))
        total += reward.sum()
        running += reward
        finished += sum(infos[row]["episode"]["r"] for row in np.flatnonzero(done))
        running[done] = 0
    assert finished + running.sum() == pytest.approx(total, rel=1e-4)


def test_other_modes_and_partial_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="SameStep"):
        RecVecEnv(RecVectorEnv(2, planted_world(), **SIZES))
    env = RecVecEnv(make(4))
    assert env.get_attr("num_envs", [0, 2]) == [4, 4]
    assert env.env_is_wrapped(VecMonitor) == [False] * 4
    env.set_attr("render_mode", "ansi")
    assert env.env.render_mode == "ansi"
    env.reset()
    assert len(env.env_method("render")) == 4
    with pytest.raises(ValueError, match="share one object"):
        env.set_attr("render_mode", None, indices=[1])


def test_ppo_nearly_reaches_the_optimum_of_the_tiny_world() -> None:
    # Random slates reach 0.58 of it, the best pointwise ranker, which sees the truth, 0.75. No video earns twice, so
    # what both earlier slates showed must be in the observation.
    world, sizes = tiny_world(), TINY_SIZES | {"history_length": 6}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        env = VecNormalize(RecVecEnv(RecVectorEnv(64, world, autoreset_mode="SameStep", **sizes)), gamma=1.0)
        model = PPO(
            "MlpPolicy", env, n_steps=16, batch_size=256, n_epochs=4, gamma=1.0, learning_rate=1e-3, ent_coef=0.01,
            seed=0, device="cpu",
        )  # fmt: skip
        model.learn(300_000)
        num_sessions = 20_000
        played = RecVectorEnv(num_sessions, world, autoreset_mode="Disabled", **sizes)
        observation, _ = played.reset(seed=10**6)
        total, over = np.zeros(num_sessions), np.zeros(num_sessions, dtype=bool)
        for _ in range(sizes["max_requests"]):
            slates, _ = model.predict(env.normalize_obs(observation), deterministic=True)
            observation, reward, terminated, truncated, _ = played.step(slates)
            total += reward * ~over
            over |= terminated | truncated
    finally:
        torch.set_num_threads(threads)
    assert over.all()
    assert total.mean() / tiny_optimum(world).session_watch_time > 0.95


@pytest.mark.parametrize("env_id", ["recsim_env/Session-v0", "recsim_env:recsim_env/Session-v0"])
def test_stable_baselines_makes_the_registered_environments_itself(env_id: str) -> None:
    env = make_vec_env(env_id, n_envs=2, seed=5, env_kwargs={"world": planted_world(), **SIZES})
    batched = RecVectorEnv(2, planted_world(), **SIZES)
    assert np.array_equal(env.reset(), batched.reset(seed=[5, 6])[0])
    image = env.env_method("render")[0]
    assert image.dtype == np.uint8
    PPO("MlpPolicy", env, n_steps=8, batch_size=8).learn(16)
