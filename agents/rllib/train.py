"""Trains any method in a run folder: progress bar, TensorBoard, checkpoints, resume, export.

A run folder holds ``run.json`` (what is trained), ``checkpoints/<iteration>``, TensorBoard events, and at the
end ``policy/``. A run that was killed goes on from its last checkpoint when it is started again.
"""

import contextlib
import dataclasses
import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.method import method_path
from agents.policies import save_policy
from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.cluster import check_gpus, running_ray
from agents.rllib.export import learned_network
from recsim_env.files import claim, whole_folder
from recsim_env.known_worlds.names import resolve_world
from recsim_env.types import ListEvaluator
from recsim_env.world import World

_KEPT_CHECKPOINTS = 2
_LOCK = "run.lock"
_PER_ENV_RUNNER = ("session", "feedback")
_NOT_OF_THE_METHOD = ("module_train_batch_size_mean", "num_trainable_parameters", "num_non_trainable_parameters")


def train_method(
    config: MethodAlgorithmConfig,
    *,
    iterations: int,
    run_dir: str | Path,
    resume: bool = True,
    checkpoint_every: int = 10,
    address: str | None = None,
) -> Path:
    """Trains a method and exports its policy.

    A Ray that runs already is used; otherwise a local one is started for the time of the run.

    Args:
        config: what is trained, where, and how it is sampled and learned. A ``World`` object in its ``env_config`` is
            saved into the run folder, from where every runner reads it.
        iterations: rounds of sampling and updating, in all; a resumed run does what is missing.
        run_dir: the run folder, which one process at a time may train in.
        resume: go on from the last checkpoint there, if any; otherwise the folder must hold no run.
        checkpoint_every: iterations between checkpoints; the last one is always kept.
        address: a running Ray cluster to join, or "auto".

    Returns:
        The folder of the exported policy, for ``agents.policies.load_policy``.

    Raises:
        ValueError: settings that cannot work, a folder that holds another run or that another process trains in, GPUs
            that do not exist, or an address at which nobody answers.
    """
    if min(iterations, checkpoint_every) < 1:
        raise ValueError(f"iterations and checkpoint_every must be at least 1, got {iterations}, {checkpoint_every}")
    run_dir, config = Path(run_dir).resolve(), config.copy(copy_frozen=False)
    card, method, world = run_card(config), config.make_method(), config.env_config.get("world")
    if address is None:
        check_gpus(config)  # before Ray starts, and before anything is written
    new = claim(run_dir, card, name="run.json")
    if not new and not resume:
        raise ValueError(f"{run_dir} already holds a run; choose another folder, or resume it")
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone_in(run_dir))
        try:
            if isinstance(world, World):
                world.save(run_dir / "world")
                config.env_config = {**config.env_config, "world": str(run_dir / "world")}
            stack.enter_context(running_ray(1 + config.num_env_runners + config.num_learners, address))
            algorithm = config.build_algo()
        except Exception:
            if new:  # what cannot begin must not keep the folder from what can
                (run_dir / "run.json").unlink()
                (run_dir / _LOCK).unlink()
                shutil.rmtree(run_dir / "world", ignore_errors=True)
            raise
        stack.callback(algorithm.stop)
        _train(algorithm, run_dir, iterations, checkpoint_every)
        training = {
            "requests": int(algorithm.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0)),
            "iterations": algorithm.iteration,
            "feedback": "logged" if method.data == "log" else "one slate",
        }
        return save_policy(
            run_dir / "policy", method, learned_network(algorithm), algorithm.config.request_shape, training
        )


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder. The kernel lets go when this one dies, however it dies.

    Raises:
        ValueError: another process is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is at work in {folder}; wait for it, end it, or choose another folder"
            ) from error
        yield


