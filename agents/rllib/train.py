"""Trains any method in a run folder: progress bar, TensorBoard, checkpoints, resume, export.

A run folder holds ``run.json`` (what is trained), ``checkpoints/<iteration>``, TensorBoard events, and at the
end ``policy/``. A run that was killed goes on from its last checkpoint when it is started again.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.method import Method, method_path
from agents.policies import save_policy
from agents.rllib.algorithm import MethodAlgorithmConfig, check_gpus
from agents.rllib.export import learned_network
from recsim_env.data.requests import LoggedRequests
from recsim_env.files import claim, whole_folder
from recsim_env.known_worlds.names import resolve_world
from recsim_env.types import ListEvaluator
from recsim_env.world import World

SESSION_ENV = "recsim_env:recsim_env/Session-v0"

_KEPT_CHECKPOINTS = 2
_PER_ENV_RUNNER = ("session", "feedback")
_NOT_OF_THE_METHOD = ("module_train_batch_size_mean", "num_trainable_parameters", "num_non_trainable_parameters")


def train_method(
    method: Method,
    env_config: dict[str, Any],
    *,
    iterations: int,
    run_dir: str | Path,
    resume: bool = True,
    env: str = SESSION_ENV,
    evaluator: ListEvaluator | str | None = None,
    num_envs: int = 64,
    steps_per_iteration: int = 8,
    checkpoint_every: int = 10,
    num_env_runners: int = 0,
    num_learners: int = 0,
    gpus_per_learner: float = 0,
    gpus_per_env_runner: float = 0,
    logged: LoggedRequests | None = None,
    configure: Callable[[MethodAlgorithmConfig], object] | None = None,
    address: str | None = None,
) -> Path:
    """Trains a method and exports its policy.

    A Ray that runs already is used; otherwise a local one is started for the time of the run.

    Args:
        method: what is trained, with its settings.
        env_config: keyword arguments of the environment, such as ``world``. A ``World`` object is saved into
            the run folder, from where every runner reads it.
        iterations: rounds of sampling and updating, in all; a resumed run does what is missing.
        run_dir: the run folder.
        resume: go on from the last checkpoint there, if any; otherwise the folder must hold no run.
        env: id of the environment, with the module that registers it ("module:name").
        evaluator: values lists in place of the world's own evaluator.
        num_envs: environments of each runner, stepped together.
        steps_per_iteration: steps of each environment in one iteration.
        checkpoint_every: iterations between checkpoints; the last one is always kept.
        num_env_runners: sampling processes beside this one; 0 samples here.
        num_learners: learning processes beside this one; 0 learns here.
        gpus_per_learner: GPUs of each learner.
        gpus_per_env_runner: GPUs of each sampling process.
        logged: the requests that a method learns from which learns from a log.
        configure: a function that may change the ``MethodAlgorithmConfig`` before it is built, for what has no
            argument here: callbacks, a module or learner class, fault tolerance.
        address: a running Ray cluster to join, or "auto".

    Returns:
        The folder of the exported policy, for ``agents.policies.load_policy``.

    Raises:
        ValueError: settings that cannot work, a folder that holds another run, or GPUs that do not exist.
    """
    if min(iterations, num_envs, steps_per_iteration, checkpoint_every) < 1:
        raise ValueError("iterations, num_envs, steps_per_iteration and checkpoint_every must be at least 1")
    run_dir = Path(run_dir).resolve()
    world = env_config.get("world")
    from_run_dir = {"world": str(run_dir / "world")} if isinstance(world, World) else {}
    config = (
        MethodAlgorithmConfig(type(method))
        .environment(env, env_config=env_config | from_run_dir)
        .env_runners(
            num_env_runners=num_env_runners,
            num_envs_per_env_runner=num_envs,
            rollout_fragment_length=steps_per_iteration,
            num_gpus_per_env_runner=gpus_per_env_runner,
        )
        .learners(num_learners=num_learners, num_gpus_per_learner=gpus_per_learner)
        .training(method_config=dataclasses.asdict(method.config), evaluator=evaluator, logged=logged)
    )
    if configure is not None:
        configure(config)
        method = config.make_method()  # with all that was configured, as it is written down and exported
    if address is None:
        check_gpus(config)  # before Ray starts, and before anything is written
    spec = getattr(config, "_rl_module_spec", None)
    sampling = {
        "num_envs": num_envs,
        "steps_per_iteration": steps_per_iteration,
        "num_env_runners": num_env_runners,
        "num_learners": num_learners,
        "learner": config.learner_class.__qualname__,
        "module": None if spec is None else spec.module_class.__qualname__,
    }
    new = claim(run_dir, _card(method, env, env_config, evaluator, sampling, logged), name="run.json")
    if not new and not resume:
        raise ValueError(f"{run_dir} already holds a run; choose another folder, or resume it")
    with contextlib.ExitStack() as stack:
        try:
            if isinstance(world, World):
                world.save(run_dir / "world")
            stack.enter_context(running_ray(1 + num_env_runners + num_learners, address))
            algorithm = config.build_algo()
        except Exception:
            if new:  # what cannot begin must not keep the folder from what can
                (run_dir / "run.json").unlink()
                shutil.rmtree(run_dir / "world", ignore_errors=True)
            raise
        try:
            _train(algorithm, run_dir, iterations, checkpoint_every)
            training = {
                "requests": _requests(algorithm),
                "iterations": algorithm.iteration,
                "feedback": "logged" if method.data == "log" else "one slate",
            }
            return save_policy(
                run_dir / "policy", method, learned_network(algorithm), algorithm.config.request_shape, training
            )
        finally:
            algorithm.stop()


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


def _card(
    method: Method,
    env: str,
    env_config: dict[str, Any],
    evaluator: ListEvaluator | str | None,
    sampling: dict[str, Any],
    logged: LoggedRequests | None = None,
) -> dict[str, Any]:
    """What makes a run the run it is, the content of its world and of its log included."""
    world = env_config.get("world")
    named = {"world": f"object: {world.name}"} if isinstance(world, World) else {}
    content = {} if world is None else {"world_digest": resolve_world(world).digest}
    content |= {} if logged is None else {"log_digest": logged.digest}
    return content | {
        "method": method_path(method),
        "config": dataclasses.asdict(method.config),
        "env": env,
        "env_config": {name: str(value) for name, value in (env_config | named).items()},
        "sampling": sampling,
        "evaluator": _named(evaluator),
    }


def _named(evaluator: ListEvaluator | str | None) -> str | None:
    """Its path, what it says of itself, or else its class."""
    if evaluator is None or isinstance(evaluator, str):
        return evaluator
    says_something = type(evaluator).__str__ is not object.__str__
    return str(evaluator) if says_something else type(evaluator).__qualname__


def _requests(algorithm: Algorithm) -> int:
    return int(algorithm.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0))


@contextmanager
def running_ray(num_cpus: int, address: str | None = None) -> Iterator[None]:
    """Ray for the time of a run, unless it runs already; without RLlib's warnings about its own old parts.

    Args:
        num_cpus: CPUs that a local Ray should believe in, so that nothing waits for them for ever.
        address: of a running cluster to join, or "auto".
    """
    rllib_logger = logging.getLogger("ray.rllib")
    level = rllib_logger.level
    rllib_logger.setLevel(logging.ERROR)
    try:
        yield from _ray(num_cpus, address)
    finally:
        rllib_logger.setLevel(level)


def _ray(num_cpus: int, address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    # Workers import this project from where this process does, and use one thread each: on shared cores more
    # threads slow torch down many times.
    env_vars = {"PYTHONPATH": os.pathsep.join(_import_path()), "OMP_NUM_THREADS": "1"}
    local = {} if address else {"num_cpus": max(num_cpus, os.cpu_count() or 1), "include_dashboard": False}
    try:
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": env_vars},
            **local,
        )
    except ConnectionError as error:
        raise ValueError(f"no Ray cluster at address {address!r}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _import_path() -> list[str]:
    root = str(Path(__file__).resolve().parents[2])
    return [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


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
