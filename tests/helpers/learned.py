"""Small learned worlds, fitted in seconds: what is tested with them does not need a good fit."""

import dataclasses
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from recsim_env.world import World
from reward_models.build import build_worlds
from tests.helpers.small_build import SMALL_BUILD, small_log, small_truth


def learned_worlds(folder: Path) -> dict[str, World]:
    """World A and one judge, fitted in seconds on a small synthetic log."""
    config = dataclasses.replace(SMALL_BUILD, judges=1, judge_dev=False)
    return {name: World.load(path) for name, path in build_worlds(small_log(small_truth()), folder, config).items()}


@cache
def shared_learned_worlds() -> dict[str, World]:
    """The same, fitted once for all tests of a process."""
    with TemporaryDirectory() as folder:
        return learned_worlds(Path(folder))