def _train(algorithm: Algorithm, run_dir: Path, iterations: int, checkpoint_every: int) -> None:
    checkpoint = latest_checkpoint(run_dir)
    if checkpoint is not None:
        algorithm.restore_from_path(checkpoint)
    first = algorithm.iteration
    if first > iterations:
        raise ValueError(
            f"{run_dir} was trained for {first} iterations, {iterations} were asked for; choose another folder or at "
            f"least {first}"
        )
    method = algorithm.config.method.partition(":")[2]
    with (
        SummaryWriter(str(run_dir), purge_step=first + 1 if first else None) as writer,
        tqdm(total=iterations, initial=first, desc=method, unit="it", disable=None) as bar,
    ):
        if not first:
            settings = json.dumps(dataclasses.asdict(algorithm.config.make_method().config), indent=1)
            writer.add_text("settings", f"```json\n{settings}\n```")
        for iteration in range(first + 1, iterations + 1):
            begun = time.perf_counter()
            results = algorithm.train()
            scalars = scalars_of(results, time.perf_counter() - begun)
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, iteration)
            bar.update()
            bar.set_postfix_str(
                f"{scalars['time/steps_per_second']:.0f} requests/s, session "
                f"{scalars.get('session/watch_time', float('nan')):.1f} s"
            )
            if iteration % checkpoint_every == 0 or iteration == iterations:
                writer.flush()
                _save_checkpoint(algorithm, run_dir, iteration)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint folder of a run, or None."""
    found = [path for path in (run_dir / "checkpoints").glob("[0-9]*") if path.is_dir()]
    return max(found, default=None)


def _save_checkpoint(algorithm: Algorithm, run_dir: Path, iteration: int) -> None:
    folder = run_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob(".*"):  # of a run that was killed while it wrote
        shutil.rmtree(leftover)
    with whole_folder(folder / f"{iteration:08d}") as aside:
        algorithm.save_to_path(aside)
    for old in sorted(folder.glob("[0-9]*"))[:-_KEPT_CHECKPOINTS]:
        shutil.rmtree(old)


def run_card(config: MethodAlgorithmConfig) -> dict[str, Any]:
    """What makes a run the run it is, the content of its world and of its log included.

    Raises:
        ValueError: settings that the method refuses, or a world that is not there.
    """
    method, spec = config.make_method(), getattr(config, "_rl_module_spec", None)
    card = {
        "method": method_path(method),
        "config": dataclasses.asdict(method.config),
        "env": config.env,
        "env_config": {
            name: f"object: {value.name}" if isinstance(value, World) else str(value)
            for name, value in config.env_config.items()
        },
        "sampling": {
            "num_envs": config.num_envs_per_env_runner,
            "steps_per_iteration": config.rollout_fragment_length,
            "num_env_runners": config.num_env_runners,
            "num_learners": config.num_learners,
            "learner": config.learner_class.__qualname__,
            "module": None if spec is None else spec.module_class.__qualname__,
        },
        "evaluator": _named(config.evaluator),
    }
    if isinstance(config.lr, list):
        card["config"]["lr"] = config.lr
    if "world" in config.env_config:
        card["world_digest"] = resolve_world(config.env_config["world"]).digest
    if config.logged is not None:
        card["log_digest"] = config.logged.digest
    return card


def _named(evaluator: ListEvaluator | str | None) -> str | None:
    """Its path, what it says of itself, or else its class."""
    if evaluator is None or isinstance(evaluator, str):
        return evaluator
    says_something = type(evaluator).__str__ is not object.__str__
    return str(evaluator) if says_something else type(evaluator).__qualname__


def scalars_of(results: dict[str, Any], seconds: float) -> dict[str, float]:
    """TensorBoard tags of one iteration: what samplers counted, and every scalar that the method's loss told."""
    runners = results.get(ENV_RUNNER_RESULTS, {})
    learner = results.get(LEARNER_RESULTS, {}).get(DEFAULT_MODULE_ID, {})
    scalars = {f"{group}/{name}": value for group in _PER_ENV_RUNNER for name, value in runners.get(group, {}).items()}
    told = {name: value for name, value in learner.items() if name not in _NOT_OF_THE_METHOD}
    scalars |= {f"train/{name}": value for name, value in told.items() if isinstance(value, (int, float, torch.Tensor))}
    scalars["time/steps_per_second"] = runners.get("num_env_steps_sampled", 0) / seconds
    scalars["time/requests"] = runners.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0)
    return {tag: float(value) for tag, value in scalars.items()}
