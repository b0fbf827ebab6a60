"""Settings of RLlib and of methods take effect, in any order, or are refused."""

from typing import Any

import pytest
import torch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from agents.goalrank import GoalRank, GoalRankConfig
from agents.rl.behaviour_cloning import BehaviourCloning
from agents.rl.ppo import PPO
from agents.rl.td3 import TD3
from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.env_runner import MethodEnvRunner
from agents.rllib.export import learned_network
from agents.rllib.module import MethodModule
from recsim_env.data.requests import logged_requests
from recsim_env.known_worlds import short_video_world
from recsim_env.known_worlds.logs import synthetic_log
from tests.helpers.list_game import ENV
from tests.helpers.rllib_loop import quick_game, session_game

SMALL = {"width": 8, "heads": 2, "item_embedding": 0, "group_size": 4}


def used(config: MethodAlgorithmConfig) -> tuple[float, float, int]:
    """Learning rate of the optimiser, and what the exported config says of rate and seed."""
    algorithm = config.build_algo()
    try:
        (optimiser,) = algorithm.learner_group._learner._named_optimizers.values()
        exported = learned_network(algorithm).config
        return optimiser.param_groups[0]["lr"], exported.lr, exported.seed
    finally:
        algorithm.stop()


@pytest.mark.parametrize("order", ["first", "last"])
def test_learning_rate_and_seed_take_effect_in_any_order(order: str) -> None:
    config = MethodAlgorithmConfig().environment(ENV).env_runners(num_envs_per_env_runner=8)
    if order == "first":
        config = config.training(lr=1e-5).debugging(seed=7).training(method=GoalRank, method_config=SMALL)
    else:
        config = config.training(method=GoalRank, method_config=GoalRankConfig(**SMALL)).debugging(seed=7)
        config = config.training(lr=1e-5)
    assert used(config) == (pytest.approx(1e-5), 1e-5, 7)


def test_defaults_are_the_methods_own() -> None:
    rate, exported, seed = used(quick_game())
    assert (rate, exported, seed) == (pytest.approx(GoalRankConfig().lr), GoalRankConfig().lr, 0)
    config = quick_game()
    config.validate()
    assert (config.lr, config.grad_clip, config.num_epochs, config.minibatch_size) == (2e-3, 5.0, 2, 16)


def test_what_is_said_last_counts() -> None:
    whole = MethodAlgorithmConfig(GoalRank).training(group_size=4).training(method_config=GoalRankConfig())
    assert whole.make_method().config.group_size == GoalRankConfig().group_size
    assert whole.training(group_size=4).make_method().config.group_size == 4


def test_what_was_validated_can_be_set_again() -> None:
    config = quick_game()
    config.validate()
    assert config.lr == 2e-3
    again = config.training(method_config={"lr": 1e-4, "grad_clip": 1.0, "seed": 3}).make_method().config
    assert (again.lr, again.grad_clip, again.seed) == (1e-4, 1.0, 3)
    config.validate()
    assert (config.lr, config.grad_clip, config.seed) == (1e-4, 1.0, 3)


