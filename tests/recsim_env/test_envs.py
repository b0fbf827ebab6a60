"""The Gymnasium faces: the public contract, the action and observation forms, and ends of episodes."""

import dataclasses
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import recsim_env
from recsim_env import RecEnv, RecVectorEnv
from recsim_env.assumptions import DeclaredContext, DeclaredLeave
from recsim_env.known_worlds import short_video_world
from recsim_env.observations import BOUND
from recsim_env.rewards import SignalReward, aspect_rewards
from recsim_env.simulator import SessionState
from recsim_env.slates import first_showing
from recsim_env.tasks import TASKS
from recsim_env.types import CONTEXT, Feedback
from recsim_env.world import World

ACTIONS = ["slate", "items", "scores", "weights", "hyper"]
OBSERVATIONS = ["features", "ids", "both"]
SIZES = {"num_candidates": 20, "slate_size": 4, "history_length": 12, "max_requests": 6}


@pytest.fixture(scope="module")
def world() -> World:
    return short_video_world(num_users=100, num_items=300, seed=1)


@pytest.mark.parametrize("env_id", ["recsim_env/Session-v0", "recsim_env/Request-v0"])
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_gymnasium_checker_is_silent(world: World, env_id: str, action: str, observation: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id, world=world, action=action, observation=observation, **SIZES)
        check_env(env.unwrapped, skip_render_check=action != "slate")


