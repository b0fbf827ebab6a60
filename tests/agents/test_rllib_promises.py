"""RLlib's own promises: settings take effect or are refused, evaluation, callbacks, modules, learners, checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule

from agents.goalrank import GoalRank, GoalRankConfig
from agents.rl.behaviour_cloning import BehaviourCloning
from agents.rl.ppo import PPO
from agents.rl.td3 import TD3
from agents.rllib import evaluation
from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.cluster import running_ray
from agents.rllib.env_runner import MethodEnvRunner, Session
from agents.rllib.export import learned_network
from agents.rllib.learner import MethodLearner
from agents.rllib.module import MethodModule
from recsim_env.data.requests import logged_requests
from recsim_env.known_worlds import short_video_world
from recsim_env.known_worlds.logs import synthetic_log
from tests.helpers.list_game import ENV
from tests.helpers.planted import planted_world
from tests.helpers.rllib_loop import update

SMALL = {"width": 8, "heads": 2, "item_embedding": 0, "group_size": 4}


def game(**settings: Any) -> MethodAlgorithmConfig:
    return (
        MethodAlgorithmConfig(GoalRank)
        .environment(ENV)
        .env_runners(num_envs_per_env_runner=8, rollout_fragment_length=4)
        .training(**{**SMALL, "minibatch_size": 16, **settings})
    )


def session_game() -> MethodAlgorithmConfig:
    """GoalRank in a session environment that an evaluation can play."""
    world = planted_world(num_items=20)
    return game().environment("recsim_env/Session-v0", env_config={"world": world, "slate_size": 3, "max_requests": 5})


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
    rate, exported, seed = used(game())
    assert (rate, exported, seed) == (pytest.approx(GoalRankConfig().lr), GoalRankConfig().lr, 0)
    config = game()
    config.validate()
    assert (config.lr, config.grad_clip, config.num_epochs, config.minibatch_size) == (2e-3, 5.0, 2, 16)


def test_what_is_said_last_counts() -> None:
    whole = MethodAlgorithmConfig(GoalRank).training(group_size=4).training(method_config=GoalRankConfig())
    assert whole.make_method().config.group_size == GoalRankConfig().group_size
    assert whole.training(group_size=4).make_method().config.group_size == 4


def test_what_was_validated_can_be_set_again() -> None:
    config = game()
    config.validate()
    assert config.lr == 2e-3
    again = config.training(method_config={"lr": 1e-4, "grad_clip": 1.0, "seed": 3}).make_method().config
    assert (again.lr, again.grad_clip, again.seed) == (1e-4, 1.0, 3)
    config.validate()
    assert (config.lr, config.grad_clip, config.seed) == (1e-4, 1.0, 3)


@pytest.mark.parametrize("how", [{"grad_clip": None}, {"method_config": {"grad_clip": None}}])
def test_clipping_can_be_switched_off(how: dict[str, Any]) -> None:
    """A huge gradient arrives whole: under the method's own limit it would have the norm 5."""
    algorithm = game(**how).build_algo()
    learner = algorithm.learner_group._learner
    parameters = list(learner._params.items())
    grown = learner.postprocess_gradients({name: torch.full_like(p, 1e3) for name, p in parameters})
    exported = learned_network(algorithm).config
    algorithm.stop()
    assert exported.grad_clip is None
    assert all(bool((gradient == 1e3).all()) for gradient in grown.values())
    with pytest.raises(ValueError, match="lr must be a number, got None"):
        game(lr=None).make_method()


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
        game(**settings).build_algo()


def test_settings_of_runners_and_environments_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_mode has no place"):
        game().env_runners(batch_mode="complete_episodes").validate()
    with pytest.raises(ValueError, match=r"clip_rewards has no place .*: it shows slates"):
        game().environment(clip_rewards=True).validate()
    with pytest.raises(ValueError, match="model_config has no place"):
        game().rl_module(model_config={"fcnet_hiddens": [8]}).validate()
    with pytest.raises(ValueError, match="num_epochs=3 would have no effect on what learns from a replay"):
        MethodAlgorithmConfig(TD3).environment(ENV).training(num_epochs=3).validate()


def test_contradictions_and_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lr was given twice: 0.1 in method_config, 1e-05 beside it; give one"):
        game(method_config=GoalRankConfig(lr=0.1), lr=1e-5).build_algo()
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'group_sise'; settings of the method"):
        game(group_sise=3)
    with pytest.raises(ValueError, match="a group needs at least 2 lists"):
        game(group_size=1).build_algo()
    with pytest.raises(ValueError, match=r"train_batch_size_per_learner=999 contradicts what a round samples: 32 rows"):
        game(train_batch_size_per_learner=999).build_algo()
    game(train_batch_size_per_learner=32).validate()
    with pytest.raises(ValueError, match="no method to train"):
        MethodAlgorithmConfig().environment(ENV).build_algo()
    with pytest.raises(ValueError, match="learns from a log: give"):
        MethodAlgorithmConfig("agents.rl.behaviour_cloning:BehaviourCloning").environment(ENV).build_algo()


