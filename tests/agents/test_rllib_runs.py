"""Run folders of RLlib trainings: what they refuse, write down, resume and export; GPUs, clusters, many processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from agents.goalrank import GoalRank, GoalRankConfig
from agents.policies import load_policy, policy_card
from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.cluster import check_gpus, running_ray
from agents.rllib.train import alone_in, latest_checkpoint, run_card, train_method
from recsim_env.known_worlds import short_video_world
from recsim_env.types import ListValue, Request
from recsim_env.world import World
from tests.helpers.list_game import share_of_optimum
from tests.helpers.rllib_loop import SMALL_GOALRANK, game_config

ROOT = Path(__file__).parents[2]


class FirstPlace:
    """An evaluator with an opinion on the first place only."""

    def score(self, request: Request, items_BGK: torch.Tensor) -> ListValue:
        value = items_BGK[..., 0].float()
        return ListValue(value, items_BGK.float(), torch.zeros_like(value))


def test_missing_gpus_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_gpus(game_config().learners(num_learners=0, num_gpus_per_learner=1))
    with pytest.raises(ValueError, match=r"asked for 2 GPUs \(2 for learners, 0 for env runners\), found 1"):
        check_gpus(game_config().learners(num_learners=2, num_gpus_per_learner=1))
    with pytest.raises(ValueError, match=r"asked for 1.5 GPUs"):
        check_gpus(game_config().env_runners(num_env_runners=3, num_gpus_per_env_runner=0.5))


def test_a_run_without_its_gpu_leaves_nothing_behind(tmp_path: Path) -> None:
    greedy = game_config().learners(num_learners=2, num_gpus_per_learner=64)
    with pytest.raises(ValueError, match="GPUs"):
        train_method(greedy, iterations=1, run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert not ray.is_initialized()


def test_what_cannot_begin_does_not_keep_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a list evaluator"):
        train_method(game_config(evaluator=False), iterations=1, run_dir=tmp_path)
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
    config.env_runners(num_envs_per_env_runner=4, rollout_fragment_length=2).training(method_config=SMALL_GOALRANK)
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
            train_method(game_config(), iterations=1, run_dir=tmp_path, address=address)
    with pytest.raises(ValueError, match="address must be 'host:port'"):
        train_method(game_config(), iterations=1, run_dir=tmp_path, address="somewhere")
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
    (tmp_path / "run.json").write_text(json.dumps(run_card(game_config())))
    with alone_in(tmp_path), pytest.raises(ValueError, match=r"another process is at work in .*; wait for it, end it"):
        train_method(game_config(), iterations=1, run_dir=tmp_path)
    assert (tmp_path / "run.json").exists()  # the other's
    train_method(game_config(), iterations=1, run_dir=tmp_path)


def test_what_is_configured_is_what_is_written_down(tmp_path: Path) -> None:
    config = game_config(num_envs=8).training(width=8, num_epochs=2)
    folder = train_method(config, iterations=1, run_dir=tmp_path)
    assert load_policy(folder).config.width == 8
    assert json.loads((tmp_path / "run.json").read_text())["config"]["width"] == 8
    with pytest.raises(ValueError, match="already holds a run; choose another folder, or resume it"):
        train_method(config, iterations=1, run_dir=tmp_path, resume=False)
    later = config.copy(copy_frozen=False).training(lr=[[0, 0.0], [500, SMALL_GOALRANK.lr]])  # the same highest rate
    with pytest.raises(ValueError, match=r"config\.lr was 0\.003, now \[\[0, 0\.0\], \[500, 0\.003\]\]"):
        train_method(later, iterations=1, run_dir=tmp_path)


def test_run_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    wider = game_config().training(width=98)
    (tmp_path / "run.json").write_text(json.dumps(run_card(wider)))
    with pytest.raises(ValueError, match=r"holds other work .*config.width was 98, now 16"):
        train_method(game_config(), iterations=1, run_dir=tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        train_method(game_config(), iterations=1, run_dir=tmp_path)
    with pytest.raises(ValueError, match="at least 1"):
        train_method(game_config(), iterations=0, run_dir=tmp_path)
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
            .training(method_config=SMALL_GOALRANK, evaluator=FirstPlace())
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
from agents.rllib.train import train_method
from tests.helpers.rllib_loop import game_config
if __name__ == "__main__":
    train_method(game_config(), iterations=int(sys.argv[2]), run_dir=sys.argv[1], checkpoint_every=5)
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
            train_method(game_config(), iterations=100000, run_dir=run_dir)
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
    assert load_policy(run_dir / "policy").config == SMALL_GOALRANK


@pytest.mark.slow
def test_two_learners_and_two_runners_learn(tmp_path: Path) -> None:
    config = GoalRankConfig(width=32, item_embedding=4, lr=3e-3, minibatch_size=100)
    asked = game_config(config, num_envs=64).env_runners(num_env_runners=2).learners(num_learners=2)
    folder = train_method(asked, iterations=30, run_dir=tmp_path)
    assert share_of_optimum(load_policy(folder)) > 0.9
