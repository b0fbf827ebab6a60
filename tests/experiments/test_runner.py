"""The table runner in miniature: what is kept, what is measured again, and what is said of it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from experiments.tables import runs
from experiments.tables.runner import Comparison, Finished, Outline, RunOptions, compared, complete, missing_runs, show
from experiments.tables.runs import Measured, Run, count_opening, openings, publish_json, result_of
from recsim_env.results import Cell, EvaluationResult

OUTLINE = Outline(
    name="small",
    title="A small table",
    metrics={"seconds": "seconds"},
    comparisons=[
        Comparison(name="ours", other="theirs", metric="seconds"),
        Comparison(name="ours", other="theirs", metric="seconds", how="over", bar=1.5, side="below"),
    ],
    claims=lambda setting, world: world != "A",
)


def drawn(method: str, seed: int, num_sessions: int = 40) -> Cell:
    """Sessions of a method: theirs watches the luck, ours ten seconds and its seed more."""
    luck = np.random.default_rng(7).normal(100, 20, size=(1, num_sessions))
    return Cell(
        ratios={"seconds": (luck + (10 + seed if method == "ours" else 0), np.ones_like(luck))},
        totals={"coverage": np.array([0.25])},
        world_requests=512 if method == "ours" else 0,
    )


class Bench:
    """A table that notes what it was asked to do."""

    def __init__(self, seeds: int = 2, worlds: tuple[str, ...] = ("A", "judge-final-1"), **card: object) -> None:
        self.asked: list[str] = []
        self.prepared: list[tuple[str, str, int]] = []
        self.fail_at: int | None = None
        self.runs = [
            Run(
                setting="here",
                method=method,
                seed=seed,
                world=world,
                card={"size": 40, "world_digest": "d", **card},
                measure=partial(self.measure, world, method, seed),
                prepare=partial(self.prepared.append, ("here", method, seed)),
            )
            for world in worlds
            for method, seed in [("theirs", 0), *(("ours", seed) for seed in range(seeds))]
        ]

    def measure(self, world: str, method: str, seed: int) -> Measured:
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append(f"{world}, {method}, seed {seed}")
        return Measured(cells={method: drawn(method, seed)})

    def complete(self, options: RunOptions) -> Finished:
        return complete(OUTLINE, self.runs, options)


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    return RunOptions(results=tmp_path / "results", jobs=1)


def test_a_second_call_measures_nothing_and_says_so(options: RunOptions, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench()
    first = bench.complete(options)
    assert len(bench.asked) == 6
    assert sorted(bench.prepared) == [("here", "ours", 0), ("here", "ours", 1), ("here", "theirs", 0)]
    show(first, options)
    assert "| new" in capsys.readouterr().out
    again = Bench()
    second = again.complete(options)
    assert again.asked == []
    assert (second.checks, second.to_json()["rows"]) == (first.checks, first.to_json()["rows"])
    show(second, options)
    told = capsys.readouterr().out
    assert "6 of 6 runs are kept" in told
    assert "| kept" in told
    assert "| new" not in told
    more = Bench(seeds=3)
    more.complete(options)
    assert more.asked == ["A, ours, seed 2", "judge-final-1, ours, seed 2"]


def test_figures_are_those_of_the_sessions_and_their_interval_decides(options: RunOptions) -> None:
    finished = Bench().complete(options)
    parts = [drawn("ours", seed).ratios["seconds"] for seed in (0, 1)]
    both = (np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))
    cells = {("ours", "A"): Cell(ratios={"seconds": both}, totals={}), ("theirs", "A"): drawn("theirs", 0)}
    whole = EvaluationResult(cells=cells)
    row, kept = whole.row("ours", "A", "seconds"), finished.results["here"].row("ours", "A", "seconds")
    assert (kept.mean, kept.seeds, kept.sessions) == (pytest.approx(row.mean), 2, 40)
    assert (kept.low, kept.high) == pytest.approx((row.low, row.high))
    assert finished.results["here"].row("theirs", "A", "coverage").mean == 0.25
    difference = {check["world"]: check for check in finished.checks if " - " in check["name"]}["judge-final-1"]
    # By hand: 10 and 11 seconds more, the same in every session; t of one degree of freedom is 12.706.
    assert difference["value"] == pytest.approx(10.5)
    assert difference["high"] - 10.5 == pytest.approx(12.706 * 0.5, rel=1e-3)
    assert difference["verdict"] == "holds"
    ratio = {check["world"]: check for check in finished.checks if " / " in check["name"]}
    assert ratio["judge-final-1"]["verdict"] == "holds"
    assert ratio["A"]["verdict"] == "no bar"


def test_one_training_seed_carries_no_claim(options: RunOptions) -> None:
    finished = Bench(seeds=1).complete(options)
    assert {check["verdict"] for check in finished.checks} == {"no bar"}


def test_other_sessions_cannot_be_compared() -> None:
    cells = {("ours", "w"): drawn("ours", 0, 400).merged(100), ("theirs", "w"): drawn("theirs", 0, 200).merged(100)}
    assert compared(EvaluationResult(cells=cells), OUTLINE.comparisons[0], "w") is None


@pytest.mark.parametrize("changed", [{"size": 41}, {"world_digest": "e"}, {"method_config": {"lr": 0.1}}])
def test_a_file_of_other_work_is_refused_or_measured_again(options: RunOptions, changed: dict[str, object]) -> None:
    Bench().complete(options)
    bench = Bench(**changed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"6 kept files are of other work, .*{next(iter(changed))}.* --again"):
        bench.complete(options)
    assert bench.asked == []
    bench.complete(dataclasses.replace(options, again=True))
    assert len(bench.asked) == 6
    assert missing_runs(bench.runs, options.results / "small") == []


def test_a_table_that_was_stopped_goes_on_where_it_was(options: RunOptions) -> None:
    stopped = Bench()
    stopped.fail_at = 4
    with pytest.raises(KeyboardInterrupt):
        stopped.complete(options)
    bench = Bench()
    finished = bench.complete(options)
    assert len(bench.asked) == 2
    whole = Bench().complete(dataclasses.replace(options, results=options.results / "other"))
    assert finished.to_json()["rows"] == whole.to_json()["rows"]


def test_a_killed_table_leaves_whole_files_only(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from tests.experiments.test_runner import Bench\n"
        "from experiments.tables.runner import RunOptions\n"
        "class Slow(Bench):\n"
        "    def measure(self, *run):\n"
        "        time.sleep(0.02)\n"
        "        return super().measure(*run)\n"
        "Slow(seeds=40).complete(RunOptions(results=Path(sys.argv[1]), jobs=1))\n"
    )
    running = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(tmp_path.rglob("ours-*.json"))) < 5:
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    kept = list(tmp_path.rglob("ours-*.json"))
    assert 5 <= len(kept) < 80
    assert all(json.loads(path.read_text())["cells"] for path in kept)
    bench = Bench(seeds=40)
    bench.complete(RunOptions(results=tmp_path, jobs=1))
    assert 0 < len(bench.asked) <= 82 - len(kept)


def test_every_look_at_a_deciding_world_is_counted_for_all_tables(options: RunOptions) -> None:
    Bench().complete(options)
    Bench().complete(options)
    assert openings(options.results) == {"here, judge-final-1, content d": 3}
    (look,) = Bench(seeds=0, worlds=("judge-final-1",)).runs
    count_opening(options.results, "other", look)
    assert openings(options.results) == {"here, judge-final-1, content d": 4}
    assert json.loads((options.results / "openings.json").read_text()) == {
        "here, judge-final-1, content d": {"small": 3, "other": 1}
    }


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A small repository that takes the place of this one."""
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "PUBLISHED", tmp_path / "experiments" / "results")

    def git(*words: str) -> None:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-m", "one")
    return git


