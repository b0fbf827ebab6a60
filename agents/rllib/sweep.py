"""Sweeps a method's settings with Ray Tune, over seeds; a killed sweep goes on where it stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune

from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.cluster import running_ray
from agents.rllib.train import alone_in


def sweep_method(
    config: MethodAlgorithmConfig,
    grid: Mapping[str, list[Any]],
    *,
    seeds: int,
    iterations: int,
    jobs: int,
    folder: Path,
    address: str | None = None,
) -> pd.DataFrame:
    """Trains and evaluates every combination with every seed.

    Args:
        config: what is trained where the grid says nothing, and how it is evaluated.
        grid: values by setting.
        seeds: 0, 1, ... below this number, unless the grid holds ``seed`` itself.
        iterations: rounds of each trial.
        jobs: trials side by side.
        folder: receives Tune's folder ``trials``; one process at a time may sweep there.
        address: a running Ray cluster to join, or "auto".

    Returns:
        One row for each trial: its settings, ``seed``, ``session_watch_time`` and ``minus_pointwise`` (s).

    Raises:
        ValueError: a trial failed, or another process sweeps in the folder.
    """
    searched = {name: tune.grid_search(values) for name, values in {"seed": [*range(seeds)], **grid}.items()}
    settings = config.copy(copy_frozen=False).evaluation(evaluation_interval=iterations).training(**searched)
    trials = str((folder / "trials").resolve())
    with alone_in(folder), running_ray(jobs, address):
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
