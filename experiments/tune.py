"""Sweeps settings of a recipe with Ray Tune, over seeds, judged by session watch time on paired sessions.

    python -m experiments.tune goalrank --world runs/worlds/A --grid lr=1e-3,2e-3 group_size=8,16 --seeds 3

Every combination is trained in the recipe's world and evaluated there on sessions that no training has seen
(``algo.evaluate()``). ``--out`` receives Tune's own folder (TensorBoard events, one folder for each trial) and
``trials.csv``. A sweep that was killed goes on when the same command is given again. Judge worlds are for judging:
tune in the world of training only.
"""

import ast
import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

from agents.method import make_method
from experiments.command import run_command
from experiments.recipes import recipe
from experiments.train import rllib_config
from recsim_env.files import claim, write_text
from recsim_env.known_worlds import KNOWN_WORLDS, resolve_world


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is swept."""

    recipe: tyro.conf.Positional[str]
    """A recipe's name, or the class path of a method, "module:Class"."""
    grid: tuple[str, ...]
    """Settings of the method with their values: ``lr=1e-3,2e-3``; all combinations are run."""
    seeds: int = 1
    """Training seeds of each combination."""
    world: str = "runs/worlds/A"
    """World folder, or the name of a known world."""
    iterations: int = 40
    """Rounds of sampling and updating of each trial."""
    num_sessions: int = 400
    """Sessions that each trained policy is evaluated on."""
    jobs: int = 2
    """Trials side by side; each takes one CPU."""
    gpus_per_trial: float = 0
    """GPUs of each trial's learner."""
    address: str | None = None
    """A running Ray cluster to join: its address, or "auto"."""
    out: Path = Path("runs/tune")
    """Where the sweep goes."""


def values_of(grid: tuple[str, ...]) -> dict[str, list[Any]]:
    """Values by setting.

    Raises:
        ValueError: not of the form ``name=value,value``.

    Example:
        >>> values_of(("lr=1e-3,2e-3", "decoder=one_softmax"))
        {'lr': [0.001, 0.002], 'decoder': ['one_softmax']}
    """
    found = {}
    for given in grid:
        name, separator, values = given.partition("=")
        if not (separator and name and values):
            raise ValueError(f"a grid is given as name=value,value, got {given!r}")
        if name in found:
            raise ValueError(f"{name} was given twice; give all its values together, {name}=value,value")
        found[name] = [_value(text) for text in values.split(",")]
    return found


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a word, such as a decoder's name


def run(sweep: Sweep) -> pd.DataFrame:
    """Runs what is missing and returns one row for each trial."""
    from agents.rllib.sweep import sweep_method  # imports ray

    base, grid = recipe(sweep.recipe), values_of(sweep.grid)
    if base.make_method().data == "log":
        raise ValueError(f"{base.method} learns from a log, and a sweep has none; train its settings one by one")
    if min(sweep.seeds, sweep.iterations, sweep.jobs) < 1 or sweep.num_sessions < 2:
        raise ValueError("seeds, iterations and jobs must be at least 1, and num_sessions at least 2")
    for values in itertools.product(*grid.values()):  # refuses what cannot work, before anything is written
        make_method(base.method, {**dataclasses.asdict(base.config), **dict(zip(grid, values, strict=True))})
    same = {name: value for name, value in dataclasses.asdict(sweep).items() if name not in ("out", "jobs", "address")}
    claim(sweep.out, {**same, "world_digest": resolve_world(sweep.world).digest}, name="sweep.json")
    world = sweep.world if sweep.world in KNOWN_WORLDS else str(Path(sweep.world).resolve())  # trials run elsewhere
    trial = dataclasses.replace(base, world=world, gpus_per_learner=sweep.gpus_per_trial)
    return sweep_method(
        rllib_config(trial).evaluation(evaluation_duration=sweep.num_sessions),
        grid,
        seeds=sweep.seeds,
        iterations=sweep.iterations,
        jobs=sweep.jobs,
        folder=sweep.out,
        address=sweep.address,
    )


def main(sweep: Sweep) -> None:
    """Sweeps, prints the means and keeps every trial's row."""
    trials = run(sweep)
    grouped = trials.groupby(list(values_of(sweep.grid)), dropna=False)[["session_watch_time", "minus_pointwise"]]
    means = grouped.agg(["mean", "std", "count"]).sort_values(("session_watch_time", "mean"), ascending=False)
    write_text(sweep.out / "trials.csv", trials.to_csv(index=False))
    print(means.round(1).to_string())
    print(f"trials: {sweep.out / 'trials.csv'}\ncurves: tensorboard --logdir {sweep.out / 'trials'}")


if __name__ == "__main__":
    run_command(main, lambda: tyro.cli(Sweep, description=__doc__))
