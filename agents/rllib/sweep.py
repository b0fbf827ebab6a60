"""Sweeps a method's settings with Ray Tune, over seeds; a killed sweep goes on where it stopped."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune

from agents.method import make_method
from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.train import running_ray
from recsim_env.known_worlds import KNOWN_WORLDS


def combinations(method: str, config: Any, grid: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination of the grid's values.

    Raises:
        ValueError: a setting that the method does not have, or a value that it refuses.
    """
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for some in found:
        make_method(method, {**dataclasses.asdict(config), **some})
    return found


def sweep_method(
    method: str,
    config: Any,
    grid: Mapping[str, list[Any]],
    *,
    seeds: int,
    env: str,
    world: str,
    iterations: int,
    num_envs: int,
    steps_per_iteration: int,
    num_sessions: int,
    jobs: int,
    gpus_per_trial: float,
    address: str | None,
    folder: Path,
) -> pd.DataFrame:
    """Trains and evaluates every combination with every seed.

    Args:
        method: class path.
        config: its settings, where the grid says nothing.
        grid: values by setting.
        seeds: 0, 1, ... below this number, unless the grid holds ``seed`` itself.
        env: id of the environment.
        world: world folder or the name of a known world.
        iterations: rounds of each trial.
        num_envs: environments of each trial.
        steps_per_iteration: steps of each environment in a round.
        num_sessions: sessions that each trained policy is evaluated on.
        jobs: trials side by side.
        gpus_per_trial: GPUs of each trial's learner.
        address: a running Ray cluster to join, or "auto".
        folder: receives Tune's folder ``trials``.

    Returns:
        One row for each trial: its settings, ``seed``, ``session_watch_time`` and ``minus_pointwise`` (s).

    Raises:
        ValueError: a trial failed.
    """
    searched: dict[str, Any] = {name: tune.grid_search(values) for name, values in grid.items()}
    searched.setdefault("seed", tune.grid_search(list(range(seeds))))
    fixed = {name: value for name, value in dataclasses.asdict(config).items() if name not in searched}
    where = world if world in KNOWN_WORLDS else str(Path(world).resolve())  # trials run in folders of their own
    settings = (
        MethodAlgorithmConfig(method)
        .environment(env, env_config={"world": where})
        .env_runners(num_envs_per_env_runner=num_envs, rollout_fragment_length=steps_per_iteration)
        .learners(num_gpus_per_learner=gpus_per_trial)
        .evaluation(evaluation_interval=iterations, evaluation_duration=num_sessions)
        .training(method_config=fixed, **searched)
    )
    trials = str((folder / "trials").resolve())
    with running_ray(jobs, address):
        if tune.Tuner.can_restore(trials):
            tuner = tune.Tuner.restore(
                trials, settings.algo_class, param_space=settings, resume_unfinished=True, resume_errored=True
            )
        else:
            tuner = tune.Tuner(
                settings.algo_class,
                param_space=settings,
                tune_config=tune.TuneConfig(max_concurrent_trials=jobs),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(folder.resolve()),
                    stop={"training_iteration": iterations},
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=10, checkpoint_at_end=True),
                ),
            )
        results = tuner.fit()
    if results.errors:
        raise ValueError(f"{len(results.errors)} trials failed, first: {results.errors[0]}; see {trials}")
    rows = [_row(result, list(grid)) for result in results]
    return pd.DataFrame(rows).sort_values([*grid, "seed"], ignore_index=True, key=lambda column: column.astype(str))


def _row(result: Any, names: list[str]) -> dict[str, Any]:
    told, config = result.metrics["evaluation"]["env_runners"], result.config
    settings = {name: config["method_config"].get(name, config.get(name)) for name in names}
    return {
        **settings,
        "seed": config["seed"],
        "session_watch_time": told["session_watch_time"],
        "minus_pointwise": told["watch_time_minus_pointwise"],
    }
