"""Trains a ranker through RLlib by a named recipe.

    python -m experiments.train goalrank --world runs/worlds/A --run-dir runs/goalrank

A run that was killed goes on from its last checkpoint when the same command is given again. ``--json`` writes
``policy`` (folder of the exported policy), ``requests`` (world requests consumed) and ``seconds``.
"""

import time
from pathlib import Path

import tyro

from experiments.command import run_command
from experiments.recipes import RECIPES, TrainRun
from recsim_env.files import write_json


def run(config: TrainRun) -> Path:
    """Trains and returns the folder of the exported policy."""
    from agents.rllib.train import train_goalrank  # imports ray

    return train_goalrank(
        config.settings,
        {"world": config.world} | ({} if config.device == "cpu" else {"device": config.device}),
        env=config.env,
        iterations=config.iterations,
        run_dir=config.run_dir,
        num_envs=config.num_envs,
        steps_per_iteration=config.steps_per_iteration,
        checkpoint_every=config.checkpoint_every,
        num_env_runners=config.num_env_runners,
        num_learners=config.num_learners,
        gpus_per_learner=config.gpus_per_learner,
        gpus_per_env_runner=config.gpus_per_env_runner,
    )


def requests_of(config: TrainRun) -> int:
    """World requests that a run consumes."""
    return config.iterations * config.num_envs * config.steps_per_iteration * max(config.num_env_runners, 1)


def parse() -> TrainRun:
    """Reads the recipe and its overrides from the command line."""
    presets = {name: (recipe.__doc__ or "", recipe()) for name, recipe in RECIPES.items()}
    return tyro.extras.overridable_config_cli(presets, description=__doc__)


def main(config: TrainRun) -> None:
    """Trains and says where the policy and the curves are."""
    begun = time.perf_counter()
    policy = run(config)
    print(f"policy: {policy}\ncurves: tensorboard --logdir {config.run_dir}")
    if config.json:
        seconds = time.perf_counter() - begun
        write_json(config.json, {"policy": str(policy), "requests": requests_of(config), "seconds": seconds})


if __name__ == "__main__":
    run_command(main, parse)
