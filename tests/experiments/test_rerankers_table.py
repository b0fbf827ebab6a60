"""The rerankers table in miniature: what must hold whatever the numbers are."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.baselines import PointwiseGreedy, RandomSlate
from agents.rerankers import list_bench
from experiments.report.frames import frame_of
from experiments.report.plots import reranker_curves
from experiments.tables import reranker_methods, rerankers, settings
from experiments.tables.runner import judged
from experiments.tables.runs import BLOCKS
from experiments.tables.settings import LogSource, Setting
from recsim_env.results import Cell, EvaluationResult
from tests.helpers.list_bench import all_generators, bench_cells, bench_world, mean


@pytest.fixture(scope="module")
def cells() -> dict[str, Cell]:
    world = bench_world()
    bench, pool = list_bench.Bench(world, 30, 6, seed=11), all_generators(world)
    found = bench_cells(bench, pool)
    assert f"{reranker_methods.share_name(0.02)}, search" in found
    noisy, small = bench.show([RandomSlate(6), PointwiseGreedy(6)]), bench.show([RandomSlate(6)])
    found |= reranker_methods.consumed({"GoalRank, noise 0.2": noisy, "GoalRank, 10k": small}, 512)
    for name in reranker_methods.SEARCHES:
        searches = [[PointwiseGreedy(6), RandomSlate(6), RandomSlate(6)]] * 2
        found |= reranker_methods.consumed(list_bench.search_cells(bench, f"CLIG, {name}", searches), 512)
    return found


def checks_of(cells: dict[str, Cell], setting: str = "synthetic") -> dict[str, dict[str, Any]]:
    """The table's checks of some rows, by name."""
    contents = []
    for name, cell in cells.items():
        for seed in range(len(cell.value("true_list_value"))):
            its = slice(seed, seed + 1)
            ratios = {metric: (over[its], under[its]) for metric, (over, under) in cell.ratios.items()}
            one = dataclasses.replace(cell, ratios=ratios, totals={})
            card = {"setting": setting, "world": "truth", "seed": seed}
            contents.append({"card": card, "cells": {name: one.merged(BLOCKS).to_json()}, "checks": []})
    return {check["name"]: check for check in judged(rerankers.OUTLINE, contents).checks}


def test_ratios_are_paired_by_request_and_seed(cells: dict[str, Cell]) -> None:
    own = cells["pointwise greedy"]
    found = checks_of({"MG-E-100": own, "MG-E-20": own})["MG-E-100 / MG-E-20"]
    assert (found["value"], found["low"], found["high"], found["verdict"]) == (1.0, 1.0, 1.0, "holds")
    many = cells["GoalRank, noise 0.2"]  # a random policy and the sort
    found = checks_of({"GoalRank": many, "MG-E-100": own})["GoalRank / MG-E-100"]
    worse = mean(cells["random"], "true_list_value") / mean(own, "true_list_value")
    value = many.value("true_list_value") / own.value("true_list_value")
    assert value[1] == 1.0
    assert value[0] == pytest.approx(worse, rel=0.2)
    assert (found["value"], found["seeds"]) == (pytest.approx(value.mean()), 2)


def test_one_training_run_carries_no_claim_and_a_real_log_none_at_all(cells: dict[str, Cell]) -> None:
    everything = {name: cells["random"] for pair in rerankers.CHECKS for name in pair[:2]}
    trained = {name: cells["GoalRank, 10k"] for name in everything if name.startswith(("GoalRank", "CLIG"))}
    found = checks_of(everything | trained)
    assert {f"{name} / {other}" for name, other, _, _ in rerankers.CHECKS} <= set(found)
    assert found["MG-E-100 / MG-E-20"]["verdict"] == "holds"  # equal: 1 is below 1.01
    assert found["GoalRank / MG-E-100"]["verdict"] == "no bar"
    two = checks_of(everything | trained | {"GoalRank": cells["GoalRank, noise 0.2"]})
    assert two["GoalRank / MG-E-100"]["bar"] == 1.03
    assert {check["verdict"] for check in checks_of(everything | trained, "kuairand_pure-none").values()} == {"no bar"}


def test_seconds_of_sessions_stand_beside_those_of_requests(cells: dict[str, Cell]) -> None:
    seconds = np.arange(250.0)[None]
    played = Cell(ratios={"session_watch_time": (seconds, np.ones_like(seconds))}, totals={}).merged(BLOCKS)
    found = reranker_methods.with_sessions({"best of 100": cells["best of 100"]}, {"best of 100": played})[
        "best of 100"
    ]
    assert found.value("session_watch_time") == pytest.approx([124.5])
    assert found.value("true_list_value") == pytest.approx(cells["best of 100"].value("true_list_value"))


def test_training_runs_are_distinct_and_share_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "world_folders", lambda setting: {"A": Path("w")})
    monkeypatch.setattr(settings, "digests", lambda setting, world: {"world_digest": "d"})
    setting = Setting(source=LogSource(), name="synthetic", strength=1.0)
    runs = reranker_methods.training_runs(setting, reranker_methods.Budget(), "all")
    flat = [run for some in runs.values() for run in some]
    assert len({run.run_dir for run in flat}) == len(flat)
    assert {(run.iterations, run.num_envs, run.steps_per_iteration, run.env) for run in flat} == {
        (60, 64, 8, "recsim_env:recsim_env/Request-v0")
    }
    claimed = {name for pair in rerankers.CHECKS for name in pair[:2] if name.startswith("GoalRank")}
    assert claimed <= set(runs)
    assert set(reranker_methods.training_runs(setting, reranker_methods.Budget(), "plain")) == {"GoalRank"}


def test_curves_show_every_set_size_and_evaluator(cells: dict[str, Cell], tmp_path: Path) -> None:
    figure = reranker_curves(
        frame_of(EvaluationResult(cells={(name, "truth"): cell for name, cell in cells.items()}).rows())
    )
    figure.savefig(tmp_path / "curves.png")
    assert len(figure.axes) == 4
    assert len(figure.axes[1].lines[0].get_xdata()) == len(list_bench.LISTS_TRIED) + 1
    assert len(figure.axes[0].lines[0].get_xdata()) == len(list_bench.SET_SIZES)
