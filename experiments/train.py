"""Trains a ranker through RLlib, by a named recipe or by the class path of a method.

    python -m experiments.train goalrank --world runs/worlds/A --run-dir runs/goalrank
    python -m experiments.train my_module:MyMethod --config.lr 1e-3

A run that was killed goes on from its last checkpoint when the same command is given again. ``--json`` writes
``policy`` (folder of the exported policy), ``requests`` (world requests consumed) and ``seconds``.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from agents.policies import policy_card
from experiments.command import run_command
from experiments.recipes import RECIPES, TrainRun, recipe
from recsim_env.data import load_log
from recsim_env.files import write_json
from recsim_env.known_worlds import resolve_world
from recsim_env.plugins import load_object
from reward_models.recommender.operator_requests import operator_requests

if TYPE_CHECKING:
    from agents.rllib.algorithm import MethodAlgorithmConfig


def rllib_config(run: TrainRun) -> "MethodAlgorithmConfig":
    """The run as RLlib is told of it.

    Raises:
        ValueError: a log for a method that plays, none for one that learns from it, or a size or class that is not
            there.
    """
    from agents.rllib.algorithm import MethodAlgorithmConfig  # imports ray

    method = run.make_method()
    if (method.data == "log") != (run.log is not None):
        needs = "learns from a log: give --log" if run.log is None else "learns from play, not from --log"
        raise ValueError(f"{run.method} {needs}")
    config: MethodAlgorithmConfig = (
        MethodAlgorithmConfig(run.method)
        .environment(run.env, env_config={"world": run.world} | ({} if run.device == "cpu" else {"device": run.device}))
        .env_runners(
            num_env_runners=run.num_env_runners,
            num_envs_per_env_runner=run.num_envs,
            rollout_fragment_length=run.steps_per_iteration,
            num_gpus_per_env_runner=run.gpus_per_env_runner,
        )
        .learners(num_learners=run.num_learners, num_gpus_per_learner=run.gpus_per_learner)
        .training(
            method_config=method.config,
            evaluator=run.evaluator,
            logged=None if run.log is None else operator_requests(load_log(run.log), resolve_world(run.world)),
        )
    )
    if run.learner_class is not None:
        config.learners(learner_class=load_object(run.learner_class))
    if run.module_class is not None:
        spec = config.get_default_rl_module_spec()
        spec.module_class = load_object(run.module_class)
        config.rl_module(rl_module_spec=spec)
    return config


def run(config: TrainRun) -> Path:
    """Trains and returns the folder of the exported policy."""
    from agents.rllib.train import train_method  # imports ray

    return train_method(
        rllib_config(config),
        iterations=config.iterations,
        run_dir=config.run_dir,
        checkpoint_every=config.checkpoint_every,
        address=config.address,
    )


def parse() -> TrainRun:
    """Reads the recipe and its overrides from the command line.

    Raises:
        ValueError: no recipe, or options before it.
    """
    wanted, *options = sys.argv[1:] or ["--help"]
    if wanted in ("-h", "--help"):
        recipes = "".join(f"\n  {name:22}{found.summary}" for name, found in RECIPES.items())
        print(f"usage: experiments.train <recipe> [--option value ...]; <recipe> --help lists its options\n\n{__doc__}")
        print(f"recipes:{recipes}")
        sys.exit(0)
    if wanted.startswith("-"):
        named = next((word for word in options if word in RECIPES), "<recipe>")
        raise ValueError(f"the recipe comes before its options: python -m experiments.train {named} {wanted} ...")
    return tyro.cli(TrainRun, args=options, default=recipe(wanted), description=__doc__)


def main(config: TrainRun) -> None:
    """Trains and says where the policy and the curves are."""
    begun = time.perf_counter()
    policy = run(config)
    print(f"policy: {policy}\ncurves: tensorboard --logdir {config.run_dir}")
    if config.json:
        requests = policy_card(policy)["training"]["requests"]
        seconds = time.perf_counter() - begun
        write_json(config.json, {"policy": str(policy), "requests": requests, "seconds": seconds})


if __name__ == "__main__":
    run_command(main, parse)