def test_settings_reach_the_method_by_every_way_that_rllib_has() -> None:
    attribute, early = game(), MethodAlgorithmConfig().environment(ENV)
    attribute.group_size = 5
    early.update_from_dict({"group_size": 6, "width": 8})
    early.training(method=GoalRank)
    updated = game(group_size=8).update_from_dict({"group_size": 7})
    assert [c.make_method().config.group_size for c in (attribute, early, updated)] == [5, 6, 7]
    assert early.copy().make_method().config.group_size == 6
    before = MethodAlgorithmConfig().environment(ENV).training(gamma=0.5).training(method=PPO)
    set_later = MethodAlgorithmConfig(PPO).environment(ENV).training(gamma=0.4)
    set_later.gamma = 0.99  # RLlib's own default, but given
    plain = MethodAlgorithmConfig(PPO).environment(ENV)
    assert [c.make_method().config.gamma for c in (before, set_later, plain)] == [0.5, 0.99, 0.95]
    with pytest.raises(ValueError, match=r"has no gamma, so that gamma=0.5 would have no effect"):
        game(gamma=0.5).validate()


def test_a_run_that_does_not_explore_is_refused() -> None:
    with pytest.raises(ValueError, match="explore=False would leave nothing to learn from"):
        game().env_runners(explore=False).build_algo()


class WithMore(MethodModule):
    """A module with parameters beside the network's."""

    def setup(self) -> None:
        super().setup()
        self.more = torch.nn.Linear(1, 1).requires_grad_(False)


def test_only_the_network_of_a_module_is_exported() -> None:
    algorithm = (
        game().rl_module(rl_module_spec=RLModuleSpec(module_class=WithMore, model_config=spec_of())).build_algo()
    )
    names = learned_network(algorithm).state_dict()
    algorithm.stop()
    assert not [name for name in names if "more" in name]


def spec_of() -> dict[str, Any]:
    """What the default module is built from."""
    found: dict[str, Any] = game().get_default_rl_module_spec().model_config
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
    algorithm = game(lr=[[0, 1e-3], [64, 1e-4]]).build_algo()
    rates = []
    for _ in range(4):
        algorithm.train()
        (optimiser,) = algorithm.learner_group._learner._named_optimizers.values()
        rates.append(optimiser.param_groups[0]["lr"])
    algorithm.stop()
    assert rates[0] > rates[1] > 1e-4 - 1e-9
    assert rates[-1] == pytest.approx(1e-4)


def test_a_warm_up_from_zero_is_followed() -> None:
    algorithm = game(lr=[[0, 0.0], [64, 2e-3]]).build_algo()
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
            game().env_runners(**{connector: lambda *_: None}).build_algo()
    with pytest.raises(ValueError, match="learner_connector has no place in the batched path"):
        game().learners(learner_connector=lambda *_: None).build_algo()


def test_what_a_runner_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="rollout_fragment_length must be a number of steps, got 'auto'"):
        game().env_runners(rollout_fragment_length="auto").validate()
    with pytest.raises(ValueError, match=r"num_envs_per_env_runner.* must be larger 0"):
        game().env_runners(num_envs_per_env_runner=0)
    with pytest.raises(ValueError, match=r"rollout_fragment_length.*must be int >0"):
        game().env_runners(rollout_fragment_length=0)
    with pytest.raises(ValueError, match="asks for a GPU while the environment lives on the CPU"):
        MethodEnvRunner(config=game().env_runners(num_gpus_per_env_runner=1), worker_index=0)
    runner = MethodEnvRunner(config=game(), worker_index=0)
    with pytest.raises(ValueError, match="give num_timesteps or num_episodes, not both"):
        runner.sample(num_timesteps=8, num_episodes=1)


class Counting(RLlibCallback):
    """Counts what fires."""

    calls: dict[str, list[Any]] = {}  # noqa: RUF012 - shared on purpose

    def on_episode_end(self, *, episode: Session, metrics_logger: Any, **_: Any) -> None:
        assert len(episode) >= 1
        assert episode.is_terminated != episode.is_truncated
        self.calls.setdefault("episode", []).append(episode.get_return())
        metrics_logger.log_value("my_return", episode.get_return(), window=1)

    def on_sample_end(self, *, samples: Any, **_: Any) -> None:
        self.calls.setdefault("sample", []).append(len(samples["user_B"]))

    def on_train_result(self, *, algorithm: Algorithm, result: dict[str, Any], **_: Any) -> None:
        self.calls.setdefault("train", []).append(result["training_iteration"])