def test_a_changed_checkout_publishes_nothing(checkout: Callable[..., None], tmp_path: Path) -> None:
    published = RunOptions(results=tmp_path / "experiments" / "results", jobs=1)
    (tmp_path / "code.py").write_text("2")
    bench = Bench()
    with pytest.raises(
        ValueError, match=r"made by a commit, and code\.py differ from it: commit first, or write a trial"
    ):
        bench.complete(published)
    assert bench.asked == []
    with pytest.raises(ValueError, match="made by a commit"):
        publish_json(published.results / "speed.json", {})
    Bench(worlds=("A",)).complete(RunOptions(results=tmp_path.parent / f"{tmp_path.name}-trial", jobs=1))
    checkout("commit", "-am", "two")
    bench.complete(published)  # and its own new files do not make the checkout a changed one
    Bench(seeds=3).complete(published)
    assert "+" not in json.loads(next(published.results.rglob("ours-2.json")).read_text())["commit"]


def test_results_are_read_in_the_order_of_their_seeds() -> None:
    contents = [
        {"card": {"seed": seed, "world": "A"}, "cells": {"ours": drawn("ours", seed).to_json()}} for seed in (10, 2, 0)
    ]
    assert np.diff(result_of(contents).cells["ours", "A"].value("seconds")) == pytest.approx([2, 8])


@pytest.mark.slow
def test_runs_are_ray_tasks_where_several_are_missing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    as_tasks = Bench().complete(RunOptions(results=tmp_path / "tasks", jobs=2))
    here = Bench().complete(RunOptions(results=tmp_path / "here", jobs=1))
    assert as_tasks.to_json()["rows"] == here.to_json()["rows"]
    assert as_tasks.checks == here.checks
    assert openings(tmp_path / "tasks") == openings(tmp_path / "here")


def test_some_worlds_can_be_left_closed(options: RunOptions) -> None:
    bench = Bench(worlds=("A", "judge-dev", "judge-final-1"))
    finished = bench.complete(dataclasses.replace(options, worlds=("A", "judge-dev")))
    assert finished.results["here"].world_names == ("A", "judge-dev")
    assert openings(options.results) == {}
    with pytest.raises(ValueError, match=r"no world 'judge-def' \(did you mean 'judge-dev'\?\)"):
        bench.complete(dataclasses.replace(options, worlds=("judge-def",)))