@pytest.mark.parametrize("action", ["slate", "scores"])
def test_stable_baselines_checker_is_silent(world: World, action: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(RecEnv(world, action=action, **SIZES))


def test_every_way_of_making_it() -> None:
    single = gym.make("recsim_env:recsim_env/Session-v0", world="tiny")
    assert isinstance(single.unwrapped, RecEnv)
    vector = gym.make_vec("recsim_env/Session-v0", num_envs=3, vectorization_mode="vector_entry_point", world="tiny")
    assert isinstance(vector.unwrapped, RecVectorEnv)
    assert vector.num_envs == 3
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize("action", ACTIONS)
def test_single_env_equals_vector_row(world: World, action: str) -> None:
    vector = RecVectorEnv(5, world, action=action, observation="both", autoreset_mode="Disabled", **SIZES)
    single = RecEnv(world, action=action, observation="both", **SIZES)
    vector.action_space.seed(3)
    many, _ = vector.reset(seed=40)
    one, _ = single.reset(seed=42)
    for _ in range(6):
        assert all(np.array_equal(many[name][2], one[name]) for name in one)
        actions = vector.action_space.sample()
        many, rewards, terminated, truncated, infos = vector.step(actions)
        one, reward, ended, cut, info = single.step(actions[2])
        assert (rewards[2], terminated[2], truncated[2]) == (reward, ended, cut)
        assert np.array_equal(infos["signals"][2], info["signals"])


def test_observations_stay_inside_their_space(world: World) -> None:
    env = RecVectorEnv(16, world, observation="both", **SIZES)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    for _ in range(12):
        assert env.observation_space.contains(observation)
        observation, *_ = env.step(env.action_space.sample())
    beyond = np.delete(observation["features"], [CONTEXT.index("hour"), CONTEXT.index("request_index")], axis=1)
    assert np.abs(beyond).max() <= BOUND


def test_hours_and_requests_are_told_apart_to_the_last(world: World) -> None:
    late = DeclaredContext(hour_weights=(*(21 * [0.0]), 0.0, 0.0, 1.0))
    patient = DeclaredLeave(per_place=0, per_second=0, per_dull_place=0)
    env = RecVectorEnv(3, world.replace(contexts=late, leave=patient), **{**SIZES, "max_requests": 40})
    observation, _ = env.reset(seed=0)
    assert (observation[:, CONTEXT.index("hour")] == 23).all()
    for _ in range(30):
        observation, *_ = env.step(np.tile(np.arange(4), (3, 1)))
        assert env.observation_space.contains(observation)
    assert (observation[:, CONTEXT.index("request_index")] == 30).all()


def endings(world: World, mode: str, steps: int) -> list[tuple[np.ndarray, ...]]:
    env = RecVectorEnv(8, world, autoreset_mode=mode, **SIZES)
    env.reset(seed=7)
    found = []
    for _ in range(steps):
        items = env.request.candidates_BC[:, :4]
        step = env.step_tensors(items)
        found.append(
            tuple(t.clone().numpy() for t in (step.reward_B, step.terminated_B, step.truncated_B, step.valid_B))
        )
    return found


def test_next_step_autoreset_spends_one_call_on_the_reset(world: World) -> None:
    """SAME_STEP plays the same sessions without the calls that only reset."""
    spaced, packed = endings(world, "NextStep", 24), endings(world, "SameStep", 12)
    for row in range(8):
        played = [(r[row], t[row], u[row]) for r, t, u, valid in spaced if valid[row]]
        ignored = [(r[row], t[row], u[row]) for r, t, u, valid in spaced if not valid[row]]
        assert all(reward == 0 and not term and not trunc for reward, term, trunc in ignored)
        expected = [(r[row], t[row], u[row]) for r, t, u, _ in packed]
        assert played[:12] == expected[: len(played)][:12]


def test_the_action_of_a_reset_call_is_ignored(world: World) -> None:
    first, second = (RecVectorEnv(8, world, **SIZES) for _ in range(2))
    first.reset(seed=7)
    second.reset(seed=7)
    ended = np.zeros(8, dtype=bool)
    for _ in range(15):
        actions = np.tile(np.arange(4), (8, 1))
        noisy = actions.copy()
        noisy[ended] = 19
        a, *_ = first.step(actions)
        b, _, terminated, truncated, _ = second.step(noisy)
        assert np.array_equal(a, b)
        ended = terminated | truncated


def test_same_step_hands_over_the_final_observation(world: World) -> None:
    env = RecVectorEnv(8, world, autoreset_mode=AutoresetMode.SAME_STEP, **SIZES)
    frozen = RecVectorEnv(8, world, autoreset_mode=AutoresetMode.DISABLED, **SIZES)
    env.reset(seed=3)
    frozen.reset(seed=3)
    action = np.tile(np.arange(4), (8, 1))
    ended = np.zeros(8, dtype=bool)
    while not ended.all():
        _, _, _, _, infos = env.step(action)
        last, _, terminated, truncated, _ = frozen.step(action)
        fresh = (terminated | truncated) & ~ended
        if fresh.any():
            rows = infos["_final_obs"] & fresh
            assert np.array_equal(rows, fresh)
            assert np.array_equal(infos["final_obs"][rows], last[rows])
        ended |= terminated | truncated


def test_disabled_autoreset_freezes_ended_rows_until_the_mask_resets_them(world: World) -> None:
    env = RecVectorEnv(6, world, autoreset_mode=AutoresetMode.DISABLED, task="request", **SIZES)
    env.reset(seed=0)
    action = np.tile(np.arange(4), (6, 1))
    first, reward, terminated, _, _ = env.step(action)
    assert terminated.all()
    again, reward, terminated, _, _ = env.step(action)
    assert np.array_equal(first, again)
    assert not reward.any()
    assert terminated.all()
    mask = np.array([True, False] * 3)
    env.reset(options={"reset_mask": mask})
    _, reward, terminated, _, infos = env.step(action)
    assert np.array_equal(infos["_seen"], mask)
    with pytest.raises(ValueError, match="reset_mask must be a boolean array of length 6"):
        env.reset(options={"reset_mask": np.ones(5, dtype=bool)})


@pytest.mark.parametrize("seed", [70, np.int64(70), [70, None, 72, None, 74, None]])
def test_a_mask_and_a_seed_begin_the_sessions_of_the_seed_in_the_rows_of_the_mask(world: World, seed: object) -> None:
    env = RecVectorEnv(6, world, autoreset_mode=AutoresetMode.DISABLED, **SIZES)
    first, _ = env.reset(seed=0)
    fresh, _ = RecVectorEnv(6, world, **SIZES).reset(seed=70)
    mask = np.array([True, False] * 3)
    mixed, _ = env.reset(seed=seed, options={"reset_mask": mask})  # type: ignore[arg-type]
    assert np.array_equal(mixed[mask], fresh[mask])
    assert np.array_equal(mixed[~mask], first[~mask])
    with pytest.raises(ValueError, match="need one integer seed for each of 6"):
        env.reset(seed=[None] * 6, options={"reset_mask": mask})
    with pytest.raises(ValueError, match=r"unknown reset options \['mask'\]"):
        env.reset(options={"mask": mask})


def test_leaving_terminates_and_the_limit_truncates(world: World) -> None:
    patient = world.replace(leave=DeclaredLeave(per_place=0, per_second=0, per_dull_place=0))
    env = RecVectorEnv(4, patient, **SIZES)
    env.reset(seed=0)
    for request in range(1, 7):
        step = env.step_tensors(env.request.candidates_BC[:, :4])
        assert not step.terminated_B.any()
        assert bool(step.truncated_B.all()) is (request == 6)
    hasty = RecVectorEnv(4, world.replace(leave=DeclaredLeave(per_place=50.0)), **SIZES)
    hasty.reset(seed=0)
    step = hasty.step_tensors(hasty.request.candidates_BC[:, :4])
    assert step.terminated_B.all()
    assert not step.truncated_B.any()
    assert step.feedback.seen_BK[:, 0].all()
    assert not step.feedback.seen_BK[:, 1:].any()


def test_action_forms_mean_what_they_say(world: World) -> None:
    env = RecVectorEnv(3, world, action="scores", **SIZES)
    env.reset(seed=0)
    candidates = env.request.candidates_BC
    scores = torch.linspace(-1, 1, 20).repeat(3, 1)
    assert torch.equal(env._action.decode(env.request, scores), candidates[:, [19, 18, 17, 16]])
    weights = RecVectorEnv(3, world, action="weights", **SIZES)
    weights.reset(seed=0)
    only_watch = torch.zeros(3, len(world.signals))
    only_watch[:, 0] = 1.0
    best = env.request.predicted_BCF[..., 0].topk(4, dim=1).indices
    assert torch.equal(weights._action.decode(weights.request, only_watch), candidates.gather(1, best))
    hyper = RecVectorEnv(3, world, action="hyper", **SIZES)
    hyper.reset(seed=0)
    vector = torch.zeros(3, world.catalogue.features_ND.shape[1])
    vector[:, 0] = -1.0
    chosen = hyper._action.decode(hyper.request, vector)
    value = world.catalogue.features_ND[:, 0]
    assert torch.allclose(value[chosen], value[candidates].sort(dim=1).values[:, :4])


def test_a_repeated_video_earns_nothing_and_is_counted(world: World) -> None:
    env = RecEnv(world, **SIZES)
    env.reset(seed=5)
    _, reward, _, _, info = env.step(np.array([2, 2, 1, 2]))
    assert info["repeats"] == 2
    kept = info["signals"][[0, 2], 0].sum()
    assert reward == pytest.approx(float(kept))
    assert first_showing(torch.tensor([[4, 4, 5, 4]])).tolist() == [[True, False, True, False]]


def test_every_signal_is_a_reward_of_its_own_for_those_who_want_it(world: World) -> None:
    reward = aspect_rewards(world.signals)
    env = RecEnv(world, reward=reward, **SIZES)
    env.reset(seed=2)
    _, total, _, _, info = env.step(np.arange(4))
    assert tuple(info["rewards"]) == world.signals
    for index, name in enumerate(world.signals):
        assert info["rewards"][name] == pytest.approx(float(info["signals"][:, index].sum()))
    assert total == pytest.approx(info["rewards"]["watch_time"])
    weighted = aspect_rewards(world.signals, {"like": 3.0})
    vector = RecVectorEnv(5, world, reward=weighted, **SIZES)
    vector.reset_tensors(0)
    step = vector.step_tensors(vector.request.candidates_BC[:, :4])
    assert step.rewards_BR.shape == (5, len(world.signals))
    assert torch.equal(step.reward_B, 3.0 * step.rewards_BR[:, world.signals.index("like")])
    with pytest.raises(ValueError, match="unknown signal 'likes'"):
        aspect_rewards(world.signals, {"likes": 1.0})


def test_reward_components_and_weights(world: World) -> None:
    reward = SignalReward({"watch_time": 1.0, "click": 10.0}, world.signals)
    env = RecEnv(world, reward=reward, **SIZES)
    env.reset(seed=2)
    _, total, _, _, info = env.step(np.arange(4))
    signals = info["signals"]
    assert info["rewards"]["watch_time"] == pytest.approx(float(signals[:, 0].sum()))
    assert info["rewards"]["click"] == float(signals[:, 1].sum())
    assert total == pytest.approx(float(signals[:, 0].sum() + 10 * signals[:, 1].sum()))
    with pytest.raises(ValueError, match=r"unknown signal 'clik'.*did you mean 'click'"):
        SignalReward({"clik": 1.0}, world.signals)


def test_seeds_repeat_and_continue(world: World) -> None:
    env = RecEnv(world, **SIZES)
    first, _ = env.reset(seed=1)
    following, _ = env.reset()
    again, _ = env.reset(seed=1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, following)
    assert np.array_equal(env.reset()[0], following)
    assert np.array_equal(env.reset(seed=np.int32(1))[0], first)  # type: ignore[arg-type]
    vector = RecVectorEnv(2, world, **SIZES)
    rows, _ = vector.reset(seed=[9, 1])
    assert np.array_equal(rows[1], first)


def test_rendering_reads_like_a_session(world: World) -> None:
    env = gym.make("recsim_env/Session-v0", world=world, render_mode="ansi", **SIZES).unwrapped
    env.reset(seed=0)
    assert "request 0" in env.render()
    env.step(np.arange(4))
    text = env.render()
    assert "  1. video" in text
    assert "watched" in text


def test_a_picture_shows_the_last_slate(world: World) -> None:
    env = gym.make("recsim_env/Session-v0", world=world, render_mode="rgb_array", **SIZES).unwrapped
    env.reset(seed=0)
    blank = env.render()
    assert blank.dtype == np.uint8
    assert (blank == 255).all()
    *_, info = env.step(np.arange(4))
    image = env.render()
    assert image.shape == blank.shape
    watched = (image == (40, 110, 190)).all(axis=2).sum(axis=0)[8:].reshape(4, 32)[:, 0] / 120 * 120.0
    assert watched == pytest.approx(np.minimum(info["signals"][:, 0], 120.0), abs=0.51)


@dataclasses.dataclass(frozen=True)
class UntilLike:
    """An episode ends with the first like."""

    name: str = "until_like"

    def is_over(self, state: SessionState, feedback: Feedback) -> torch.Tensor:
        return feedback.signals_BKF[..., 3].any(dim=1)


def test_a_task_says_when_an_episode_is_over(world: World) -> None:
    env = RecVectorEnv(40, world, task=UntilLike(), **SIZES)
    env.reset_tensors(0)
    step = env.step_tensors(env.request.candidates_BC[:, :4])
    assert torch.equal(step.terminated_B, step.feedback.signals_BKF[..., 3].any(dim=1))
    assert 0 < int(step.terminated_B.sum()) < 40


@dataclasses.dataclass(frozen=True)
class ThreeRequests:
    """An episode ends with the third request, whatever the user does."""

    name: str = "three_requests"

    def is_over(self, state: SessionState, feedback: Feedback) -> torch.Tensor:
        return state.request_index_B >= 3


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_strangers_task_looks_at_the_session(world: World, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Also where one call ends an episode and the next, or the same, begins another."""
    monkeypatch.setitem(TASKS, "three_requests", ThreeRequests())
    env = RecVectorEnv(5, world, task="three_requests", autoreset_mode=mode, **SIZES)
    env.reset_tensors(0)
    ends = []
    for _ in range(9):
        step = env.step_tensors(env.request.candidates_BC[:, :4])
        assert len(set(step.terminated_B.tolist())) == 1
        assert not step.truncated_B.any()
        ends.append(bool(step.terminated_B[0]))
    period = 4 if mode == "NextStep" else 3
    assert ends == [call % period == 2 for call in range(9)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slate_sise": 3}, "unknown setting 'slate_sise'.*did you mean 'slate_size'"),
        ({"action": "slates"}, "unknown action form 'slates'.*did you mean 'slate'"),
        ({"observation": "feature"}, "unknown observation form 'feature'.*did you mean 'features'"),
        ({"task": "day"}, "unknown task 'day'; allowed: .'session', 'request'.*"),
    ],
)
def test_misspelt_settings(world: World, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecEnv(world, **settings)


def test_unknown_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match="no world 'nowhere': give one of the names"):
        RecEnv("nowhere")


def test_wrong_shapes_and_steps_before_reset(world: World) -> None:
    env = RecVectorEnv(2, world, **SIZES)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have the shape \(2, 4\), got \(2, 3\)"):
        env.step(np.zeros((2, 3), dtype=np.int64))


def test_package_names_are_public() -> None:
    assert {"RecEnv", "RecVectorEnv", "World", "Simulator"} <= set(recsim_env.__all__)
