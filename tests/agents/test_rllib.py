"""GoalRank through RLlib: what the runner collects, what the learner learns, resume, export, many processes."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

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
from agents.policies import load_policy, policy_card, save_policy
from agents.rerankers.clig import CligConfig, search_generators
from agents.rerankers.complementarity import list_distances
from agents.rerankers.heuristics import HeuristicGenerators, standard_heuristics
from agents.rerankers.multi_generator import PolicyLists
from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.cluster import check_gpus, running_ray
from agents.rllib.env_runner import MethodEnvRunner
from agents.rllib.train import alone_in, latest_checkpoint, run_card, train_method
from recsim_env.known_worlds import short_video_world
from recsim_env.types import ListEvaluator, ListValue, Request
from recsim_env.world import World
from tests.helpers.list_game import ENV, TAG, K, N, TrueValue, make_request, share_of_optimum
from tests.helpers.planted import planted_world

ROOT = Path(__file__).parents[2]
SHAPE = RequestShape.of(make_request(1, torch.Generator()), N, K)
SMALL = GoalRankConfig(width=16, heads=2, item_embedding=4, minibatch_size=128, lr=3e-3)


class Doubled:
    """An evaluator to be named by its path."""

    def score(self, request: Request, items_BGK: torch.Tensor) -> ListValue:
        value = TrueValue().score(request, items_BGK)
        return value._replace(value_BG=2 * value.value_BG)


class FirstPlace:
    """An evaluator with an opinion on the first place only."""

    def score(self, request: Request, items_BGK: torch.Tensor) -> ListValue:
        value = items_BGK[..., 0].float()
        return ListValue(value, items_BGK.float(), torch.zeros_like(value))


class Broken:
    """An evaluator that forbids lists by minus infinity."""

    def score(self, request: Request, items_BGK: torch.Tensor) -> ListValue:
        value = TrueValue().score(request, items_BGK)
        return value._replace(value_BG=value.value_BG.masked_fill(value.value_BG < 1, -torch.inf))


def settings(config: GoalRankConfig = SMALL, num_envs: int = 16, **env_config: object) -> MethodAlgorithmConfig:
    return (
        MethodAlgorithmConfig(GoalRank)
        .environment(ENV, env_config=env_config)
        .env_runners(num_envs_per_env_runner=num_envs, rollout_fragment_length=8)
        .training(method_config=config)
    )


def make_runner(config: MethodAlgorithmConfig, worker_index: int = 0) -> MethodEnvRunner:
    return MethodEnvRunner(config=config, worker_index=worker_index, num_workers=0)


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(column) for name, column in batch.items()}


def test_batches_hold_the_policys_groups_and_their_values() -> None:
    runner = make_runner(settings())
    batch = tensors(runner.sample())
    request, positions = request_of(batch), batch[GROUP_POSITIONS]
    assert positions.shape[1:] == (SMALL.group_size, K)
    log_prob = runner.module.network.group_log_prob(request, positions)
    torch.testing.assert_close(log_prob.detach(), batch[GROUP_LOG_PROB])
    items = request.candidates_BC.gather(1, positions.flatten(1)).view_as(positions)
    torch.testing.assert_close(TrueValue().score(request, items).value_BG, batch[GROUP_VALUE])
    assert not ray.is_initialized()


def test_auxiliary_lists_warm_the_groups_and_then_leave() -> None:
    warm = dataclasses.replace(SMALL, auxiliary_share=0.25, auxiliary_requests=100)
    runner = make_runner(settings(warm))
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
    many = dataclasses.replace(SMALL, group_size=400, auxiliary_share=0.5)
    with pytest.raises(ValueError, match="asks for 200 auxiliary lists a group"):
        make_runner(settings(many))


def test_every_valid_step_is_in_the_batch_once() -> None:
    runner = make_runner(settings())
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
        runner = make_runner(settings(), worker_index)
        runner.num_env_steps_sampled_lifetime = steps_before
        runner.sample(num_timesteps=1)
        seeds.append(runner.env.unwrapped.seeds[0])
    assert seeds[0] == seeds[3]  # the same runner at the same step repeats itself
    distances = [abs(a - b) for a, b in zip(seeds[:3], (*seeds[1:3], seeds[0]), strict=True)]
    assert min(distances) > 10_000  # row i has seed + i


def test_runs_in_the_real_environment() -> None:
    world = planted_world(num_items=20)
    base = settings(num_envs=8).environment(
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
    batch = tensors(make_runner(settings(config)).sample())
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
        make_runner(settings(autoreset_mode=mode))


def test_the_evaluator_can_be_named_and_must_exist() -> None:
    with pytest.raises(ValueError, match="needs a list evaluator"):
        make_runner(settings(evaluator=False))
    with pytest.raises(ValueError, match="this world has int"):
        make_runner(settings().training(evaluator="tests.helpers.list_game:N"))
    named = settings(evaluator=False).training(evaluator="tests.agents.test_rllib:Doubled")
    plain = tensors(make_runner(settings()).sample())
    doubled = tensors(make_runner(named).sample())
    torch.testing.assert_close(doubled[GROUP_VALUE], 2 * plain[GROUP_VALUE])


def test_an_update_is_the_plain_gradient_step() -> None:
    config = settings()
    batch = make_runner(config).sample()
    learner = config.build_learner(spaces=make_runner(config).get_spaces())
    plain = ListPolicy(SMALL, SHAPE)
    update(learner, batch, minibatch_size=len(batch["user_B"]))

    columns = tensors(batch)
    log_prob = plain.group_log_prob(request_of(columns), columns[GROUP_POSITIONS])
    optimizer = torch.optim.Adam(plain.parameters(), lr=SMALL.lr)
    group_relative_cross_entropy(log_prob, columns[GROUP_VALUE], 1.0, SMALL.min_spread).backward()
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
    runner = make_runner(settings(config, num_envs=64))
    learner = settings(config).build_learner(spaces=runner.get_spaces())
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
        asked = settings(method.config, num_envs=64).training(evaluator=evaluator)
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
    runner = make_runner(settings().training(evaluator="tests.agents.test_rllib:Broken"))
    with pytest.raises(ValueError, match="Broken values some lists at NaN or infinity"):
        runner.sample()


def test_missing_gpus_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_gpus(settings().learners(num_learners=0, num_gpus_per_learner=1))
    with pytest.raises(ValueError, match=r"asked for 2 GPUs \(2 for learners, 0 for env runners\), found 1"):
        check_gpus(settings().learners(num_learners=2, num_gpus_per_learner=1))
    with pytest.raises(ValueError, match=r"asked for 1.5 GPUs"):
        check_gpus(settings().env_runners(num_env_runners=3, num_gpus_per_env_runner=0.5))


def test_a_run_without_its_gpu_leaves_nothing_behind(tmp_path: Path) -> None:
    greedy = settings().learners(num_learners=2, num_gpus_per_learner=64)
    with pytest.raises(ValueError, match="GPUs"):
        train_method(greedy, iterations=1, run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert not ray.is_initialized()


def test_what_cannot_begin_does_not_keep_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a list evaluator"):
        train_method(settings(evaluator=False), iterations=1, run_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_world_that_cannot_begin_leaves_its_folder_free(tmp_path: Path) -> None:
    config = MethodAlgorithmConfig(GoalRank).environment(
        "recsim_env:recsim_env/Session-v0",
        env_config={
            "world": short_video_world(num_users=30, num_items=60),
            "slate_size": 3,
            "num_candidates": 8,
        },
    )
    config.env_runners(num_envs_per_env_runner=4, rollout_fragment_length=2).training(method_config=SMALL)
    with pytest.raises(ValueError, match="needs a list evaluator"):
        train_method(config, iterations=1, run_dir=tmp_path)
    train_method(config.training(evaluator=FirstPlace()), iterations=1, run_dir=tmp_path)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "auto"])
def test_an_address_that_nobody_answers_at_is_said_at_once(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(**_: object) -> None:
        raise AssertionError("Ray itself would try for minutes")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", never)
    with socket.socket() as bound:  # bound, but nobody listens
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        address = form.format(port)
        with pytest.raises(ValueError, match=rf"no Ray cluster at address '{address}': .*refused"):
            train_method(settings(), iterations=1, run_dir=tmp_path, address=address)
    with pytest.raises(ValueError, match="address must be 'host:port'"):
        train_method(settings(), iterations=1, run_dir=tmp_path, address="somewhere")
    assert list(tmp_path.iterdir()) == []


def test_a_ray_that_runs_elsewhere_is_not_taken_for_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    for same in (None, "auto", "10.0.0.1:6379"):
        with running_ray(1, same):
            pass
    with (
        pytest.raises(ValueError, match=r"already, at 10\.0\.0\.1:6379, and not at '10\.0\.0\.9:6379'"),
        running_ray(1, "10.0.0.9:6379"),
    ):
        pass


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run_card(settings())))
    with alone_in(tmp_path), pytest.raises(ValueError, match=r"another process is at work in .*; wait for it, end it"):
        train_method(settings(), iterations=1, run_dir=tmp_path)
    assert (tmp_path / "run.json").exists()  # the other's
    train_method(settings(), iterations=1, run_dir=tmp_path)


def test_what_is_configured_is_what_is_written_down(tmp_path: Path) -> None:
    config = settings(num_envs=8).training(width=8, num_epochs=2)
    folder = train_method(config, iterations=1, run_dir=tmp_path)
    assert load_policy(folder).config.width == 8
    assert json.loads((tmp_path / "run.json").read_text())["config"]["width"] == 8
    with pytest.raises(ValueError, match="already holds a run; choose another folder, or resume it"):
        train_method(config, iterations=1, run_dir=tmp_path, resume=False)
    later = config.copy(copy_frozen=False).training(lr=[[0, 0.0], [500, SMALL.lr]])  # the same highest rate
    with pytest.raises(ValueError, match=r"config\.lr was 0\.003, now \[\[0, 0\.0\], \[500, 0\.003\]\]"):
        train_method(later, iterations=1, run_dir=tmp_path)


def test_run_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    wider = settings().training(width=98)
    (tmp_path / "run.json").write_text(json.dumps(run_card(wider)))
    with pytest.raises(ValueError, match=r"holds other work .*config.width was 98, now 16"):
        train_method(settings(), iterations=1, run_dir=tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        train_method(settings(), iterations=1, run_dir=tmp_path)
    with pytest.raises(ValueError, match="at least 1"):
        train_method(settings(), iterations=0, run_dir=tmp_path)
    assert not ray.is_initialized()


def test_a_changed_world_is_not_taken_for_the_one_trained_in(tmp_path: Path) -> None:
    world, other = (short_video_world(num_users=30, num_items=60, seed=seed) for seed in (1, 2))
    sizes = {"slate_size": 3, "num_candidates": 8, "max_requests": 4}

    def train(world: World, iterations: int = 1, num_envs: int = 4) -> Path:
        world.save(tmp_path / "world")
        config = (
            MethodAlgorithmConfig(GoalRank)
            .environment("recsim_env:recsim_env/Session-v0", env_config={"world": str(tmp_path / "world"), **sizes})
            .env_runners(num_envs_per_env_runner=num_envs, rollout_fragment_length=4)
            .training(method_config=SMALL, evaluator=FirstPlace())
        )
        return train_method(config, iterations=iterations, run_dir=tmp_path / "run")

    train(world)
    with pytest.raises(ValueError, match=r"holds other work \(world_digest was"):
        train(other)
    with pytest.raises(ValueError, match=r"sampling.num_envs was 4, now 8"):
        train(world, num_envs=8)
    train(world, iterations=2)
    assert policy_card(tmp_path / "run" / "policy")["training"]["iterations"] == 2
    with pytest.raises(ValueError, match="was trained for 2 iterations, 1 were asked for"):
        train(world)


PROGRAM = """
import sys
from tests.agents.test_rllib import settings, train_method
if __name__ == "__main__":
    train_method(settings(), iterations=int(sys.argv[2]), run_dir=sys.argv[1], checkpoint_every=5)
