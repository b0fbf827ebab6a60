"""RLlib's own promises: callbacks, modules, learners, evaluation, checkpoints, remote runners, Tune."""

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

from agents.rl.td3 import TD3
from agents.rllib import evaluation
from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.cluster import running_ray
from agents.rllib.env_runner import MethodEnvRunner, Session
from agents.rllib.export import learned_network
from agents.rllib.learner import MethodLearner
from agents.rllib.module import MethodModule
from tests.helpers.list_game import ENV
from tests.helpers.planted import planted_world
from tests.helpers.rllib_loop import quick_game, session_game, update


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
    config = quick_game().callbacks(
        Counting, on_episode_end=lambda episode, **_: functions.append(episode.get_return())
    )
    algorithm = config.build_algo()
    results = [algorithm.train() for _ in range(3)]
    algorithm.stop()
    assert Counting.calls["train"] == [1, 2, 3]
    assert len(Counting.calls["sample"]) == 3
    ended = sum(result["env_runners"]["num_episodes"] for result in results)
    assert len(Counting.calls["episode"]) == len(functions) == ended > 5
    assert results[-1]["env_runners"]["my_return"] == pytest.approx(Counting.calls["episode"][-1])
    with pytest.raises(ValueError, match="on_episode_step would never be called"):
        quick_game().callbacks(Stepping).build_algo()


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
    config = quick_game(learner_class=CountingLearner)
    spec = config.get_default_rl_module_spec()
    spec.module_class = ShiftedModule
    algorithm = config.rl_module(rl_module_spec=spec).build_algo()
    assert isinstance(algorithm.learner_group._learner, CountingLearner)
    assert bool((next(algorithm.env_runner.module.network.parameters()) == 0.25).all())
    assert bool((next(learned_network(algorithm).parameters()) == 0.25).all())
    algorithm.train()
    algorithm.stop()
    with pytest.raises(ValueError, match="Bare has no network"):
        MethodEnvRunner(config=quick_game().rl_module(rl_module_spec=RLModuleSpec(module_class=Bare)), worker_index=0)


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
    broken = quick_game(evaluator="tests.agents.test_rllib:Broken").env_runners(num_env_runners=1).build_algo()
    with pytest.raises(ValueError, match="Broken values some lists at NaN or infinity"):
        broken.train()
    broken.stop()


@pytest.mark.slow
def test_remote_runners_count_the_requests_of_all(local_ray: None) -> None:
    algorithm = quick_game().env_runners(num_env_runners=2).build_algo()
    for _ in range(2):
        results = algorithm.train()
    told = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: runner.num_env_steps_sampled_lifetime, local_env_runner=False
    )
    algorithm.stop()
    assert told == [results["env_runners"]["num_env_steps_sampled_lifetime"]] * 2


@pytest.mark.slow
def test_tune_grids_reach_any_setting_of_the_method(local_ray: None, tmp_path: Path) -> None:
    config = quick_game(lr=tune.grid_search([1e-4, 1e-3]), group_size=tune.grid_search([3, 5]))
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
