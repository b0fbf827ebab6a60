"""Sweeps and recipes: what cannot work is refused before anything is written."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from agents.method import MethodConfig
from experiments.recipes import recipe
from experiments.tune import Sweep, run, values_of


def test_sweeps_that_cannot_work_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lr was given twice; give all its values together"):
        values_of(("lr=1e-3", "lr=2e-3"))
    for how, message in (
        ({"recipe": "behaviour-cloning"}, "learns from a log, and a sweep has none"),
        ({"recipe": "ppo", "seeds": 0}, "must be at least 1"),
        ({"recipe": "ppo", "num_sessions": 1}, "num_sessions at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            run(Sweep(grid=("lr=1e-3",), world="tiny", out=tmp_path / "out", **how))
    with pytest.raises(ValueError, match="lr must be a number, got 'abc'"):
        run(Sweep(recipe="ppo", grid=("lr=1e-3,abc",), world="tiny", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True, kw_only=True)
class Needing(MethodConfig):
    """A setting without a default."""

    needed: float


class NeedsOne:
    """No method that a recipe could begin."""

    Config = Needing
    data, network, outputs, loss = "fresh", None, None, None


def test_a_method_whose_settings_lack_defaults_is_no_recipe() -> None:
    with pytest.raises(ValueError, match=r"every setting of a method needs a default: .*'needed'"):
        recipe(f"{__name__}:NeedsOne")