"""


def steps_of(run_dir: Path) -> list[int]:
    """Iterations that TensorBoard holds, in the order they were written."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = [event for path in sorted(run_dir.glob("events*")) for event in EventFileLoader(str(path)).Load()]
    return [event.step for event in events for value in event.summary.value if value.tag == "time/requests"]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, str(run_dir)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([*command, "100000"], cwd=ROOT, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while (latest_checkpoint(run_dir) or Path("0")).name < "00000010":
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.05)
        with pytest.raises(ValueError, match="another process is at work in"):
            train_method(settings(), iterations=100000, run_dir=run_dir)
    finally:
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    last = int(checkpoint.name)
    subprocess.run([*command, str(last + 3)], cwd=ROOT, env=environment, check=True)
    resumed = steps_of(run_dir)[-3:]
    assert resumed == [last + 1, last + 2, last + 3]
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir())[-1] == f"{last + 3:08d}"
    assert load_policy(run_dir / "policy").config == SMALL


@pytest.mark.slow
def test_two_learners_and_two_runners_learn(tmp_path: Path) -> None:
    config = GoalRankConfig(width=32, item_embedding=4, lr=3e-3, minibatch_size=100)
    asked = settings(config, num_envs=64).env_runners(num_env_runners=2).learners(num_learners=2)
    folder = train_method(asked, iterations=30, run_dir=tmp_path)
    assert share_of_optimum(load_policy(folder)) > 0.9