class Stepping(RLlibCallback):
    """Wants to see every step."""

    def on_episode_step(self, **_: Any) -> None:
        raise AssertionError("never called")


def test_callbacks_fire_or_are_refused() -> None:
    Counting.calls = {}
    functions: list[float] = []
    config = game().callbacks(Counting, on_episode_end=lambda episode, **_: functions.append(episode.get_return()))
    algorithm = config.build_algo()
    results = [algorithm.train() for _ in range(3)]
    algorithm.stop()
    assert Counting.calls["train"] == [1, 2, 3]
    assert len(Counting.calls["sample"]) == 3
    ended = sum(result["env_runners"]["num_episodes"] for result in results)
    assert len(Counting.calls["episode"]) == len(functions) == ended > 5
    assert results[-1]["env_runners"]["my_return"] == pytest.approx(Counting.calls["episode"][-1])
    with pytest.raises(ValueError, match="on_episode_step would never be called"):
        game().callbacks(Stepping).build_algo()


class CountingLearner(MethodLearner):
    """A learner of the user's own: twice the loss."""

    def compute_loss_for_module(self, **kwargs: Any) -> torch.Tensor:
        return 2 * super().compute_loss_for_module(**kwargs)


class ShiftedModule(MethodModule):
    """A module of the user's own: starts from other weights."""

    def setup(self) -> None:
        super().setup()
        with torch.no_grad():
            next(self.network.parameters()).fill_(0.25)


class Bare(TorchRLModule):
    """Holds nothing."""


def test_modules_and_learners_of_the_users_own() -> None:
    config = game(learner_class=CountingLearner)
    spec = config.get_default_rl_module_spec()
    spec.module_class = ShiftedModule
    algorithm = config.rl_module(rl_module_spec=spec).build_algo()
    assert isinstance(algorithm.learner_group._learner, CountingLearner)
    assert bool((next(algorithm.env_runner.module.network.parameters()) == 0.25).all())
    assert bool((next(learned_network(algorithm).parameters()) == 0.25).all())
    algorithm.train()
    algorithm.stop()
    with pytest.raises(ValueError, match="Bare has no network"):
        MethodEnvRunner(config=game().rl_module(rl_module_spec=RLModuleSpec(module_class=Bare)), worker_index=0)


def test_evaluation_is_paired_and_plays_whole_sessions() -> None:
    algorithm = session_game().evaluation(evaluation_duration=40).build_algo()
    found = algorithm.evaluate()["env_runners"]
    again = algorithm.evaluate()["env_runners"]
    algorithm.stop()
    assert found == again  # the same policy, the same sessions
    assert found["num_sessions"] == 40
    low, high = found["watch_time_minus_pointwise_low"], found["watch_time_minus_pointwise_high"]
    assert low < found["watch_time_minus_pointwise"] < high < 0  # untrained, it cannot beat the sort by the truth
    assert found["session_watch_time"] == pytest.approx(found["episode_return_mean"])
    with pytest.raises(ValueError, match="give evaluation_duration= a number of at least 2"):
        session_game().evaluation(evaluation_duration=1).build_algo().evaluate()


def test_another_world_is_evaluated_in_without_runners_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    played = []
    play = evaluation.play_paired

    def spy(runner: Any, *how: Any) -> Any:
        played.append(runner.env.unwrapped.config.max_requests)
        return play(runner, *how)

    monkeypatch.setattr(evaluation, "play_paired", spy)
    other = {"world": planted_world(num_items=20), "slate_size": 3, "max_requests": 2}
    config = session_game().evaluation(evaluation_duration=4, evaluation_config={"env_config": other})
    algorithm = config.build_algo()
    found = algorithm.evaluate()["env_runners"]
    algorithm.stop()
    assert played == [2]
    assert found["session_length"] <= 2


def test_stock_evaluation_counts_the_sessions_asked_for() -> None:
    config = session_game().evaluation(evaluation_duration=7)
    config.custom_evaluation_function = None
    algorithm = config.build_algo()
    found = algorithm.evaluate()["env_runners"]
    algorithm.stop()
    assert found["num_episodes"] >= 7
    assert found["episode_return_mean"] > 0


