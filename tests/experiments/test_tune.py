"""The sweep: grids from words, refusals before anything runs, and one that runs and resumes."""

from pathlib import Path

import pytest

from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.sweep import sweep_method
from agents.rllib.train import alone_in
from experiments.recipes import SESSION_ENV
from experiments.tune import Sweep, run, values_of


def test_grids_are_read_from_words() -> None:
    assert values_of(("lr=1e-3,2e-3", "decoder=matching,one_softmax", "auxiliary_requests=None,5")) == {
        "lr": [0.001, 0.002],
        "decoder": ["matching", "one_softmax"],
        "auxiliary_requests": [None, 5],
    }
    with pytest.raises(ValueError, match="a grid is given as name=value,value, got 'lr'"):
        values_of(("lr",))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("group_sise=2", r"has no setting 'group_sise' \(did you mean 'group_size'\?\)"),
        ("group_size=4,1", "a group needs at least 2 lists"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(grid: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(Sweep(recipe="goalrank", grid=(grid,), out=tmp_path / "sweep"))
    assert not (tmp_path / "sweep").exists()


def test_two_sweeps_in_one_folder_are_refused(tmp_path: Path) -> None:
    config = MethodAlgorithmConfig("agents.rl.ppo:PPO").environment(SESSION_ENV, env_config={"world": "tiny"})
    with alone_in(tmp_path), pytest.raises(ValueError, match="another process is at work in"):
        sweep_method(config, {"lr": [1e-3]}, seeds=1, iterations=1, jobs=1, folder=tmp_path)


@pytest.mark.slow
def test_a_sweep_reports_every_trial_and_resumes(tmp_path: Path) -> None:
    sweep = Sweep(
        recipe="ppo",
        grid=("lr=1e-4,1e-3", "width=8"),
        seeds=2,
        world="tiny",
        iterations=2,
        num_sessions=50,
        out=tmp_path,
    )
    trials = run(sweep)
    assert sorted(zip(trials["lr"], trials["seed"], strict=True)) == [(1e-4, 0), (1e-4, 1), (1e-3, 0), (1e-3, 1)]
    assert (trials["session_watch_time"] > 0).all()
    again = run(sweep)  # nothing is trained again: finished trials are read
    assert again.equals(trials)
    with pytest.raises(ValueError, match="iterations was 2, now 3"):
        run(Sweep(**{**sweep.__dict__, "iterations": 3}))
