"""Trains a ranker through RLlib, by a named recipe or by the class path of a method.

    python -m experiments.train goalrank --world runs/worlds/A --run-dir runs/goalrank
    python -m experiments.train my_module:MyMethod --config.lr 1e-3

A run that was killed goes on from its last checkpoint when the same command is given again. ``--json`` writes
``policy`` (folder of the exported policy), ``requests`` (world requests consumed) and ``seconds``.
"""

import sys
import time
from pathlib import Path
from typing import Any

import tyro

from agents.policies import policy_card
from experiments.command import run_command
from experiments.recipes import RECIPES, TrainRun, recipe
from recsim_env.data import load_log
from recsim_env.files import write_json
from recsim_env.known_worlds import resolve_world
from recsim_env.plugins import load_object
from reward_models.recommender.operator_requests import operator_requests


def run(config: TrainRun) -> Path:
    """Trains and returns the folder of the exported policy."""
    from agents.rllib.train import train_method  # imports ray

    method = config.make_method()
    if (method.data == "log") != (config.log is not None):
        needs = "learns from a log: give --log" if config.log is None else "learns from play, not from --log"
        raise ValueError(f"{config.method} {needs}")

    def configure(algorithm_config: Any) -> None:
        if config.learner_class is not None:
            algorithm_config.training(learner_class=load_object(config.learner_class))
        if config.module_class is not None:
            spec = algorithm_config.get_default_rl_module_spec()
            spec.module_class = load_object(config.module_class)
            algorithm_config.rl_module(rl_module_spec=spec)

    return train_method(
        method,
        {"world": config.world} | ({} if config.device == "cpu" else {"device": config.device}),
        env=config.env,
        evaluator=config.evaluator,
        logged=None if config.log is None else operator_requests(load_log(config.log), resolve_world(config.world)),
        iterations=config.iterations,
        run_dir=config.run_dir,
        num_envs=config.num_envs,
        steps_per_iteration=config.steps_per_iteration,
        checkpoint_every=config.checkpoint_every,
        num_env_runners=config.num_env_runners,
        num_learners=config.num_learners,
        gpus_per_learner=config.gpus_per_learner,
        gpus_per_env_runner=config.gpus_per_env_runner,
        configure=configure,
        address=config.address,
    )


def parse() -> TrainRun:
    """Reads the recipe and its overrides from the command line."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else "-"
    if not wanted.startswith("-") and wanted not in RECIPES:
        chosen = recipe(wanted)  # a class path, or an error that knows the nearest name
        return tyro.cli(TrainRun, args=sys.argv[2:], default=chosen, description=__doc__)
    presets = {name: (function.__doc__ or "", function()) for name, function in RECIPES.items()}
    return tyro.extras.overridable_config_cli(presets, description=__doc__)


def main(config: TrainRun) -> None:
    """Trains and says where the policy and the curves are."""
    begun = time.perf_counter()
    policy = run(config)
    print(f"policy: {policy}\ncurves: tensorboard --logdir {config.run_dir}")
    if config.json:
        requests = policy_card(policy)["training"]["requests"]
        seconds = time.perf_counter() - begun
        write_json(config.json, {"policy": str(policy), "requests": requests, "seconds": seconds})


def requests_of(config: TrainRun) -> int:
    """World requests that a run plays, at most: steps that only reset a session are none."""
    return config.iterations * config.num_envs * config.steps_per_iteration * max(config.num_env_runners, 1)


if __name__ == "__main__":
    run_command(main, parse)