def test_a_replays_checkpoint_holds_replay_and_targets(tmp_path: Path) -> None:
    settings = {"width": 8, "heads": 2, "item_embedding": 0, "replay_warmup": 0, "updates_per_round": 2}
    config = MethodAlgorithmConfig(TD3).environment(ENV).env_runners(num_envs_per_env_runner=32)
    algorithm = config.training(**settings).build_algo()
    for _ in range(3):
        algorithm.train()
    kept, rows = learned_network(algorithm).state_dict(), len(algorithm._replay)
    steps = algorithm.learner_group._learner._gradient_steps
    algorithm.save_to_path(tmp_path / "checkpoint")
    algorithm.stop()
    again = Algorithm.from_checkpoint(tmp_path / "checkpoint")
    assert again.iteration == 3
    assert again.learner_group._learner._gradient_steps == steps > 0
    assert len(again._replay) == rows > 0
    restored = learned_network(again).state_dict()
    assert all(torch.equal(value, restored[name]) for name, value in kept.items())
    assert not all(torch.equal(kept[n], kept[n.removeprefix("target_")]) for n in kept if n.startswith("target_"))
    again.train()
    again.stop()


def actor_moves(learner: Any, batch: Any) -> bool:
    """Whether one gradient step moves the actor."""
    actor = learner.module["default_policy"].network.actor
    before = [p.detach().clone() for p in actor.parameters()]
    update(learner, batch, minibatch_size=len(batch["reward"]))
    return any(not torch.equal(a, b) for a, b in zip(before, actor.parameters(), strict=True))


def test_a_restored_learner_goes_on_in_the_turn_of_its_optimisers(tmp_path: Path) -> None:
    config = MethodAlgorithmConfig(TD3).environment(ENV).env_runners(num_envs_per_env_runner=16)
    config.training(width=8, heads=2, item_embedding=0, actor_every=3)
    runner = MethodEnvRunner(config=config, worker_index=0)
    batch = runner.sample()
    learner = config.build_learner(spaces=runner.get_spaces())
    turns = [actor_moves(learner, batch) for _ in range(5)]
    learner.save_to_path(tmp_path / "learner")
    again = config.build_learner(spaces=runner.get_spaces())
    again.restore_from_path(tmp_path / "learner")
    turns += [actor_moves(again, batch) for _ in range(2)]
    assert turns == [False, False, True, False, False, True, False]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with running_ray(4):
        yield


@pytest.mark.slow
def test_evaluation_with_remote_runners_plays_the_same_sessions(local_ray: None) -> None:
    local = session_game().evaluation(evaluation_duration=30).build_algo()
    expected = local.evaluate()["env_runners"]
    local.stop()
    remote = session_game().evaluation(evaluation_duration=30, evaluation_num_env_runners=2).build_algo()
    found = remote.evaluate()["env_runners"]
    remote.stop()
    assert found["num_sessions"] == 30
    assert found["session_watch_time"] == pytest.approx(expected["session_watch_time"], rel=1e-6)


@pytest.mark.slow
def test_more_remote_evaluators_than_sessions(local_ray: None) -> None:
    algorithm = session_game().evaluation(evaluation_duration=3, evaluation_num_env_runners=3).build_algo()
    found = algorithm.evaluate()["env_runners"]
    algorithm.stop()
    assert found["num_sessions"] == 3


@pytest.mark.slow
def test_an_error_of_a_remote_runner_is_heard(local_ray: None) -> None:
    broken = game(evaluator="tests.agents.test_rllib:Broken").env_runners(num_env_runners=1).build_algo()
    with pytest.raises(ValueError, match="Broken values some lists at NaN or infinity"):
        broken.train()
    broken.stop()


@pytest.mark.slow
def test_remote_runners_count_the_requests_of_all(local_ray: None) -> None:
    algorithm = game().env_runners(num_env_runners=2).build_algo()
    for _ in range(2):
        results = algorithm.train()
    told = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: runner.num_env_steps_sampled_lifetime, local_env_runner=False
    )
    algorithm.stop()
    assert told == [results["env_runners"]["num_env_steps_sampled_lifetime"]] * 2


@pytest.mark.slow
def test_tune_grids_reach_any_setting_of_the_method(local_ray: None, tmp_path: Path) -> None:
    config = game(lr=tune.grid_search([1e-4, 1e-3]), group_size=tune.grid_search([3, 5]))
    tuner = tune.Tuner(
        config.algo_class,
        param_space=config,
        run_config=tune.RunConfig(stop={"training_iteration": 1}, storage_path=str(tmp_path), name="grid"),
    )
    results = tuner.fit()
    told = {(r.config["lr"], r.config["method_config"]["group_size"]) for r in results}
    assert told == {(1e-4, 3), (1e-4, 5), (1e-3, 3), (1e-3, 5)}
    assert not results.errors
    entropies = {r.metrics["learners"]["default_policy"]["group_spread"] for r in results}
    assert len(entropies) >= 2  # groups of other sizes are other groups