@pytest.mark.parametrize("how", [{"grad_clip": None}, {"method_config": {"grad_clip": None}}])
def test_clipping_can_be_switched_off(how: dict[str, Any]) -> None:
    """A huge gradient arrives whole: under the method's own limit it would have the norm 5."""
    algorithm = quick_game(**how).build_algo()
    learner = algorithm.learner_group._learner
    parameters = list(learner._params.items())
    grown = learner.postprocess_gradients({name: torch.full_like(p, 1e3) for name, p in parameters})
    exported = learned_network(algorithm).config
    algorithm.stop()
    assert exported.grad_clip is None
    assert all(bool((gradient == 1e3).all()) for gradient in grown.values())
    with pytest.raises(ValueError, match="lr must be a number, got None"):
        quick_game(lr=None).make_method()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shuffle_batch_per_epoch": False}, "shuffle_batch_per_epoch has no place .*: every pass is shuffled"),
        ({"model": {"fcnet_hiddens": [8]}}, "model has no place in the batched path: the method builds its network"),
        ({"optimizer": {"eps": 1e-3}}, "optimizer has no place in the batched path: .* give lr"),
        ({"train_batch_size": 99}, "train_batch_size has no place in the batched path"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick_game(**settings).build_algo()


def test_settings_of_runners_and_environments_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_mode has no place"):
        quick_game().env_runners(batch_mode="complete_episodes").validate()
    with pytest.raises(ValueError, match=r"clip_rewards has no place .*: it shows slates"):
        quick_game().environment(clip_rewards=True).validate()
    with pytest.raises(ValueError, match="model_config has no place"):
        quick_game().rl_module(model_config={"fcnet_hiddens": [8]}).validate()
    with pytest.raises(ValueError, match="num_epochs=3 would have no effect on what learns from a replay"):
        MethodAlgorithmConfig(TD3).environment(ENV).training(num_epochs=3).validate()


def test_contradictions_and_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lr was given twice: 0.1 in method_config, 1e-05 beside it; give one"):
        quick_game(method_config=GoalRankConfig(lr=0.1), lr=1e-5).build_algo()
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'group_sise'; settings of the method"):
        quick_game(group_sise=3)
    with pytest.raises(ValueError, match="a group needs at least 2 lists"):
        quick_game(group_size=1).build_algo()
    with pytest.raises(ValueError, match=r"train_batch_size_per_learner=999 contradicts what a round samples: 32 rows"):
        quick_game(train_batch_size_per_learner=999).build_algo()
    quick_game(train_batch_size_per_learner=32).validate()
    with pytest.raises(ValueError, match="no method to train"):
        MethodAlgorithmConfig().environment(ENV).build_algo()
    with pytest.raises(ValueError, match="learns from a log: give"):
        MethodAlgorithmConfig("agents.rl.behaviour_cloning:BehaviourCloning").environment(ENV).build_algo()


def test_settings_reach_the_method_by_every_way_that_rllib_has() -> None:
    attribute, early = quick_game(), MethodAlgorithmConfig().environment(ENV)
    attribute.group_size = 5
    early.update_from_dict({"group_size": 6, "width": 8})
    early.training(method=GoalRank)
    updated = quick_game(group_size=8).update_from_dict({"group_size": 7})
    assert [c.make_method().config.group_size for c in (attribute, early, updated)] == [5, 6, 7]
    assert early.copy().make_method().config.group_size == 6
    before = MethodAlgorithmConfig().environment(ENV).training(gamma=0.5).training(method=PPO)
    set_later = MethodAlgorithmConfig(PPO).environment(ENV).training(gamma=0.4)
    set_later.gamma = 0.99  # RLlib's own default, but given
    plain = MethodAlgorithmConfig(PPO).environment(ENV)
    assert [c.make_method().config.gamma for c in (before, set_later, plain)] == [0.5, 0.99, 0.95]
    with pytest.raises(ValueError, match=r"has no gamma, so that gamma=0.5 would have no effect"):
        quick_game(gamma=0.5).validate()


def test_a_run_that_does_not_explore_is_refused() -> None:
    with pytest.raises(ValueError, match="explore=False would leave nothing to learn from"):
        quick_game().env_runners(explore=False).build_algo()


class WithMore(MethodModule):
    """A module with parameters beside the network's."""

    def setup(self) -> None:
        super().setup()
        self.more = torch.nn.Linear(1, 1).requires_grad_(False)


def test_only_the_network_of_a_module_is_exported() -> None:
    algorithm = (
        quick_game().rl_module(rl_module_spec=RLModuleSpec(module_class=WithMore, model_config=spec_of())).build_algo()
    )
    names = learned_network(algorithm).state_dict()
    algorithm.stop()
    assert not [name for name in names if "more" in name]


def spec_of() -> dict[str, Any]:
    """What the default module is built from."""
    found: dict[str, Any] = quick_game().get_default_rl_module_spec().model_config
    return found


def test_rounds_that_only_reset_sessions_are_passed_over() -> None:
    config = session_game().environment("recsim_env/Request-v0").env_runners(rollout_fragment_length=1)
    algorithm = config.build_algo()
    rows = [algorithm.train()["env_runners"]["num_env_steps_sampled_lifetime"] for _ in range(3)]
    algorithm.stop()
    assert rows == [8, 8, 16]


def test_a_schedule_follows_the_rows_of_a_log() -> None:
    world = short_video_world(num_users=30, num_items=60)
    log = synthetic_log(world, num_sessions=40, num_candidates=20, slate_size=3, max_requests=5)
    logged = logged_requests(
        log, item_features_ND=world.catalogue.features_ND, user_features_UD=world.users.features_UD,
        users=world.population_P,
    )  # fmt: skip
    config = (
        MethodAlgorithmConfig(BehaviourCloning)
        .environment("recsim_env/Session-v0", env_config={"world": world, "slate_size": 3})
        .env_runners(num_envs_per_env_runner=8, rollout_fragment_length=4)
        .training(logged=logged, width=8, heads=2, num_candidates=20, lr=[[0, 1e-3], [64, 1e-4]])
    )
    algorithm = config.build_algo()
    for _ in range(4):
        algorithm.train()
    (optimiser,) = algorithm.learner_group._learner._named_optimizers.values()
    rate = optimiser.param_groups[0]["lr"]
    algorithm.stop()
    assert rate == pytest.approx(1e-4)


def test_a_schedule_of_the_learning_rate_is_followed() -> None:
    algorithm = quick_game(lr=[[0, 1e-3], [64, 1e-4]]).build_algo()
    rates = []
    for _ in range(4):
        algorithm.train()
        (optimiser,) = algorithm.learner_group._learner._named_optimizers.values()
        rates.append(optimiser.param_groups[0]["lr"])
    algorithm.stop()
    assert rates[0] > rates[1] > 1e-4 - 1e-9
    assert rates[-1] == pytest.approx(1e-4)


def test_a_warm_up_from_zero_is_followed() -> None:
    algorithm = quick_game(lr=[[0, 0.0], [64, 2e-3]]).build_algo()
    (optimiser,) = algorithm.learner_group._learner._named_optimizers.values()
    rates = [float(optimiser.param_groups[0]["lr"])]
    for _ in range(4):
        algorithm.train()
        rates.append(float(optimiser.param_groups[0]["lr"]))
    exported = learned_network(algorithm).config
    algorithm.stop()
    assert rates[0] == 0 < rates[1] < rates[2] <= rates[3] == rates[4] == pytest.approx(2e-3)
    assert exported.lr == 2e-3  # the highest


def test_connectors_are_refused_aloud() -> None:
    for connector in ("env_to_module_connector", "module_to_env_connector"):
        with pytest.raises(ValueError, match=f"{connector} has no place in the batched path"):
            quick_game().env_runners(**{connector: lambda *_: None}).build_algo()
    with pytest.raises(ValueError, match="learner_connector has no place in the batched path"):
        quick_game().learners(learner_connector=lambda *_: None).build_algo()


def test_what_a_runner_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="rollout_fragment_length must be a number of steps, got 'auto'"):
        quick_game().env_runners(rollout_fragment_length="auto").validate()
    with pytest.raises(ValueError, match=r"num_envs_per_env_runner.* must be larger 0"):
        quick_game().env_runners(num_envs_per_env_runner=0)
    with pytest.raises(ValueError, match=r"rollout_fragment_length.*must be int >0"):
        quick_game().env_runners(rollout_fragment_length=0)
    with pytest.raises(ValueError, match="asks for a GPU while the environment lives on the CPU"):
        MethodEnvRunner(config=quick_game().env_runners(num_gpus_per_env_runner=1), worker_index=0)
    runner = MethodEnvRunner(config=quick_game(), worker_index=0)
    with pytest.raises(ValueError, match="give num_timesteps or num_episodes, not both"):
        runner.sample(num_timesteps=8, num_episodes=1)
